"""A file system of a few megabytes or inodes, and what uses them up.

A tmpfs of its own, so that nobody else's files or full disks are in it. Needs root; tests skip without. Knows nothing
of mail.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system. `fill` and `crowd` use up octets and inodes, `clear` gives them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        """Take all free octets but so many."""
        with self._filler.open("ab", buffering=0) as file:
            while (free := self._free()) > leave:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(free - leave, 1 << 20))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def crowd(self, leave: int = 0) -> None:
        """Take all free inodes but so many."""
        self._filler.mkdir(exist_ok=True)
        for number in range(max(0, os.statvfs(self.path).f_favail - leave)):
            (self._filler / str(number)).touch()

    def clear(self) -> None:
        """Give back what was taken."""
        if self._filler.is_dir():
            for path in self._filler.iterdir():
                path.unlink()
            self._filler.rmdir()
        else:
            self._filler.unlink()

    def _free(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[SmallDisk]:
    """A tmpfs with these mount options, such as "size=24m"; unmounted afterwards, whatever is still open on it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system may not be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
