"""How many connections each site has, and who waits to open one.

Owns the counting alone: how many there may be is asked each time. `connector` takes a place before it dials, and gives
it back when the transport is gone.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from relayd.message.site import Site


class Places:
    """Invariant: a site has no more places taken than it may have, but while that becomes less. All is O(1)."""

    def __init__(self) -> None:
        self.most: Callable[[Site], int] = lambda site: site.terms.connections
        """How many places a site may have; who makes that more calls `widen`."""
        self.changed: Callable[[Site, int], None] = lambda _site, _taken: None
        """Told how many are taken, each time."""
        self._taken: dict[Site, int] = {}
        self._awaited: weakref.WeakValueDictionary[Site, asyncio.Event] = weakref.WeakValueDictionary()

    async def take(self, site: Site) -> None:
        """Wait for a place."""
        while (taken := self._taken.get(site, 0)) >= self.most(site):
            await self._awaited.setdefault(site, asyncio.Event()).wait()
        self._count(site, taken + 1)

    def give_back(self, site: Site) -> None:
        """A place that was taken is free."""
        self._count(site, self._taken[site] - 1)
        self.widen(site)

    def widen(self, site: Site) -> None:
        """There may be a place now for those that wait."""
        awaited = self._awaited.pop(site, None)
        if awaited is not None:
            awaited.set()

    def _count(self, site: Site, taken: int) -> None:
        if taken:
            self._taken[site] = taken
        else:
            del self._taken[site]
        self.changed(site, taken)
