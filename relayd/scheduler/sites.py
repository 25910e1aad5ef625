"""The sites that take turns: each with what waits for it, in the rotation while it may start something.

Owns the rotation, the sites that wait for a time of theirs, and what is remembered of idle ones. Knows entries only as
what a site's queue holds; the scheduler, which knows their states, is its only caller.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator

from relayd.message.site import Site
from relayd.scheduler.classes import ClassQueue, Interactive
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import Change, Report
from relayd.scheduler.limits import Limits
from relayd.scheduler.rate import NEVER
from relayd.scheduler.site_queue import SiteQueue
from relayd.scheduler.window import START

MEMORY = 3600.0
"""Seconds for which an idle site's limits are remembered; a configured pace is no slower than one message in these."""

MAX_IDLE = 10_000
"""Idle sites remembered, those that were used last; under 2 KB each."""


def _configured(site: Site, now: float) -> Limits | None:
    terms = site.terms
    return Limits(terms, now) if terms.messages_per_second or terms.connections < START else None


class Sites:
    """Queues by site.

    Invariants: a site is in the rotation exactly while it could start an entry when it was last looked at, and no later
    than at its time that is known is it looked at again; one with entries or slots in use is never forgotten. A site
    whose window is full, whose pace says later, or that is dead is one object that waits, whatever its backlog: nobody
    looks at it. All is O(1), O(log sites waiting for a time) for a site with a pace; `holding` is O(sites).
    """

    def __init__(
        self, interactive: Interactive, limits: Callable[[Site, float], Limits | None] = _configured
    ) -> None:
        """limits: those that a site has from the start."""
        self._interactive = interactive
        self._limits = limits
        self._queues: dict[Site, SiteQueue] = {}
        self._rotation: OrderedDict[SiteQueue, None] = OrderedDict()
        self._parked: list[tuple[float, int, SiteQueue]] = []
        self._sequence = itertools.count()
        self._idle: OrderedDict[SiteQueue, float] = OrderedDict()  # and until when it is remembered
        self._barred: dict[SiteQueue, None] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._queues) + len(self._parked)

    def get(self, site: Site) -> SiteQueue | None:
        """What is known of a site, if anything."""
        return self._queues.get(site)

    def push(self, site: Site, entry: Entry, now: float) -> None:
        """An entry waits for the site."""
        queue = self._of(site, now)
        queue.entries.push(entry)
        self._place(queue, now)

    def absorb(self, site: Site, entries: ClassQueue, now: float) -> None:
        """So do all of these."""
        self._place(self._of(site, now, entries), now)

    def restore(self, site: Site, entry: Entry, now: float) -> None:
        """An entry that was taken was not tried: it is next again. Its slot is still in use."""
        queue = self._queues[site]
        queue.entries.restore(entry)
        self._place(queue, now)

    def take(self, now: float, site: Site | None = None) -> tuple[Site, Entry] | None:
        """The next entry of the site whose turn it is, or of `site`; the site goes to the end of the rotation."""
        queue = next(iter(self._rotation), None) if site is None else self._queues.get(site)
        if queue is None or queue not in self._rotation:
            return None
        entry = queue.start(now)
        del self._rotation[queue]
        self._place(queue, now)
        return queue.site, entry

    def release(self, site: Site, entry: Entry, report: Report, now: float) -> tuple[Change, ...]:
        """The slot of an entry is free again; what changed by what was reported. ValueError when none was in use."""
        queue = self._queues.get(site)
        if queue is None or not queue.busy:
            raise ValueError("no slot of the site is in use")
        changes = queue.ended(entry, report, now)
        self._place(queue, now)
        return changes

    def shares(self, site: Site) -> bool:
        """Whether more than one slot of the site is in use."""
        queue = self._queues.get(site)
        return queue is not None and queue.busy > 1

    def probe(self, site: Site) -> float | None:
        """When whoever comes back to a dead site is to probe it; None where somebody waits to, or it is alive."""
        queue = self._queues.get(site)
        return None if queue is None or queue.outage is None or queue.entries else queue.outage.probe

    def is_backed_up(self, site: Site) -> bool:
        """Whether something waits for the site."""
        queue = self._queues.get(site)
        return queue is not None and bool(queue.entries)

    @property
    def has_more(self) -> bool:
        """Whether a site may start an entry now, or has mail to be put off."""
        return bool(self._rotation or self._barred)

    @property
    def next(self) -> float | None:
        """When a site has to be looked at again; perhaps in vain."""
        return self._parked[0][0] if self._parked else None

    def advance(self, now: float) -> None:
        """Look at the sites whose time has come, forget idle ones."""
        self._now = now
        parked, idle = self._parked, self._idle
        while parked and parked[0][0] <= now:
            at, _, queue = heapq.heappop(parked)
            if at == queue.parked:
                queue.parked = NEVER
                if queue.entries:
                    self._place(queue, now)
        while idle and (len(idle) > MAX_IDLE or next(iter(idle.values())) <= now):
            queue, _ = idle.popitem(last=False)
            del self._queues[queue.site]

    def barred(self, limit: int) -> Iterator[tuple[SiteQueue, Entry]]:
        """Take out what waits for dead sites, but for one entry each, to probe them with; at most `limit`."""
        while self._barred and limit > 0:
            queue, _ = self._barred.popitem()
            probe = queue.entries.pop()
            while queue.entries and limit > 0:
                limit -= 1
                yield queue, queue.entries.pop()
            if queue.entries:
                self._barred[queue] = None
            queue.entries.restore(probe)

    def remove(self, queue: SiteQueue, entry: Entry) -> None:
        """Take an entry out of the middle."""
        queue.entries.remove(entry)
        if not queue.entries:
            self._empty(queue, self._now)
        elif queue.opens == NEVER:  # nothing is left that may use the slots that are kept
            self._rotation.pop(queue, None)

    def holding(self, entry: Entry) -> SiteQueue:
        """The site in whose queue an entry is. StopIteration when there is none."""
        return next(queue for queue in self._queues.values() if entry in queue.entries)

    def _of(self, site: Site, now: float, entries: ClassQueue | None = None) -> SiteQueue:
        """The site's queue, no longer idle, with these entries in it."""
        queue = self._queues.get(site)
        if queue is None:
            if entries is None:
                entries = ClassQueue(self._interactive.accounts)
            queue = self._queues[site] = SiteQueue(site, entries, self._interactive, self._limits(site, now))
        else:
            self._idle.pop(queue, None)
            if entries is not None:
                queue.entries.absorb(entries)
        return queue

    def _place(self, queue: SiteQueue, now: float) -> None:
        """Into the rotation, or out of it until a known time; one that waits for its turn already keeps it."""
        if not queue.entries:
            self._empty(queue, now)
            return
        if queue.entries.interactive_waits:
            queue.saw_interactive(now)
        opens = queue.opens
        if opens <= now:
            self._rotation.setdefault(queue)
        else:
            self._rotation.pop(queue, None)
            if opens not in (NEVER, queue.parked):
                queue.parked = opens
                heapq.heappush(self._parked, (opens, next(self._sequence), queue))
        if queue.limits is not None and queue.limits.outage is not None:
            self._barred[queue] = None
        elif self._barred:
            self._barred.pop(queue, None)

    def _empty(self, queue: SiteQueue, now: float) -> None:
        """Nothing waits for it; where nothing is under way either, what it knows is remembered for a while."""
        self._rotation.pop(queue, None)
        if self._barred:
            self._barred.pop(queue, None)
        if queue.is_blank:
            del self._queues[queue.site]
        elif not queue.busy:
            self._idle[queue] = now + MEMORY
