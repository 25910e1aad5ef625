"""Which entry may start now. Owns every entry from `add` to `finish`, where it waits, and the slots of every site.

Must not know what an attempt is, nor what a reply says. The dispatcher calls it, on one thread, with monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

from relayd.message.site import Site, Way
from relayd.scheduler.bindings import Bindings
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, HELD, READY, Census
from relayd.scheduler.classes import Interactive
from relayd.scheduler.deferred import Deferred
from relayd.scheduler.entry import Entry
from relayd.scheduler.lanes import Lanes
from relayd.scheduler.leased_sites import LeasedSites
from relayd.scheduler.limits import Outage
from relayd.scheduler.site_queue import SiteQueue
from relayd.scheduler.sites import Sites
from relayd.scheduler.unbound import Unbound

MOVED_AT_ONCE = 1000
"""Entries one call moves, so that a million due at once don't stall the event loop for seconds."""


class Scheduler:
    """Entries by state: deferred until due, ready on a way without site or in a site's queue, active until finished.

    Invariants:
    - An entry added is in exactly one place until it is finished, and is handed out once, by `take`, `unroute` or
      `barred`, or again after `restore`.
    - A site gets an entry only while its window, its pace and its health allow: see `site_queue`. Sites that may start
      one take turns, and inside a site accounts do: whatever others have waiting delays an account's next entry by one
      round at most.
    - A way without a valid binding and with ready entries is either to be handed out by `unbound.asked` or was, once.
    - Of a dead site's ready entries, one is kept for the next probe, and `barred` hands out the others.
    - Nothing is remembered of a way, account or message that has no entry and no valid binding, nor for long of a
      site that has no entry and no slot in use.

    Cost: add, take, restore, finish are O(1), and O(log n) for an entry that is due later or a site that waits
    for a time; advance is O(log n) for each entry that became due, bind O(accounts waiting on the way), unroute and
    barred O(entries returned), counts O(1); withdraw and recall O(entries of the message),
    and now and then a pass over the deferred ones, as wake is. None looks at other sites, ways or accounts than its
    own, but for a recall of what waits where its way led before: O(sites).
    """

    def __init__(self, interactive: Interactive = Interactive(), *, leased: bool = False) -> None:  # noqa: B008  # immutable
        """leased: other workers share this machine, and a broker says what each may have of a site."""
        self.unbound = Unbound(interactive)
        self._bindings = Bindings()
        self._deferred = Deferred()
        self._census = Census()
        self._entries: dict[str, list[Entry]] = {}  # message id: what is here of it
        self.lanes = Lanes()
        self.leased = LeasedSites(interactive) if leased else None
        """The sites, where they are leased."""
        self.sites = Sites(interactive) if self.leased is None else self.leased

    @property
    def size(self) -> int:
        """Things remembered: messages, sites, ways, bindings, timers. Zero an hour after all has ended."""
        parts: list[Sized] = [self._census, self.sites, self.unbound, self._bindings, self._deferred, self.lanes]
        return sum(map(len, parts)) + len(self._entries)

    @property
    def next(self) -> float | None:
        """When to call `advance` again, None for not at all; any call may bring it nearer."""
        due, opens = self._deferred.next, self.sites.next
        if due is None or opens is None:
            return opens if due is None else due
        return min(due, opens)

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
        """Make due entries ready, let sites start whose time has come; `next`.

        At most MOVED_AT_ONCE entries a call: with more due, the time returned is not after `now`.
        """
        self._bindings.forget(now)
        deferred = self._deferred
        for _ in range(MOVED_AT_ONCE):
            due = deferred.next
            if due is None or due > now:
                break
            if (entry := deferred.pop()) is not None:
                self._make_ready(entry, now)
        self.sites.advance(now)
        return self.next

    def bind(self, way: Way, site: Site, until: float, now: float) -> None:
        """The ready entries of the way join the site's queue; so do those that become ready before `until`."""
        self._bindings.put(way, site, until)
        if (entries := self.unbound.take(way)) is not None:
            self.sites.absorb(site, entries, now)

    def unroute(self, way: Way) -> list[Entry]:
        """The way leads nowhere: what waits on it becomes active without a slot, for the caller to settle."""
        waiting = self.unbound.take(way)
        entries = []
        while waiting:
            entries.append(entry := waiting.pop())
            self._move(entry, ACTIVE)
        return entries

    def take(self, now: float, site: Site | None = None) -> tuple[Site, Entry] | None:
        """Start the next entry (of `site` alone when given): it is active and uses a slot. None when none may start.

        The site goes to the end of the rotation either way.
        """
        taken = self.sites.take(now, site)
        if taken is not None:
            self._move(taken[1], ACTIVE)
        return taken

    def restore(self, site: Site, entry: Entry, now: float) -> None:
        """An active entry was not tried after all: it is ready, and the next of its account. Its slot is still used."""
        if entry.state != ACTIVE:
            raise ValueError("entry is not active")
        self._move(entry, READY)
        self.sites.restore(site, entry, now)

    def barred(self) -> list[tuple[Site, Entry, Outage]]:
        """What waits for dead sites and is not to be tried: active without a slot, and why.

        At most MOVED_AT_ONCE a call; with as many, there may be more.
        """
        barred = []
        for queue, entry in self.sites.barred(MOVED_AT_ONCE):
            self._move(entry, ACTIVE)
            limits = queue.limits
            assert limits is not None
            assert limits.outage is not None
            limits.put_off(entry.way)
            barred.append((queue.site, entry, limits.outage))
        return barred

    def wake(self, ways: Iterable[Way], now: float) -> None:
        """Their site is back: what waited for that is due now, the oldest message first. O(deferred)."""
        for entry in self._deferred.stalled(frozenset(ways)):
            self._make_ready(entry, now)
            self._deferred.withdrawn()

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

    def counts(self) -> dict[str, int]:
        """Messages by state: active, ready, deferred, held; each in the first of these that an entry of it is in."""
        return self._census.counts()

    # --- parts ------------------------------------------------------------------------------------------------------

    def _is_needed(self, entry: Entry, before: float, each: int) -> bool:
        if entry.state == HELD:
            return False
        if entry.state == DEFERRED:
            return entry.due <= before
        if entry.state == ACTIVE or self.lanes.of(entry.domain, entry.message.account) <= each:
            return True
        # In the rare case that its way leads to another site by now, it is in a queue nobody finds: it stays.
        queue = self._bound(entry.way)
        return entry not in self.unbound and (queue is None or entry not in queue.entries)

    def _bound(self, way: Way) -> SiteQueue | None:
        site = self._bindings.last(way)
        return self.sites.get(site) if site else None

    def _remove_ready(self, entry: Entry) -> None:
        if entry in self.unbound:
            self.unbound.remove(entry)
            return
        queue = self._bound(entry.way)
        if queue is None or entry not in queue.entries:
            # Its way leads to another site since, or nowhere: it is where it was. Rare, so looked for.
            queue = self.sites.holding(entry)
        self.sites.remove(queue, entry)

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
        site = self._bindings.of(entry.way, now)
        if site is None:
            self.unbound.push(entry)
        else:
            self.sites.push(site, entry, now)
