"""To which site a way leads, and until when that holds.

Owns the bindings and their end. Knows ways and sites, not what waits for them; the scheduler calls it.
"""

from __future__ import annotations

import heapq
import math

from relayd.message.site import Site, Way

MAX_BINDINGS = 100_000
"""Bindings kept; beyond, those that end first are forgotten and their ways are asked for again when needed."""

GRAIN = 10.0
"""Seconds by which one may be kept for longer than it holds: those that end between two multiples go together."""


class Bindings:
    """Ways and their sites. Each operation is O(1); forget O(bindings that go)."""

    __slots__ = ("_ending", "_order", "_sites")

    def __init__(self) -> None:
        self._sites: dict[Way, tuple[Site, float]] = {}
        self._ending: dict[float, list[Way]] = {}
        """Ways by the multiple of GRAIN after their binding's end; again for each time that a way was bound."""
        self._order: list[float] = []
        """Heap of those multiples."""

    def __len__(self) -> int:
        return len(self._sites) + len(self._order)

    def put(self, way: Way, site: Site, until: float) -> None:
        """The way leads to the site until then."""
        self._sites[way] = (site, until)
        end = until if until == math.inf else until - until % GRAIN + GRAIN
        ways = self._ending.get(end)
        if ways is None:
            ways = self._ending[end] = []
            heapq.heappush(self._order, end)
        ways.append(way)

    def of(self, way: Way, now: float) -> Site | None:
        """Where it leads now; None when that has to be asked."""
        binding = self._sites.get(way)
        return binding[0] if binding is not None and now < binding[1] else None

    def last(self, way: Way) -> Site | None:
        """Where it led last, if that is remembered."""
        binding = self._sites.get(way)
        return binding[0] if binding else None

    def forget(self, now: float) -> None:
        """Forget what has ended, and what is too much."""
        while self._order:
            end = self._order[0]
            ended, ways = end <= now, self._ending[end]
            while ways and (ended or len(self._sites) > MAX_BINDINGS):
                way = ways.pop()
                binding = self._sites.get(way)
                if binding is not None and binding[1] <= end:
                    del self._sites[way]
            if ways:
                return
            del self._ending[heapq.heappop(self._order)]
