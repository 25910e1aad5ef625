"""Ownership of a shard: one process at a time, and a number that grows with each owner."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from relayd import clock
from relayd.spool.store import StoreLockedError

_POLL = 0.05


class OwnerLock:
    """An flock on the shard's `lock` file, which holds the owner's epoch in digits; the kernel frees it with us."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    async def acquire(self, seconds: float) -> None:
        """Become the owner; wait that long for a dying predecessor, then StoreLockedError. OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        deadline = clock.monotonic() + seconds
        while not self._locked(self._descriptor):
            if clock.monotonic() >= deadline:
                self.release()
                raise StoreLockedError(f"{self._path.parent} belongs to another process")
            await asyncio.sleep(_POLL)

    def advance(self) -> int:
        """Count this owner: its epoch. An unreadable number begins anew; the flock alone keeps others out."""
        assert self._descriptor is not None, "the lock is held"
        digits = os.pread(self._descriptor, 20, 0).strip()
        epoch = int(digits) + 1 if digits.isdigit() else 1
        # Always as long: on a full disk a block that exists can still be written over.
        os.pwrite(self._descriptor, b"%019d\n" % min(epoch, 2**62), 0)
        return epoch

    def release(self) -> None:
        """Let the next owner in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _locked(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
