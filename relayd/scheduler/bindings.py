"""To which site a way leads, and until when that holds.

Owns the bindings and their end. Knows ways and sites, not what waits for them; the scheduler calls it.
"""

from __future__ import annotations

import heapq
import itertools

from relayd.message.site import Site, Way

MAX_BINDINGS = 100_000
"""Bindings kept; beyond, those that end first are forgotten and their ways are asked for again when needed."""


class Bindings:
    """Ways and their sites. of is O(1), put and forget O(log n) for each binding that comes or goes."""

    __slots__ = ("_expiries", "_sequence", "_sites")

    def __init__(self) -> None:
        self._sites: dict[Way, tuple[Site, float]] = {}
        self._expiries: list[tuple[float, int, Way]] = []  # heap of (until, a number of its own, way)
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return len(self._sites) + len(self._expiries)

    def put(self, way: Way, site: Site, until: float) -> None:
        """The way leads to the site until then."""
        self._sites[way] = (site, until)
        heapq.heappush(self._expiries, (until, next(self._sequence), way))

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
        expiries = self._expiries
        while expiries and (expiries[0][0] <= now or len(expiries) > MAX_BINDINGS):
            until, _, way = heapq.heappop(expiries)
            binding = self._sites.get(way)
            if binding is not None and binding[1] <= until:
                del self._sites[way]
