"""Opens a shard's index; a damaged one is set aside and made anew from what can be read.

Owns the order of that: the new index is whole and durable before the damaged files go into the quarantine, and only
then takes their place, so a crash at any point leaves one of the two and no log of one beside the other. Blocking;
called on the index's thread by `cold`.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from relayd import clock, log, metrics
from relayd.spool import index_file
from relayd.spool.disk import sync_directory
from relayd.spool.index import Index, IndexDamagedError
from relayd.spool.salvage import Salvage, salvage

_NAME, _FRESH = "index.db", "index.new.db"


def open_or_renew(directory: Path, shard: int) -> Index:
    """The index of the shard in `directory`, made anew where it is damaged. FormatError, OSError."""
    path = directory / _NAME
    if not index_file.is_regular(path) and index_file.is_regular(directory / _FRESH):
        # A crash came between setting the old one aside and this.
        _replace(directory)
    try:
        return _opened(path, shard)
    except IndexDamagedError as error:
        log.alert("index damaged", shard=shard, error=str(error))
    return renew(directory, shard)


def renew(directory: Path, shard: int) -> Index:
    """Make the index anew from what can be read of it, while nobody has it open. FormatError, OSError."""
    path, fresh = directory / _NAME, directory / _FRESH
    for leftover in index_file.files_of(fresh):
        leftover.unlink(missing_ok=True)
    with closing(Index(fresh, shard)) as target:
        found = salvage(path, target) if index_file.is_regular(path) else Salvage(0, 0, 0)
    kept = _replace(directory)
    metrics.quarantined.inc(found.lost)
    log.quarantined(shard, str(kept), 0, 0, f"{found.messages} messages saved, {found.lost} lost")
    return _opened(path, shard)


def was_renewed(directory: Path) -> bool:
    """Whether a damaged index lies in the quarantine: what it lost may have been mail."""
    return any((directory / "quarantine").glob("index-*.db"))


def _opened(path: Path, shard: int) -> Index:
    try:
        return Index(path, shard)
    except OSError:
        # On a full disk, too, what waits has to be delivered: this is what the reserve is for. SQLite does not always
        # tell a full disk from a broken one.
        path.with_name("reserve").unlink(missing_ok=True)
    return Index(path, shard)


def _replace(directory: Path) -> Path:
    """Put the new index in the place of the old one, which goes into the quarantine; there it lies under this path."""
    kept = directory / "quarantine" / f"index-{clock.wall():.6f}.db"
    for file, aside in zip(index_file.files_of(directory / _NAME), index_file.files_of(kept), strict=True):
        if file.exists():
            file.rename(aside)
    sync_directory(kept.parent)
    sync_directory(directory)
    (directory / _FRESH).rename(directory / _NAME)
    sync_directory(directory)
    return kept
