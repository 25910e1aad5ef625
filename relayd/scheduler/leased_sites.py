"""The sites of one of several workers: each has the connections, and the share of a pace, that the broker gives it.

Owns what the worker has to tell the broker, and when a site is looked at for that. Knows no messages but those of
`lease_messages`, and not how they travel; the dispatcher carries them.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from relayd.message.site import Site
from relayd.scheduler.classes import Interactive
from relayd.scheduler.entry import Entry
from relayd.scheduler.lease import Lease
from relayd.scheduler.lease_messages import Grant, Pace, Recall, Reply, Request, Want
from relayd.scheduler.limits import Limits
from relayd.scheduler.rate import NEVER
from relayd.scheduler.site_queue import SiteQueue
from relayd.scheduler.sites import Sites


class LeasedSites(Sites):
    """As `Sites`, with a `Lease` for each window.

    Invariants: a lease is remembered exactly while it is not void; `requests` is called after anything else was, before
    somebody waits. No question is asked for a message: only for connections that are missing, a share that ends, and by
    way of report. All is O(1) for each site that something happened at, O(log n) with n sites that wait for a time.
    """

    def __init__(self, interactive: Interactive) -> None:
        super().__init__(interactive, self._leased)
        self._leases: dict[Site, Lease] = {}
        self._stirred: dict[Lease, None] = {}
        self._looks: list[tuple[float, int, Lease]] = []
        self._numbers = itertools.count()
        self._unwanted: list[Request] = []
        """What came though nothing was wanted any more, and goes back."""

    def __len__(self) -> int:
        return super().__len__() + len(self._leases) + len(self._looks)

    # --- the dispatcher's side --------------------------------------------------------------------------------------

    @property
    def stirred(self) -> bool:
        """Whether `surplus` and `requests` may have something to say."""
        return bool(self._stirred or self._unwanted)

    def held(self, site: Site) -> int:
        """Connections to the site that there may be."""
        lease = self._leases.get(site)
        return 0 if lease is None else lease.held

    def opened(self, site: Site, connections: int) -> None:
        """So many there are now: those being dialled, idle or closing, too."""
        lease = self._leases.get(site)
        if lease is not None:
            lease.open = connections
            self._stirred[lease] = None

    def surplus(self) -> Iterator[tuple[Site, int]]:
        """Sites with more connections than are theirs for much longer, and how many idle ones each may keep."""
        for lease in self._stirred:
            if lease.open > lease.size:
                queue = self._queue(lease)
                yield lease.site, max(0, lease.size - (queue.busy if queue else 0))

    def requests(self, now: float, idle: Callable[[Site], int], *, starts: bool = True) -> list[Request]:
        """What the broker is to be told; once. idle: connections of a site that nobody uses.

        starts: whether what waits will start when it may.
        """
        told, self._unwanted = self._unwanted, []
        while self._stirred:
            lease, _ = self._stirred.popitem()
            queue = self._queue(lease)
            if queue is None:
                told += lease.settle(0, idle(lease.site), now, waits=False, blocked=False, keeps=starts)
            else:
                waits = starts and queue.due <= now
                blocked = waits and queue.opens == NEVER
                keeps = starts and queue.outage is None
                told += lease.settle(queue.busy, idle(lease.site), now, waits=waits, blocked=blocked, keeps=keeps)
                told += self._pace(queue, lease, now)
            if lease.spare < lease.look:
                self._look(lease, lease.spare)
            if lease.is_void:
                self._leases.pop(lease.site, None)
            else:
                self._leases[lease.site] = lease
        return told

    def receive(self, reply: Reply, now: float) -> None:
        """What the broker says of a site."""
        lease = self._leases.get(reply.site)
        if lease is None:
            if isinstance(reply, Grant) and reply.more:
                # It crossed the message that nothing is wanted any more.
                self._unwanted.append(Want(reply.site, 0, returned=reply.more))
            return
        queue = self._queue(lease)
        if isinstance(reply, Grant):
            lease.granted(reply.more, shared=reply.shared)
        elif isinstance(reply, Recall):
            lease.recalled(reply.connections)
        else:
            lease.asked = False
            lease.renews = (now + reply.until) / 2
            if queue is not None and queue.limits is not None:
                queue.limits.rate.share(reply.per_second, reply.until, now)
        if queue is not None and queue.entries:
            self._place(queue, now)
        self._stirred[lease] = None

    # --- as Sites ---------------------------------------------------------------------------------------------------

    def take(self, now: float, site: Site | None = None) -> tuple[Site, Entry] | None:
        """See `Sites.take`. Nothing starts on a share that has ended."""
        while (queue := self._front() if site is None else self._queues.get(site)) is not None:
            if queue.limits is None or now < queue.limits.rate.until:
                break
            queue.limits.rate.lapse()
            self._place(queue, now)
        return super().take(now, site)

    def shares(self, site: Site) -> bool:
        """Whether there are other connections to the site than that of one slot."""
        lease = self._leases.get(site)
        return super().shares(site) or (lease is not None and lease.shared)

    @property
    def next(self) -> float | None:
        """When a site has to be looked at again; perhaps in vain."""
        opens = super().next
        if not self._looks:
            return opens
        return self._looks[0][0] if opens is None else min(opens, self._looks[0][0])

    def advance(self, now: float) -> None:
        """Look at the sites whose time has come, forget idle ones."""
        super().advance(now)
        looks = self._looks
        while looks and looks[0][0] <= now:
            at, _, lease = heapq.heappop(looks)
            if at == lease.look:
                lease.look = NEVER
                self._stirred[lease] = None

    # --- parts ------------------------------------------------------------------------------------------------------

    def _front(self) -> SiteQueue | None:
        return next(iter(self._rotation), None)

    def _queue(self, lease: Lease) -> SiteQueue | None:
        """The queue of a lease; one that was forgotten is none of it."""
        return self._queues.get(lease.site)

    def _leased(self, site: Site, now: float) -> Limits:
        lease = self._leases.get(site)
        if lease is None:
            lease = self._leases[site] = Lease(site)
        return Limits(site.terms, now, lease)

    def _place(self, queue: SiteQueue, now: float) -> None:
        super()._place(queue, now)
        self._stir(queue, now)

    def _empty(self, queue: SiteQueue, now: float) -> None:
        super()._empty(queue, now)
        self._stir(queue, now)

    def _stir(self, queue: SiteQueue, now: float) -> None:
        lease = _lease(queue)
        if lease.is_settled(waits=bool(queue.entries)):
            return  # by far most of the time
        self._stirred[lease] = None
        due = queue.due
        if now < due < lease.look and queue.opens == NEVER:
            self._look(lease, due)  # to ask for a connection then

    def _look(self, lease: Lease, at: float) -> None:
        lease.look = at
        heapq.heappush(self._looks, (at, next(self._numbers), lease))

    def _pace(self, queue: SiteQueue, lease: Lease, now: float) -> list[Request]:
        """Ask for a share of the pace, or for more of it, before it ends."""
        assert queue.limits is not None
        rate = queue.limits.rate
        if not queue.site.terms.messages_per_second or lease.asked:
            return []
        if not queue.entries and (rate.lapsed or rate.next <= now):
            return []
        if rate.lapsed or now >= lease.renews:
            lease.asked = True
            return [Pace(queue.site)]
        if lease.renews < lease.look:
            self._look(lease, lease.renews)
        return []


def _lease(queue: SiteQueue) -> Lease:
    assert queue.limits is not None
    window = queue.limits.window
    assert isinstance(window, Lease)
    return window
