"""A worker's dealings with the machine's broker: what is granted goes to the sites, what they need goes to the broker.

Owns when the broker is told something, and that connections others need are closed. Decides nothing: `leased_sites`
does. The dispatcher calls it after whatever may have changed something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relayd import clock
from relayd.message.site import Site
from relayd.outbound.places import Places
from relayd.outbound.pool import Pool
from relayd.scheduler.lease_messages import AT_ONCE, Reply, Request
from relayd.scheduler.leased_sites import LeasedSites

AskBroker = Callable[[Sequence[Request]], None]
"""Sends to the broker, in order; returns at once."""


class Leasing:
    """Invariant: a site has no more connections than are leased for it. O(sites at which something happened)."""

    def __init__(
        self, sites: LeasedSites, pool: Pool, places: Places, ask_broker: AskBroker, wake: Callable[[], None]
    ) -> None:
        """wake: calls `settle`, now and when a site is to be looked at next."""
        self._sites = sites
        self._pool = pool
        self._places = places
        self._ask_broker = ask_broker
        self._wake = wake
        self.starts = True
        """Whether what waits will start when it may: not while draining."""
        places.most = sites.held
        places.changed = self._counted

    def receive(self, replies: Sequence[Reply]) -> None:
        """What the broker says; work that may start for it is the dispatcher's to start, before `settle`."""
        now = clock.monotonic()
        for reply in replies:
            self._sites.receive(reply, now)
            self._places.widen(reply.site)

    def settle(self) -> None:
        """Close what others need, tell the broker what has changed."""
        if not self._sites.stirred:
            return
        for site, keep in [*self._sites.surplus()]:
            self._pool.shed(site, keep)
        requests = self._sites.requests(clock.monotonic(), self._pool.idle, starts=self.starts)
        for start in range(0, len(requests), AT_ONCE):
            self._ask_broker(requests[start : start + AT_ONCE])

    def _counted(self, site: Site, connections: int) -> None:
        """So many connections to a site there are now."""
        self._sites.opened(site, connections)
        self._wake()
