"""The connections of all processes that accept from the same sockets: what bounds them together, and shares them out.

A table in shared memory, a row for each process, written by that process alone: looked at for each connection, it costs
neither a message nor a lock. What is read of others may be a moment old. Made by the supervisor.

    table = key 16, row*      row = state 4, connections 4, cell 4 * 2 * 65,536

A client is counted in a cell of either half of a row, which a keyed digest tells, and has at most the smaller of both
(a count-min sketch: Cormode and Muthukrishnan, J. Algorithms 55, 2005). Of 2,000 clients one in a thousand finds both
of its cells taken by others; nobody who does not know the key can choose addresses to that end.
"""

from __future__ import annotations

import functools
import mmap
import os
import secrets
from array import array
from hashlib import blake2b

_STATE, _CONNECTIONS, _CELLS = 0, 1, 2
_STARTS, _ACCEPTS, _AWAY = 0, 1, 2  # a new table is zeros
_HALF = 65_536
_ROW = _CELLS + 2 * _HALF
_KEY = 16
_WORD = array("I").itemsize

KNOWN_CLIENTS = 4096
"""Clients whose cells are remembered."""


def table(processes: int) -> int:
    """The descriptor of a new table, for processes that are about to start. OSError."""
    descriptor = os.memfd_create("relayd-connections")
    os.ftruncate(descriptor, _KEY + processes * _ROW * _WORD)
    os.pwrite(descriptor, secrets.token_bytes(_KEY), 0)
    return descriptor


class Headcount:
    """One process's view of the table, and its own row. All is O(processes)."""

    def __init__(self, descriptor: int, process: int) -> None:
        """process: its place in the table. OSError."""
        octets = memoryview(mmap.mmap(descriptor, 0))
        key = bytes(octets[:_KEY])
        words = octets[_KEY:].cast("I")
        rows = [words[start : start + _ROW] for start in range(0, len(words), _ROW)]
        self._own = rows.pop(process)
        self._others = rows
        self._cells = functools.lru_cache(KNOWN_CLIENTS)(functools.partial(_cells, key))

    @classmethod
    def alone(cls) -> Headcount:
        """Of a process that shares its sockets with nobody."""
        descriptor = table(1)
        try:
            return cls(descriptor, 0)
        finally:
            os.close(descriptor)

    @property
    def awaits(self) -> bool:
        """Whether another one has still to accept for the first time."""
        return any(other[_STATE] == _STARTS for other in self._others)

    def open(self) -> None:
        """From now on connections may be left to this process."""
        self._own[_STATE] = _ACCEPTS

    def shut(self) -> None:
        """No more. Those it has still count."""
        self._own[_STATE] = _AWAY

    def count(self, client: str, change: int) -> None:
        """A connection more, or less; client: "" where it is of none that is bounded."""
        self._own[_CONNECTIONS] += change
        if client and self._others:
            for cell in self._cells(client):
                self._own[cell] += change

    def clear(self) -> None:
        """Of a process that has ended: it has no connections."""
        self._own[:] = array("I", bytes(_ROW * _WORD))
        self.shut()

    def elsewhere(self) -> int:
        """Connections of the others."""
        connections = 0
        for other in self._others:  # not by a generator, here and below: that costs as much as all the rest
            connections += other[_CONNECTIONS]
        return connections

    def of_elsewhere(self, client: str) -> int:
        """Connections of one client with the others: never fewer than there are, nearly always as many."""
        first, second = self._cells(client)
        return sum(min(other[first], other[second]) for other in self._others)

    def leaves(self) -> bool:
        """Whether another that accepts has clearly fewer: by a quarter, and by more than one."""
        own = self._own[_CONNECTIONS]
        most = own - own // 4 - 1
        for other in self._others:  # noqa: SIM110
            if other[_CONNECTIONS] < most and other[_STATE] == _ACCEPTS:
                return True
        return False


def _cells(key: bytes, client: str) -> tuple[int, int]:
    first, second = memoryview(blake2b(client.encode(), digest_size=4, key=key).digest()).cast("H")
    return _CELLS + first, _CELLS + _HALF + second
