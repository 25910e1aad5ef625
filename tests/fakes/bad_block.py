"""A block of a file that the disk refuses to read, for a while or for good. Knows nothing of the spool."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

BLOCK = 4096


class BadBlock:
    """The block at `offset` is refused `times` times, by `os.pread` of this process. refused: how often it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, offset: int, times: float) -> None:
        self.refused = 0
        inode, block, real = path.stat().st_ino, offset // BLOCK * BLOCK, os.pread

        def pread(descriptor: int, octets: int, start: int) -> bytes:
            if start < block + BLOCK and start + octets > block and os.fstat(descriptor).st_ino == inode:
                self.refused += octets <= BLOCK  # it is asked for with what is behind it, and then alone
                if self.refused <= times:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, octets, start)

        monkeypatch.setattr(os, "pread", pread)
