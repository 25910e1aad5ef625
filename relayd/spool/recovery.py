"""Files become messages again: replays a shard's journal and sets aside what cannot be read.

Never raises on content and never deletes an octet it does not understand (I7): damaged ranges are copied to
`quarantine/` and stay in their segment until everything else in it is done. `recover` is for the owner, at open;
`read_only` is for whoever only looks, beside a running server too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from relayd.spool import journal
from relayd.spool.journal import SEAL, Damage, Digest, Frame, IrregularFileError, RecordError, Row, SegmentReader
from relayd.spool.ledger import Ledger, Segment
from relayd.spool.store import Recovered
from relayd.spool.writer import sync_directory, write_all

_SHARD = re.compile(r"shard-(\d{2,4})", re.ASCII)
_COPY = 1 << 20
_LOOKS = 10
"""Times `read_only` begins anew because a segment was unlinked under it."""


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


class Replay:
    """A journal read from its first octet to its last, changing nothing.

    ledger: what it adds up to. losses: what could not be read, in order. sequence: the next frame's.
    Costs one pass over the files; memory: the live bodies and one frame. FormatError before anything is concluded.
    """

    def __init__(self, directory: Path, shard: int) -> None:
        self.ledger = Ledger()
        self.losses: list[Loss] = []
        self.sequence = 0
        self._shard = shard
        self._following = False
        """Whether the frame before this one was read: then a jump of the sequence is a loss nobody has seen yet."""
        self._directory = directory / "journal"
        self._numbers = journal.segment_numbers(self._directory)
        for number in self._numbers:
            self._segment(number)
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
                    self._damage(segment, part, reader.size)
                elif not self._is_footer(part, digest, segment, sound=len(self.losses) == before):
                    digest.add(part.head, len(part.rows))
                    self._frame(segment, part, reader.size)
            segment.kept = reader.unreadable

    def _damage(self, segment: Segment, damage: Damage, size: int) -> None:
        torn = damage.end == size and segment.number == self._numbers[-1]
        self._lose(segment, damage.offset, damage.end - damage.offset, damage.reason, torn=torn)

    def _frame(self, segment: Segment, frame: Frame, size: int) -> None:
        if frame.end == size and segment.number == self._numbers[-1] and not frame.intact:
            # Never acknowledged, so taken whole or not at all.
            self._lose(segment, frame.offset, size - frame.offset, "unfinished batch", torn=True)
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
        self.ledger.apply(record, row.item.octets, segment)

    def _lose(self, segment: Segment, offset: int, octets: int, reason: str, *, torn: bool = False) -> None:
        self._following = False
        self.losses.append(Loss(segment.number, offset, octets, reason, torn))


def recover(directory: Path, shard: int) -> Replay:
    """Replay a shard that is owned, and set aside what was lost; `losses` tells only of what was not yet set aside.

    OSError when the journal cannot be read, FormatError when it is newer: then nothing was changed.
    """
    replay = Replay(directory, shard)
    quarantine = directory / "quarantine"
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


def read_only(spool: Path) -> Recovered:
    """What every shard holds, oldest first, without lock or change. FormatError, OSError.

    Beside a running server the picture is of about now, and the batch being written counts as torn.
    """
    replays = [_look(directory, shard) for shard, directory in shards(spool)]
    messages = [message for replay in replays for message in replay.ledger.messages.values()]
    messages.sort(key=lambda message: message.envelope.accepted_at)
    losses = [loss for replay in replays for loss in replay.losses]
    torn = sum(loss.torn for loss in losses)
    return Recovered(messages, quarantined=len(losses) - torn, torn=torn)


def _look(directory: Path, shard: int) -> Replay:
    for _ in range(_LOOKS):
        try:
            return Replay(directory, shard)
        except FileNotFoundError:
            # Its messages were done or carried into a segment newer than the list: look again.
            continue
    return Replay(directory, shard)


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
