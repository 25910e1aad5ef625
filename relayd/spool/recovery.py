"""Files become messages again: replays a shard's journal and sets aside what cannot be read.

Never raises on content and never deletes an octet it does not understand (I7): damaged ranges are copied to
`quarantine/` and stay in their segment until everything else in it is done. `recover` is for the owner, at open;
`viewer` replays for whoever only looks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from relayd.spool import journal
from relayd.spool.disk import sync_directory, write_all
from relayd.spool.journal import (
    SEAL,
    Damage,
    Digest,
    Frame,
    IrregularFileError,
    Place,
    RecordError,
    Row,
    SegmentReader,
)
from relayd.spool.ledger import Ledger, Segment
from relayd.spool.records import Accepted, Held, Record

_SHARD = re.compile(r"shard-(\d{2,4})", re.ASCII)
_COPY = 1 << 20


class Loss(msgspec.Struct, frozen=True):
    """A range without records: `torn`, a batch that was never acknowledged, or else damage. Empty: frames missing."""

    segment: int
    offset: int
    octets: int
    reason: str
    torn: bool = False

    @property
    def name(self) -> str:
        """Its file in the quarantine."""
        return f"{self.segment:08}-{self.offset}.{'torn' if self.torn else 'bad'}"


Known = Callable[[Iterable[str]], Iterable[str]]


def nothing(_names: Iterable[str]) -> Iterable[str]:
    """What an index without messages knows."""
    return ()


class Replay:
    """A journal read from its first octet to its last, changing nothing.

    ledger: what it adds up to. losses: what could not be read, in order. sequence: the next frame's.
    taken: segments up to this one are in the index already, whole. known: which messages are in the index; asked of
    what each segment leaves alive, before the next tells what became of it: its move may have ended half way.
    Costs one pass over the files; memory: one frame, and no body. FormatError before anything is concluded.
    """

    def __init__(self, directory: Path, shard: int, *, taken: int = 0, known: Known = nothing) -> None:
        self.ledger = Ledger()
        self.losses: list[Loss] = []
        self.sequence = 0
        self.doubt = False
        """Whether a range could not be read, be it set aside by an earlier start: it may have named a body."""
        self._shard = shard
        self._following = False
        """Whether the frame before this one was read: then a jump of the sequence is a loss nobody has seen yet."""
        self._directory = directory / "journal"
        self._numbers = journal.segment_numbers(self._directory)
        for number in self._numbers:
            if number <= taken:
                # A crash came before it left the journal. Perhaps it was to be kept: it goes where nothing is deleted.
                self.ledger.grow(number, 0).kept = True
                continue
            self._segment(number)
            self.ledger.indexed.update(known(self.ledger.segments[-1].live))
        live = self.ledger.messages
        self.ledger.messages = dict(sorted(live.items(), key=lambda pair: pair[1].envelope.accepted_at))

    def _segment(self, number: int) -> None:
        segment = self.ledger.grow(number, 0)
        try:
            reader = SegmentReader(journal.segment_path(self._directory, number))
        except IrregularFileError:
            self._lose(segment, 0, 0, "not a regular file")
            return
        with reader:
            self.ledger.grow(number, reader.size)
            digest = Digest()
            before = len(self.losses)
            for part in reader.contents():
                if isinstance(part, Damage):
                    self._damage(segment, part, reader.end)
                elif not self._is_footer(part, digest, segment, sound=len(self.losses) == before):
                    digest.add(part.head, len(part.rows))
                    self._frame(segment, part, reader.end)
            segment.kept = reader.unreadable

    def _damage(self, segment: Segment, damage: Damage, end: int) -> None:
        torn = damage.end == end and segment.number == self._numbers[-1]
        self._lose(segment, damage.offset, damage.end - damage.offset, damage.reason, torn=torn)

    def _frame(self, segment: Segment, frame: Frame, end: int) -> None:
        if frame.end >= end and segment.number == self._numbers[-1] and not frame.intact:
            # Never acknowledged, so taken whole or not at all.
            self._lose(segment, frame.offset, frame.end - frame.offset, "unfinished batch", torn=True)
            return
        self._follow(segment, frame)
        for row in frame.rows:
            self._record(segment, row)

    def _follow(self, segment: Segment, frame: Frame) -> None:
        if self._following and frame.sequence > self.sequence:
            self._lose(segment, frame.offset, 0, "frames are missing before this one")
        self._following = True
        self.sequence = frame.sequence + 1

    def _is_footer(self, frame: Frame, digest: Digest, segment: Segment, *, sound: bool) -> bool:
        item = frame.rows[0].item if len(frame.rows) == 1 else None
        if item is None or item.kind != SEAL:
            return False
        self._follow(segment, frame)
        if sound and not digest.agrees(item):
            self._lose(segment, frame.offset, 0, "the footer tells of other frames")
        return True

    def _record(self, segment: Segment, row: Row) -> None:
        if row.item is None:
            self._lose(segment, row.offset, row.octets, "wrong checksum")
            return
        try:
            record = journal.decode(row.item, self._shard)
        except RecordError as error:
            self._lose(segment, row.offset, row.octets, f"not a record: {error}")
            return
        self.ledger.apply(record, segment, Place(segment.number, row.row, row.offset))
        _forget_body(self.ledger, record)

    def _lose(self, segment: Segment, offset: int, octets: int, reason: str, *, torn: bool = False) -> None:
        self._following = False
        self.losses.append(Loss(segment.number, offset, octets, reason, torn))


def _forget_body(ledger: Ledger, record: Record) -> None:
    """Bodies are read when they are needed: a queue of any size starts in the same memory."""
    if isinstance(record, Held):
        return
    accepted = record if isinstance(record, Accepted) else record.notification
    message = accepted and ledger.messages.get(accepted.envelope.id)
    if message and isinstance(message.body, bytes):
        message.body = None


def recover(directory: Path, shard: int, *, taken: int = 0, known: Known = nothing) -> Replay:
    """Replay a shard that is owned, and set aside what was lost; `losses` tells only of what was not yet set aside.

    OSError when the journal cannot be read, FormatError when it is newer: then nothing was changed.
    """
    for leftover in (directory / "journal").glob(f"*{journal.GONE}"):
        with contextlib.suppress(OSError):
            leftover.unlink()
    replay = Replay(directory, shard, taken=taken, known=known)
    quarantine = directory / "quarantine"
    replay.doubt = bool(replay.losses)
    segments = {segment.number: segment for segment in replay.ledger.segments}
    fresh = []
    for loss in replay.losses:
        if not (quarantine / loss.name).exists():
            fresh.append(loss)
            try:
                _set_aside(directory, loss)
            except OSError:
                # No room for the copy, or unreadable: then the segment itself is what is kept.
                segments[loss.segment].kept = True
                continue
        if loss.torn and not segments[loss.segment].kept:
            # Also where the copy is there already: a crash may have come between copying and cutting.
            _cut(directory, loss)
    replay.losses = fresh
    return replay


def shards(spool: Path) -> list[tuple[int, Path]]:
    """The shards that exist in a spool directory, by number; empty when there is none yet."""
    if not spool.is_dir():
        return []
    found = ((_SHARD.fullmatch(entry.name), entry) for entry in spool.iterdir())
    return sorted((int(match[1]), entry) for match, entry in found if match and (entry / "journal").is_dir())


def _set_aside(directory: Path, loss: Loss) -> None:
    """Copy the range into the quarantine, durably and whole or not at all; an irregular file goes there itself."""
    source = journal.segment_path(directory / "journal", loss.segment)
    target = directory / "quarantine" / loss.name
    try:
        reader = SegmentReader(source)
    except IrregularFileError:
        source.rename(target)
        sync_directory(target.parent)
        return
    partial = target.with_name(f"{loss.name}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with reader, open(os.open(partial, flags, 0o600), "wb", buffering=0) as copy:
        for offset in range(loss.offset, loss.offset + loss.octets, _COPY):
            write_all(copy.fileno(), [reader.read(offset, min(_COPY, loss.offset + loss.octets - offset))])
        os.fsync(copy.fileno())
    partial.rename(target)
    sync_directory(target.parent)


def _cut(directory: Path, loss: Loss) -> None:
    """End the segment before a torn tail that is safely set aside: no later start may find records in it."""
    with open(journal.segment_path(directory / "journal", loss.segment), "r+b", buffering=0) as segment:
        segment.truncate(loss.offset)
        os.fsync(segment.fileno())
