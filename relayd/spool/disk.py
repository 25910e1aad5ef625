"""Two calls on files that everything durable is made of: all of it written, and its name in the directory, too.

Blocking: called from threads, never from the event loop. Knows neither journal nor bodies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
    start = 0
    while start < len(waiting):
        written = os.writev(descriptor, waiting[start : start + _IOV_MAX])
        while start < len(waiting) and written >= len(waiting[start]):
            written -= len(waiting[start])
            start += 1
        if written:
            waiting[start] = memoryview(waiting[start])[written:]
