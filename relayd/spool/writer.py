"""The blocking half of a shard: one segment open for appending, its rotation, and the reserve for a full disk.

Called from the shard's own thread only, never from the event loop. Knows frames and files, not messages. An OSError
out of `append` means that nothing of the batch counts; the descriptor it happened on is gone by then (I5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from relayd import clock
from relayd.spool import disk, journal
from relayd.spool.disk import sync_directory, write_all
from relayd.spool.journal import ACCEPTED, HEAD, HEADER, Digest, Item

RESERVE = 4 * 1024**2
"""Octets kept allocated so that outcomes can be recorded on a full disk: some 20,000 of them."""

RESERVE_INTERVAL = 10.0
"""Seconds between attempts to allocate the reserve again."""

ROOM = bytes(512 * 1024)
"""Zeros, written where the next frames will stand: a sync costs half when it changes data alone, neither the file's
length nor its blocks (docs/decisions/0023). A frame of a quarter of that, or more, is not worth writing it twice."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Position(NamedTuple):
    """Where a batch went: its segment, that segment's octets since, and the offset of the batch's frame."""

    segment: int
    octets: int
    offset: int


def make_directories(shard: Path) -> None:
    """Make what a shard needs, durably."""
    shard.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in (shard, shard / "bodies", shard / "journal", shard / "quarantine"):
        directory.mkdir(mode=0o700, exist_ok=True)
    # Also where they exist: a crash may have come between making and syncing.
    for directory in (shard, shard.parent):
        sync_directory(directory)


class Segment:
    """A new segment, open for appending; durable, with its directory entry, once constructed."""

    def __init__(self, directory: Path, number: int, *, sequence: int, epoch: int) -> None:
        self.number = number
        self.sequence = sequence
        self.octets = HEADER
        self._room = HEADER
        """Where what was written ends, zeros included."""
        self._salt = secrets.randbits(64)
        self._digest = Digest()
        path = journal.segment_path(directory, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        try:
            write_all(self._descriptor, [journal.file_header(self._salt, epoch)])
            os.fsync(self._descriptor)
            sync_directory(directory)
        except BaseException:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)  # nothing but a header is in it
            raise

    def append(self, items: Sequence[Item], *, limit: int) -> bool:
        """Make a frame of the items durable; with the footer behind it, and True, where the segment has `limit` octets.

        OSError: nothing of it counts, the segment ends where it was durable and is closed.
        """
        digest = Digest()
        digest.records, digest.crc = self._digest.records, self._digest.crc
        buffers = self._frame(items, digest, self.sequence, self.octets)
        octets = _octets(buffers)
        sealed = self.octets + octets >= limit
        if sealed:
            footer = self._frame([digest.seal()], digest, self.sequence + 1, self.octets + octets)
            buffers += footer
            octets += _octets(footer)
        try:
            if sealed:
                os.ftruncate(self._descriptor, self.octets)
            else:
                self._make_room(octets)
            write_all(self._descriptor, buffers)
            os.fdatasync(self._descriptor)
        except BaseException:
            self._abandon()
            raise
        self._digest = digest
        self.sequence += 2 if sealed else 1
        self.octets += octets
        return sealed

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        os.close(self._descriptor)

    def _make_room(self, octets: int) -> None:
        """Write zeros ahead of a frame that ends behind them. OSError, and the frame would have met the same."""
        if self.octets + octets > self._room and octets * 4 < len(ROOM):
            start = max(self._room, self.octets)
            self._room = start + os.pwrite(self._descriptor, ROOM, start)

    def _frame(self, items: Sequence[Item], digest: Digest, sequence: int, offset: int) -> list[bytes]:
        buffers = journal.frame(items, salt=self._salt, sequence=sequence, offset=offset)
        digest.add(buffers[0][:HEAD], len(items))
        return buffers

    def _abandon(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.octets)
        except OSError:
            # The tail stays: recovery finds it whole (I3 allows that) or sets it aside.
            pass
        finally:
            os.close(self._descriptor)


class Reserve:
    """A preallocated file, given up when outcomes meet a full disk and allocated again when there is room."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = path.exists()
        self._next = 0.0

    def release(self) -> None:
        """Make room."""
        self._path.unlink(missing_ok=True)
        self._held = False
        self._next = clock.monotonic() + RESERVE_INTERVAL

    def restore(self) -> None:
        """Allocate the file when it is missing, at most every RESERVE_INTERVAL, and only out of plenty."""
        if self._held or clock.monotonic() < self._next:
            return
        self._next = clock.monotonic() + RESERVE_INTERVAL
        try:
            status = os.statvfs(self._path.parent)
            if status.f_bavail * status.f_frsize >= 2 * RESERVE:
                self._allocate()
        except OSError:
            # Without room for it (a quota, say) there is none to reserve: the next interval tries again.
            self._path.unlink(missing_ok=True)

    def _allocate(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE)
        finally:
            os.close(descriptor)
        self._held = True


class Writer:
    """Appends batches to the newest segment and begins new ones.

    number: the highest segment in use; appending begins in a new one. sequence: the next frame's. limit: octets after
    which a segment is sealed.
    """

    def __init__(self, directory: Path, *, number: int, sequence: int, epoch: int, limit: int) -> None:
        self._directory = directory / "journal"
        self._number = number
        self._sequence = sequence
        self._epoch = epoch
        self._limit = limit
        self._segment: Segment | None = None
        self._reserve = Reserve(directory / "reserve")
        self._reserve.restore()

    def append(self, items: Sequence[Item]) -> Position:
        """Make one batch durable: one writev, one fdatasync; OSError when it is not. Costs O(octets)."""
        try:
            segment = self._segment or self._begin()
            offset = segment.octets
            self._append(segment, items, limit=self._limit)
        except OSError as error:
            if error.errno in _NO_SPACE and not any(item.kind == ACCEPTED for item in items):
                self._reserve.release()
            raise
        self._reserve.restore()
        return Position(segment.number, segment.octets, offset)

    def rotate(self) -> Position:
        """Seal the open segment and begin the next, so that an empty queue leaves a small file; OSError."""
        if self._segment is not None:
            self._append(self._segment, (), limit=0)
        segment = self._begin()
        return Position(segment.number, segment.octets, segment.octets)

    def remove(self, number: int, *, keep: bool, pause: float) -> None:
        """Remove a segment that nothing needs, or put it into the quarantine as it is; OSError: call it again.

        Called from another thread, beside commits, which have `pause` seconds now and then. It leaves the journal for
        good before a part of it goes, and before a later segment does.
        """
        path = journal.segment_path(self._directory, number)
        if keep:
            path.rename(self._directory.parent / "quarantine" / path.name)
            return
        gone = path.with_suffix(journal.GONE)
        with contextlib.suppress(FileNotFoundError):
            path.rename(gone)
        sync_directory(self._directory)
        with contextlib.suppress(FileNotFoundError):
            disk.remove(gone, pause=pause)

    def close(self) -> None:
        """Seal and close; OSError when the footer could not be written, which costs nothing else."""
        if self._segment is not None:
            self._append(self._segment, (), limit=0)

    def _begin(self) -> Segment:
        self._number += 1
        self._segment = Segment(self._directory, self._number, sequence=self._sequence, epoch=self._epoch)
        return self._segment

    def _append(self, segment: Segment, items: Sequence[Item], *, limit: int) -> None:
        # Whatever happens to a sealed or failed segment, nothing is appended to it again.
        self._segment = None
        sealed = segment.append(items, limit=limit)
        self._sequence = segment.sequence
        if sealed:
            segment.close()
        else:
            self._segment = segment


def _octets(buffers: Sequence[bytes]) -> int:
    return sum(map(len, buffers))
