"""Calls on files that the spool is made of: all of it written, its name in the directory too, and gone without a stir.

Blocking: called from threads, never from the event loop. Knows neither journal nor bodies.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

STEP = 1 << 19
"""Octets a file is shortened by at a time. To free 16 MB at once held up each sync on an ext4 for 50 ms."""

_IOV_MAX = os.sysconf("SC_IOV_MAX")


def sync_directory(directory: Path) -> None:
    """Make the entries of a directory durable: a file that is on disk but in no directory is lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Write every octet of the buffers (none is empty), however short the writes turn out."""
    waiting = list(buffers)
    while waiting:
        given, waiting = waiting[:_IOV_MAX], waiting[_IOV_MAX:]
        left = sum(map(len, given)) - os.writev(descriptor, given)
        if left:
            waiting.insert(0, memoryview(b"".join(given))[-left:])


def remove(path: Path | str, *, directory: int | None = None, pause: float = 0.0) -> None:
    """Unlink a file, a large one by and by, so that who syncs others meanwhile does not wait. OSError.

    directory: a descriptor, when `path` is a name in it. pause: seconds between two steps, for the others' syncs.
    Whoever still reads the file finds it shortened.
    """
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # What is no file of its own, or cannot be opened, is just unlinked.
    with contextlib.suppress(OSError), open(os.open(path, flags, dir_fd=directory), "wb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            for end in range((status.st_size - 1) // STEP * STEP, 0, -STEP):
                file.truncate(end)
                time.sleep(pause)
    os.unlink(path, dir_fd=directory)
