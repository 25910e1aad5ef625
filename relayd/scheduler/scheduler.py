"""Which entry may start now. Owns every entry from `add` to `finish` and the slots of every site.

Must not know what an attempt is, nor why it ended. The dispatcher calls it, on one thread, with monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict

from relayd.message.site import Site
from relayd.scheduler.bindings import Bindings
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, HELD, READY, Census
from relayd.scheduler.deferred import Deferred
from relayd.scheduler.entry import Entry
from relayd.scheduler.fair_queue import FairQueue
from relayd.scheduler.lanes import Lanes

ADVANCED_AT_ONCE = 1000
"""Entries one `advance` makes ready, so that a million due at once don't stall the event loop for seconds."""


class _SiteQueue:
    """A site's ready entries and its slots in use. Kept exactly while it has either."""

    __slots__ = ("busy", "entries", "site")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.entries = FairQueue()
        self.busy = 0


class _Sites(dict[Site, _SiteQueue]):
    """Sites with entries or slots in use."""

    def of(self, site: Site) -> _SiteQueue:
        """The site's queue, made when there is none."""
        queue = self.get(site)
        if queue is None:
            queue = self[site] = _SiteQueue(site)
        return queue


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
    returned), counts O(1); withdraw and recall O(entries of the message), and now and then a pass over the deferred
    ones. None looks at other sites, domains or accounts than its own, but for a recall of what waits where its domain
    was bound before: O(sites).
    """

    def __init__(self, connections_per_site: int) -> None:
        self._slots = connections_per_site
        self._sites = _Sites()
        self._rotation: OrderedDict[_SiteQueue, None] = OrderedDict()
        self._waiting: dict[str, FairQueue] = {}  # domain: ready, without a site
        self._unasked: dict[str, None] = {}  # those of _waiting that `unrouted` has to hand out
        self._bindings = Bindings()
        self._deferred = Deferred()
        self._census = Census()
        self._entries: dict[str, list[Entry]] = {}  # message id: what is here of it
        self.lanes = Lanes()

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
            + len(self._deferred)
            + len(self._entries)
            + len(self.lanes)
        )

    def add(self, entry: Entry, now: float, *, held: bool = False) -> None:
        """Take over an entry: held, or deferred when it is due after `now`, else ready. ValueError when it is here."""
        if entry.state != GONE:
            raise ValueError("entry was added twice")
        if held:
            self._move(entry, HELD)
        elif entry.due > now:
            self._deferred.push(entry)
            self._move(entry, DEFERRED)
        else:
            self._make_ready(entry, now)

    def advance(self, now: float) -> float | None:
        """Make due entries ready; return when to call again, None while nothing is deferred.

        At most ADVANCED_AT_ONCE a call: with more due, the time returned is not after `now`.
        """
        self._bindings.forget(now)
        deferred = self._deferred
        for _ in range(ADVANCED_AT_ONCE):
            due = deferred.next
            if due is None or due > now:
                return due
            if (entry := deferred.pop()) is not None:
                self._make_ready(entry, now)
        return deferred.next

    def unrouted(self, now: float) -> list[str]:
        """Domains that need a site, longest waiting first; each once until `bind` or `unroute` answers."""
        self._bindings.forget(now)
        domains = list(self._unasked)
        self._unasked.clear()
        return domains

    def bind(self, domain: str, site: Site, until: float) -> None:
        """The domain's ready entries join the site's queue; so do those that become ready before `until`."""
        self._bindings.put(domain, site, until)
        self._unasked.pop(domain, None)
        if (entries := self._waiting.pop(domain, None)) is not None:
            queue = self._sites.of(site)
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

    def withdraw(self, message: str, before: float, each: int) -> bool:
        """Forget a message that nobody needs here for now; False when it is needed.

        Needed is what is active, or deferred until `before` (monotonic) or earlier, or ready while no more than `each`
        entries of its domain and account wait.
        """
        entries = self._entries.get(message, [])
        if any(self._is_needed(entry, before, each) for entry in entries):
            return False
        self.recall(message)
        return True

    def counts(self) -> dict[str, int]:
        """Messages by state: active, ready, deferred, held; each in the first of these that an entry of it is in."""
        return self._census.counts()

    def recall(self, message: str) -> list[Entry] | None:
        """Take out what waits, or is held, of a message, to be added anew; None when nothing of it is here. O(entries).

        What is active stays: its recipients must not be tried twice.
        """
        entries = self._entries.get(message)
        if entries is None:
            return None
        recalled = [entry for entry in entries if entry.state != ACTIVE]
        for entry in recalled:
            state = entry.state
            if state == READY:
                self._remove_ready(entry)
            self._move(entry, GONE)
            if state == DEFERRED:
                self._deferred.withdrawn()
        return recalled

    def _is_needed(self, entry: Entry, before: float, each: int) -> bool:
        if entry.state == HELD:
            return False
        if entry.state == DEFERRED:
            return entry.due <= before
        if entry.state == ACTIVE or self.lanes.of(entry.domain, entry.message.account) <= each:
            return True
        # In the rare case that its domain has moved to another site, it is in a queue nobody finds: it stays.
        site, waiting = self._bound(entry.domain), self._waiting.get(entry.domain)
        return not (site is not None and entry in site.entries) and (waiting is None or entry not in waiting)

    def _bound(self, domain: str) -> _SiteQueue | None:
        site = self._bindings.last(domain)
        return self._sites.get(site) if site else None

    def _remove_ready(self, entry: Entry) -> None:
        waiting = self._waiting.get(entry.domain)
        if waiting is not None and entry in waiting:
            waiting.remove(entry)
            if not waiting:
                del self._waiting[entry.domain]
                self._unasked.pop(entry.domain, None)
            return
        queue = self._bound(entry.domain)
        if queue is None or entry not in queue.entries:
            # Its domain has moved to another site since, or to none: it is where it was. Rare, so looked for.
            queue = next(queue for queue in self._sites.values() if entry in queue.entries)
        queue.entries.remove(entry)
        if not queue.entries:
            self._rotation.pop(queue, None)
            if not queue.busy:
                del self._sites[queue.site]

    def _move(self, entry: Entry, state: int) -> None:
        old, entry.state = entry.state, state
        name = entry.message.id
        self._census.move(name, old, state)
        waits, waited = state is READY or state is DEFERRED, old is READY or old is DEFERRED
        if waits and not waited:
            self.lanes.enter(entry)
        elif waited and not waits:
            self.lanes.leave(entry)
        if old == GONE:
            self._entries.setdefault(name, []).append(entry)
        elif state == GONE:
            entries = self._entries[name]
            entries.remove(entry)
            if not entries:
                del self._entries[name]

    def _make_ready(self, entry: Entry, now: float) -> None:
        self._move(entry, READY)
        site = self._bindings.of(entry.domain, now)
        if site is not None:
            queue = self._sites.of(site)
            queue.entries.push(entry)
            self._rotate(queue)
            return
        waiting = self._waiting.get(entry.domain)
        if waiting is None:
            waiting = self._waiting[entry.domain] = FairQueue()
            self._unasked[entry.domain] = None
        waiting.push(entry)

    def _rotate(self, queue: _SiteQueue) -> None:
        """Let the site join the rotation if it may start an entry; one that waits for its turn already keeps it."""
        if queue.entries and queue.busy < self._slots:
            self._rotation.setdefault(queue)
