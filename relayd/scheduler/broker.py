"""What must hold for the whole machine, where several workers carry its mail: connections to a site, and its pace.

Owns the windows of sites and the promises made to workers. Knows no mail, and not how messages travel: whoever has the
workers hands over what they say, with monotonic seconds, and hands out what is returned.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable

from relayd.message.site import Site
from relayd.scheduler.division import Division
from relayd.scheduler.lease_messages import Pace, Reply, Request, Share
from relayd.scheduler.rate import NEVER
from relayd.scheduler.sites import MAX_IDLE, MEMORY

TURN = 2.0
"""Seconds after which workers without a connection get one of another's, where there are fewer than workers want."""

Replies = list[tuple[int, Reply]]
"""By the worker they are for, in the order in which they are to be sent."""


class Broker:
    """Divisions by site.

    Invariants: what all workers hold of a site is no more than its window, but right after that became smaller; what
    they may send by its configured pace adds up to that at most. A site that nobody holds or wants is forgotten; what
    it has shown is kept for MEMORY, of MAX_IDLE sites. receive is O(W log W) for each message with W workers, and
    O(log sites that wait for a time); gone is O(sites).
    """

    def __init__(self) -> None:
        self._divisions: dict[Site, Division] = {}
        self._looks: list[tuple[float, int, Division]] = []
        self._numbers = itertools.count()
        self._idle: OrderedDict[Division, float] = OrderedDict()  # and until when it is remembered

    @property
    def size(self) -> int:
        """Things remembered. Zero an hour after all has ended."""
        return len(self._divisions) + len(self._looks)

    @property
    def next(self) -> float | None:
        """When to call `advance` again, None for not at all; any call may bring it nearer."""
        times = [at for at, _, _ in self._looks[:1]]
        times += itertools.islice(self._idle.values(), 1)
        return min(times, default=None)

    def receive(self, worker: int, requests: Iterable[Request], now: float) -> Replies:
        """What a worker says, in the order in which it was said; what workers are to be told."""
        touched: dict[Division, None] = {}
        for said in requests:
            division = self._divisions.get(said.site)
            if division is None:
                division = self._divisions[said.site] = Division(said.site)
            touched[division] = None
            if not isinstance(said, Pace):
                division.hear(worker, said, now)
            elif division.shares is not None:
                division.shares.ask(worker)
        return [reply for division in touched for reply in self._settle(division, now)]

    def gone(self, worker: int, now: float) -> Replies:
        """A worker has ended: what it held is free. Another may be called by its number then."""
        replies = []
        for division in [*self._divisions.values()]:
            division.gone(worker)
            replies += self._settle(division, now)
        return replies

    def advance(self, now: float) -> Replies:
        """Give turns, shares that others had for too long, and forget what is idle."""
        replies = []
        while self._looks and self._looks[0][0] <= now:
            at, _, division = heapq.heappop(self._looks)
            if at != division.look:
                continue
            division.look = NEVER
            if division.turn <= now:
                division.turn = NEVER
                division.rotate()
            replies += self._settle(division, now)
        while self._idle and (len(self._idle) > MAX_IDLE or next(iter(self._idle.values())) <= now):
            division, _ = self._idle.popitem(last=False)
            del self._divisions[division.site]
        return replies

    def _settle(self, division: Division, now: float) -> Replies:
        replies: Replies = [*division.settle()]
        look = NEVER
        if division.starves:
            look = division.turn = min(division.turn, now + TURN)
        else:
            division.turn = NEVER
        if shares := division.shares:
            replies += [(worker, Share(division.site, rate, until)) for worker, rate, until in shares.give(now)]
            look = min(look, shares.next or NEVER)
        if look < division.look:
            division.look = look
            heapq.heappush(self._looks, (look, next(self._numbers), division))
        self._keep(division, now)
        return replies

    def _keep(self, division: Division, now: float) -> None:
        """As long as it is needed, and what it has shown for a while."""
        if not division.is_idle:
            self._idle.pop(division, None)
        elif not division.window.is_blank:
            self._idle.setdefault(division, now + MEMORY)
        elif self._divisions.pop(division.site, None):
            division.look = NEVER
