"""Connections shared out among the processes that accept from the same sockets: who has clearly more leaves the next.

A table in shared memory, a number for each process, written by that process alone: looked at for each connection, it
costs neither a message nor a lock. What is read may be a moment old. Made by the supervisor, used by acceptors.
"""

from __future__ import annotations

import mmap
import os
from array import array

_AWAY = 2**32 - 1


def table(processes: int) -> int:
    """The descriptor of a new table, for processes that are all away. OSError."""
    descriptor = os.memfd_create("relayd-connections")
    os.write(descriptor, array("I", [_AWAY] * processes))
    return descriptor


class Balance:
    """One process's view of the table. All is O(processes)."""

    def __init__(self, descriptor: int, process: int) -> None:
        """process: its place in the table. OSError."""
        self._counts = memoryview(mmap.mmap(descriptor, 0)).cast("I")
        self._process = process

    def has(self, connections: int) -> None:
        """So many are open here."""
        self._counts[self._process] = connections

    def away(self) -> None:
        """Nobody is to leave anything to this process: it accepts no more."""
        self._counts[self._process] = _AWAY

    def leaves(self) -> bool:
        """Whether another process has clearly fewer: by a quarter, and by more than one."""
        own = self._counts[self._process]
        return own > min(self._counts) + 1 + own // 4
