"""Entries that wait for their time, the first one first; some may have been withdrawn since.

Owns the heap and when it is made anew. Knows no states but one; the scheduler calls it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container

from relayd.message.site import Way
from relayd.scheduler.census import DEFERRED
from relayd.scheduler.entry import Entry

DEAD_ENTRIES = 1000
"""Withdrawn entries that may stand in the heap beyond half of it before it is made anew."""


class Deferred:
    """A heap by due time; equal times keep their order.

    Invariant: an entry counts exactly while its state is DEFERRED; `withdrawn` tells of each that it no longer is, and
    was not popped. push and pop are O(log n), withdrawn O(1) on average.
    """

    __slots__ = ("_dead", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._sequence = itertools.count()
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float | None:
        """When the first is due, or a withdrawn one would have been."""
        return self._heap[0][0] if self._heap else None

    def push(self, entry: Entry) -> None:
        """Add an entry, at its due time."""
        heapq.heappush(self._heap, (entry.due, next(self._sequence), entry))

    def pop(self) -> Entry | None:
        """Take the first; None when it was withdrawn."""
        entry = heapq.heappop(self._heap)[2]
        if entry.state == DEFERRED:
            return entry
        self._dead -= 1
        return None

    def stalled(self, ways: Container[Way]) -> list[Entry]:
        """Those of these ways that wait for their sites to be reached, the oldest message first. O(all)."""
        entries = (entry for _, _, entry in self._heap if entry.stalled and entry.state == DEFERRED)
        return sorted((entry for entry in entries if entry.way in ways), key=lambda entry: entry.message.accepted_at)

    def withdrawn(self) -> None:
        """An entry in here has left the state."""
        self._dead += 1
        if self._dead > len(self._heap) // 2 + DEAD_ENTRIES:
            self._heap = [item for item in self._heap if item[2].state == DEFERRED]
            heapq.heapify(self._heap)
            self._dead = 0
