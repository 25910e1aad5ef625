"""The scheduler against a naive model of it, under any sequence of calls that hypothesis can find."""

from __future__ import annotations

import collections

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relayd.message.site import Site
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, READY
from relayd.scheduler.entry import Entry
from relayd.scheduler.scheduler import Scheduler
from tests.unit.scheduler.entries import entry, site

DOMAINS = st.sampled_from(["a.example", "b.example", "c.example"])
ACCOUNTS = st.sampled_from(["user:ann", "user:bob", "net:10.0.0.0/8", ""])
MESSAGES = st.sampled_from(["m1", "m2", "m3", "m4", "m5"])
SITES = st.sampled_from([site("mx1"), site("mx2")])
LONG_AFTER = 1e9
ORDER = ((ACTIVE, "active"), (READY, "ready"), (DEFERRED, "deferred"))


class SchedulerMachine(RuleBasedStateMachine):
    """Every entry is in one list of the model; every list is searched from its start."""

    @initialize(slots=st.integers(1, 3))
    def start(self, slots: int) -> None:
        self.scheduler = Scheduler(slots)
        self.slots = slots
        self.now = 100.0
        self.added = 0
        self.deferred: list[Entry] = []
        self.waiting: dict[str, list[Entry]] = {}
        self.asked: set[str] = set()
        self.bindings: dict[str, tuple[Site, float]] = {}
        self.queued: dict[Site, list[Entry]] = collections.defaultdict(list)
        self.active: list[Entry] = []
        self.busy: collections.Counter[Site] = collections.Counter()
        self.ended: list[Entry] = []
        self.dead: list[float] = []  # when withdrawn entries would have been due
        # For each (site, account) that waits: whom the site served since it began to wait or had its last turn.
        self.served: dict[tuple[Site, str], list[str]] = {}
        # For each site that may start an entry: whose turns `take()` gave to others since.
        self.passed: dict[Site, list[Site]] = {}

    # --- the model's steps

    def become_ready(self, ready: Entry) -> None:
        binding = self.bindings.get(ready.domain)
        if binding is not None and self.now < binding[1]:
            self.join(binding[0], ready)
        else:
            self.waiting.setdefault(ready.domain, []).append(ready)

    def join(self, queue: Site, ready: Entry) -> None:
        self.queued[queue].append(ready)
        self.served.setdefault((queue, ready.message.account), [])

    def startable(self) -> set[Site]:
        return {queue for queue, entries in self.queued.items() if entries and self.busy[queue] < self.slots}

    def took(self, taken: tuple[Site, Entry]) -> None:
        queue, started = taken
        account = started.message.account
        oldest = next(e for e in self.queued[queue] if e.message.account == account)
        assert started is oldest
        self.queued[queue].remove(started)
        self.active.append(started)
        self.busy[queue] += 1
        assert self.busy[queue] <= self.slots
        still_waiting = {e.message.account for e in self.queued[queue]}
        del self.served[queue, account]
        for (other_site, other), served in self.served.items():
            if other_site == queue:
                served.append(account)
                assert served.count(account) <= 1, f"{account} overtook {other}"
        if account in still_waiting:
            self.served[queue, account] = []

    # --- calls

    @rule(
        message=MESSAGES,
        domain=DOMAINS,
        account=ACCOUNTS,
        later=st.sampled_from([-5.0, 0.0, 1.0, 10.0, 10.0, 60.0]),
        number=st.integers(1, 4),
    )
    def add(self, message: str, domain: str, account: str, later: float, number: int) -> None:
        for _ in range(number):
            new = entry(message, domain, account, due=self.now + later)
            self.scheduler.add(new, self.now)
            self.added += 1
            if later > 0:
                self.deferred.append(new)
            else:
                self.become_ready(new)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 9.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        following = self.scheduler.advance(self.now)
        self.forget_bindings()
        # sort is stable: equal times keep their order
        for due in sorted((e for e in self.deferred if e.due <= self.now), key=lambda e: e.due):
            self.become_ready(due)
        self.deferred = [e for e in self.deferred if e.due > self.now]
        self.dead = [due for due in self.dead if due > self.now]
        expected = min((e.due for e in self.deferred), default=None)
        if following != expected:
            # It may look too early, for one that is not there any more, and never too late.
            assert following in self.dead
            assert expected is None or following < expected

    @rule()
    def unrouted(self) -> None:
        expected = [domain for domain in self.waiting if domain not in self.asked]
        assert self.scheduler.unrouted(self.now) == expected
        self.forget_bindings()
        self.asked.update(expected)

    @rule(domain=DOMAINS, queue=SITES, seconds=st.sampled_from([0.0, 5.0, 40.0]))
    def bind(self, domain: str, queue: Site, seconds: float) -> None:
        self.scheduler.bind(domain, queue, self.now + seconds)
        self.bindings[domain] = (queue, self.now + seconds)
        self.asked.discard(domain)
        for ready in self.waiting.pop(domain, []):
            self.join(queue, ready)

    @rule(domain=DOMAINS)
    def unroute(self, domain: str) -> None:
        returned = self.scheduler.unroute(domain)
        expected = self.waiting.pop(domain, [])
        assert sorted(map(id, returned)) == sorted(map(id, expected))
        self.asked.discard(domain)
        self.active.extend(returned)

    @rule()
    def take(self) -> None:
        taken = self.scheduler.take()
        if taken is None:
            assert not self.startable()
            return
        assert taken[0] in self.startable()
        self.passed.pop(taken[0], None)
        for waited, turns in self.passed.items():
            turns.append(taken[0])
            assert turns.count(taken[0]) <= 1, f"{taken[0]} overtook {waited}"
        self.took(taken)

    @rule(queue=SITES)
    def take_of_site(self, queue: Site) -> None:
        taken = self.scheduler.take(queue)
        if taken is None:
            assert queue not in self.startable()
            return
        assert taken[0] == queue
        self.took(taken)
        self.passed.pop(queue, None)

    @precondition(lambda self: any(self.busy.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        queue = data.draw(st.sampled_from([queue for queue, busy in self.busy.items() if busy]))
        self.scheduler.release(queue)
        self.busy[queue] -= 1

    @precondition(lambda self: self.active)
    @rule(data=st.data(), again=st.sampled_from([None, 0.0, 10.0]))
    def finish(self, data: st.DataObject, again: float | None) -> None:
        done = data.draw(st.sampled_from(self.active))
        if again is not None:
            before = sum(self.scheduler.counts().values())
            self.add(done.message.id, done.domain, done.message.account, again, 1)
            assert sum(self.scheduler.counts().values()) == before
        self.scheduler.finish(done)
        self.active.remove(done)
        self.ended.append(done)

    def forget_bindings(self) -> None:
        self.bindings = {domain: bound for domain, bound in self.bindings.items() if bound[1] > self.now}

    def of_message(self, message: str) -> list[Entry]:
        return [e for e in self.everything() if e.message.id == message]

    def everything(self) -> list[Entry]:
        return [*self.ready(), *self.deferred, *self.active]

    def ready(self) -> list[Entry]:
        return [e for entries in (*self.waiting.values(), *self.queued.values()) for e in entries]

    def is_lost_sight_of(self, found: Entry) -> bool:
        """In the queue of a site to which its domain does not go any more."""
        if found in self.waiting.get(found.domain, []):
            return False
        bound = self.bindings.get(found.domain)
        return bound is None or found not in self.queued[bound[0]]

    def forget(self, gone: Entry) -> None:
        """What was taken out counts as ended."""
        if gone in self.deferred:
            self.deferred.remove(gone)
            self.dead.append(gone.due)
        for domain, entries in list(self.waiting.items()):
            if gone in entries:
                entries.remove(gone)
                if not entries:
                    del self.waiting[domain]
                    self.asked.discard(domain)
        for queue, entries in self.queued.items():
            if gone in entries:
                entries.remove(gone)
                if not any(e.message.account == gone.message.account for e in entries):
                    self.served.pop((queue, gone.message.account), None)
        self.ended.append(gone)

    @rule(message=MESSAGES, before=st.sampled_from([0.0, 5.0, 30.0]), each=st.integers(0, 4))
    def withdraw(self, message: str, before: float, each: int) -> None:
        entries = self.of_message(message)
        before += self.now
        lanes = collections.Counter((e.domain, e.message.account) for e in (*self.ready(), *self.deferred))
        needed = False
        for one in entries:
            if one.state == DEFERRED:
                needed |= one.due <= before
            elif one.state == READY:
                needed |= lanes[one.domain, one.message.account] <= each or self.is_lost_sight_of(one)
            else:
                needed |= one.state == ACTIVE
        assert self.scheduler.withdraw(message, before, each) == (not needed)
        if not needed:
            for gone in entries:
                self.forget(gone)

    # --- what always holds

    @invariant()
    def lanes_are_exact(self) -> None:
        lanes = collections.Counter((e.domain, e.message.account) for e in (*self.ready(), *self.deferred))
        assert self.scheduler.lanes.total == lanes.total()
        assert len(self.scheduler.lanes) == len(lanes)
        assert all(self.scheduler.lanes.of(*lane) == number for lane, number in lanes.items())

    @invariant()
    def nothing_is_lost(self) -> None:
        ready = sum(map(len, self.waiting.values())) + sum(map(len, self.queued.values()))
        assert ready + len(self.deferred) + len(self.active) + len(self.ended) == self.added
        assert all(e.state == GONE for e in self.ended)

    @invariant()
    def census_is_exact(self) -> None:
        ready = [e for entries in (*self.waiting.values(), *self.queued.values()) for e in entries]
        counted: set[str] = set()
        expected = {"held": 0}
        for entries, (_, name) in zip((self.active, ready, self.deferred), ORDER, strict=True):
            new = {e.message.id for e in entries} - counted
            expected[name] = len(new)
            counted |= new
        assert self.scheduler.counts() == expected

    @invariant()
    def turns_are_followed(self) -> None:
        startable = self.startable()
        self.passed = {queue: self.passed.get(queue, []) for queue in startable}

    def teardown(self) -> None:
        """Whatever happened, everything can be delivered, and nothing is remembered then."""
        if not hasattr(self, "scheduler"):
            return
        self.advance(LONG_AFTER)
        for domain in list(self.waiting):
            self.bind(domain, site("mx1"), 1.0)
        for queue in list(self.busy.elements()):
            self.scheduler.release(queue)
            self.busy[queue] -= 1
        while (taken := self.scheduler.take()) is not None:
            self.took(taken)
            self.scheduler.release(taken[0])
            self.busy[taken[0]] -= 1
        for done in self.active:
            self.scheduler.finish(done)
            self.ended.append(done)
        assert len(self.ended) == self.added == len(set(map(id, self.ended)))
        assert set(self.scheduler.counts().values()) == {0}
        assert self.scheduler.advance(self.now + LONG_AFTER) is None
        assert self.scheduler.size == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
