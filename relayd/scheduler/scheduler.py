"""Which entry may start now. Owns every entry from `add` to `finish` and the slots of every site.

Must not know what an attempt is, nor why it ended. The dispatcher calls it, on one thread, with monotonic seconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict

from relayd.message.site import Site
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, READY, Census
from relayd.scheduler.entry import Entry
from relayd.scheduler.fair_queue import FairQueue

ADVANCED_AT_ONCE = 1000
"""Entries one `advance` makes ready, so that a million due at once don't stall the event loop for seconds."""

MAX_BINDINGS = 100_000
"""Bindings kept; beyond, those that end first are forgotten and their domains are asked for again when needed."""


class _SiteQueue:
    """A site's ready entries and its slots in use. Kept exactly while it has either."""

    __slots__ = ("busy", "entries", "site")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.entries = FairQueue()
        self.busy = 0


class Scheduler:
    """Entries by state: deferred until due, ready in a domain without site or in a site's queue, active until finished.

    Invariants:
    - An entry added is in exactly one place until it is finished, and is handed out once, by `take` or `unroute`.
    - A site never has more than `connections_per_site` slots in use.
    - A site is in the rotation exactly while it has a ready entry and a free slot. Sites take turns, and inside a site
      accounts do: whatever others have waiting delays an account's next entry by one round at most.
    - A domain without a valid binding and with ready entries is either to be handed out by `unrouted` or was, once.
    - Nothing is remembered of a site, domain, account or message that has no entry, no slot and no valid binding.

    Cost: add, take, release, finish are O(1), and O(log n) for an entry that is due later; advance is O(log n) for each
    entry that became due, bind O(accounts waiting for the domain), unroute O(entries returned), unrouted O(domains
    returned), counts O(1). None looks at other sites, domains or accounts than its own.
    """

    def __init__(self, connections_per_site: int) -> None:
        self._slots = connections_per_site
        self._sites: dict[Site, _SiteQueue] = {}
        self._rotation: OrderedDict[_SiteQueue, None] = OrderedDict()
        self._waiting: dict[str, FairQueue] = {}  # domain: ready, without a site
        self._unasked: dict[str, None] = {}  # those of _waiting that `unrouted` has to hand out
        self._bindings: dict[str, tuple[Site, float]] = {}
        self._expiries: list[tuple[float, str]] = []  # heap of (until, domain)
        self._deferred: list[tuple[float, int, Entry]] = []  # heap; the number keeps equal times in order
        self._sequence = itertools.count()
        self._census = Census()

    @property
    def size(self) -> int:
        """Things remembered: messages, sites, domains, bindings, timers. Zero once idle and all bindings ended."""
        return (
            len(self._census)
            + len(self._sites)
            + len(self._rotation)
            + len(self._waiting)
            + len(self._unasked)
            + len(self._bindings)
            + len(self._expiries)
            + len(self._deferred)
        )

    def add(self, entry: Entry, now: float) -> None:
        """Take over an entry: deferred when it is due after `now`, else ready. ValueError when it is here already."""
        if entry.state != GONE:
            raise ValueError("entry was added twice")
        if entry.due > now:
            heapq.heappush(self._deferred, (entry.due, next(self._sequence), entry))
            self._move(entry, DEFERRED)
        else:
            self._make_ready(entry, now)

    def advance(self, now: float) -> float | None:
        """Make due entries ready; return when to call again, None while nothing is deferred.

        At most ADVANCED_AT_ONCE a call: with more due, the time returned is not after `now`.
        """
        self._forget_bindings(now)
        deferred = self._deferred
        if not deferred:
            return None
        for _ in range(ADVANCED_AT_ONCE):
            if not deferred or deferred[0][0] > now:
                break
            self._make_ready(heapq.heappop(deferred)[2], now)
        return deferred[0][0] if deferred else None

    def unrouted(self, now: float) -> list[str]:
        """Domains that need a site, longest waiting first; each once until `bind` or `unroute` answers."""
        self._forget_bindings(now)
        domains = list(self._unasked)
        self._unasked.clear()
        return domains

    def bind(self, domain: str, site: Site, until: float) -> None:
        """The domain's ready entries join the site's queue; so do those that become ready before `until`."""
        self._bindings[domain] = (site, until)
        heapq.heappush(self._expiries, (until, domain))
        self._unasked.pop(domain, None)
        if (entries := self._waiting.pop(domain, None)) is not None:
            queue = self._queue_of(site)
            queue.entries.absorb(entries)
            self._rotate(queue)

    def unroute(self, domain: str) -> list[Entry]:
        """The domain has no site: its waiting entries become active without a slot, for the caller to settle."""
        self._unasked.pop(domain, None)
        waiting = self._waiting.pop(domain, None)
        entries = []
        while waiting:
            entries.append(entry := waiting.pop())
            self._move(entry, ACTIVE)
        return entries

    def take(self, site: Site | None = None) -> tuple[Site, Entry] | None:
        """Start the next entry (of `site` alone when given): it is active and uses a slot. None when none may start.

        The site goes to the end of the rotation either way.
        """
        queue = next(iter(self._rotation), None) if site is None else self._sites.get(site)
        if queue is None or queue not in self._rotation:
            return None
        entry = queue.entries.pop()
        queue.busy += 1
        del self._rotation[queue]
        self._rotate(queue)
        self._move(entry, ACTIVE)
        return queue.site, entry

    def release(self, site: Site) -> None:
        """A slot of the site is free again. ValueError when none was in use."""
        queue = self._sites.get(site)
        if queue is None or not queue.busy:
            raise ValueError("no slot of the site is in use")
        queue.busy -= 1
        if queue.entries:
            self._rotate(queue)
        elif not queue.busy:
            del self._sites[site]

    def finish(self, entry: Entry) -> None:
        """An active entry's outcome is durable: it is gone. ValueError when it is not active."""
        if entry.state != ACTIVE:
            raise ValueError("entry is not active")
        self._move(entry, GONE)

    def counts(self) -> dict[str, int]:
        """Messages by state: active, ready, deferred, held; each in the first of these that an entry of it is in."""
        return self._census.counts()

    def _move(self, entry: Entry, state: int) -> None:
        self._census.move(entry.message.id, entry.state, state)
        entry.state = state

    def _make_ready(self, entry: Entry, now: float) -> None:
        self._move(entry, READY)
        binding = self._bindings.get(entry.domain)
        if binding is not None and now < binding[1]:
            queue = self._queue_of(binding[0])
            queue.entries.push(entry)
            self._rotate(queue)
            return
        waiting = self._waiting.get(entry.domain)
        if waiting is None:
            waiting = self._waiting[entry.domain] = FairQueue()
            self._unasked[entry.domain] = None
        waiting.push(entry)

    def _queue_of(self, site: Site) -> _SiteQueue:
        queue = self._sites.get(site)
        if queue is None:
            queue = self._sites[site] = _SiteQueue(site)
        return queue

    def _rotate(self, queue: _SiteQueue) -> None:
        """Let the site join the rotation if it may start an entry; one that waits for its turn already keeps it."""
        if queue.entries and queue.busy < self._slots:
            self._rotation.setdefault(queue)

    def _forget_bindings(self, now: float) -> None:
        expiries = self._expiries
        while expiries and (expiries[0][0] <= now or len(expiries) > MAX_BINDINGS):
            until, domain = heapq.heappop(expiries)
            binding = self._bindings.get(domain)
            if binding is not None and binding[1] <= until:
                del self._bindings[domain]
