"""Whether the spool's disks have room for more mail: free octets and free inodes above what is kept in reserve.

Asked before a message is taken; knows nothing of what is written. Made by service, held by `queue`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from relayd import clock

INTERVAL = 1.0
"""Seconds for which an answer holds."""

INODE_RESERVE = 1000
"""Free inodes below which no mail is taken; a segment needs one, a large body another."""


class Space:
    """The disks under some directories; none of them: always room. reserve: octets kept free on each."""

    def __init__(self, directories: Sequence[Path], reserve: int) -> None:
        self._directories = tuple(directories)
        self._reserve = reserve
        self._known_until = 0.0
        self._enough = True

    def enough(self) -> bool:
        """Whether mail may be taken. O(1), and a system call for each directory once in INTERVAL."""
        now = clock.monotonic()
        if now >= self._known_until:
            self._known_until = now + INTERVAL
            self._enough = all(_has_space(directory, self._reserve) for directory in self._directories)
        return self._enough


def _has_space(directory: Path, reserve: int) -> bool:
    try:
        status = os.statvfs(directory)
    except OSError:
        # A disk that does not say is not one to take mail for (I4).
        return False
    # Some file systems make inodes as they go and report none at all.
    inodes = not status.f_files or status.f_favail >= INODE_RESERVE
    return inodes and status.f_bavail * status.f_frsize >= reserve
