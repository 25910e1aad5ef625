"""Which site a domain's mail goes to, and until when that holds.

Owns the bindings and their end. Knows domains and sites, not what waits for them; the scheduler calls it.
"""

from __future__ import annotations

import heapq

from relayd.message.site import Site

MAX_BINDINGS = 100_000
"""Bindings kept; beyond, those that end first are forgotten and their domains are asked for again when needed."""


class Bindings:
    """Domains and their sites. of is O(1), put and forget O(log n) for each binding that comes or goes."""

    __slots__ = ("_expiries", "_sites")

    def __init__(self) -> None:
        self._sites: dict[str, tuple[Site, float]] = {}
        self._expiries: list[tuple[float, str]] = []  # heap of (until, domain)

    def __len__(self) -> int:
        return len(self._sites) + len(self._expiries)

    def put(self, domain: str, site: Site, until: float) -> None:
        """The domain's mail goes to the site until then."""
        self._sites[domain] = (site, until)
        heapq.heappush(self._expiries, (until, domain))

    def of(self, domain: str, now: float) -> Site | None:
        """Where it goes now; None when that has to be asked."""
        binding = self._sites.get(domain)
        return binding[0] if binding is not None and now < binding[1] else None

    def last(self, domain: str) -> Site | None:
        """Where it went last, if that is remembered."""
        binding = self._sites.get(domain)
        return binding[0] if binding else None

    def forget(self, now: float) -> None:
        """Forget what has ended, and what is too much."""
        expiries = self._expiries
        while expiries and (expiries[0][0] <= now or len(expiries) > MAX_BINDINGS):
            until, domain = heapq.heappop(expiries)
            binding = self._sites.get(domain)
            if binding is not None and binding[1] <= until:
                del self._sites[domain]
