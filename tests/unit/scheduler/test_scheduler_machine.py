"""The scheduler against a naive model of it, under any sequence of calls that hypothesis can find."""

from __future__ import annotations

import collections

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Site, Way
from relayd.scheduler import classes
from relayd.scheduler.bindings import GRAIN
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, READY
from relayd.scheduler.classes import Interactive, PriorityClass, class_of, reserve
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import SERVED, UNREACHABLE, Report, Signal, Trouble
from relayd.scheduler.rate import NEVER
from relayd.scheduler.scheduler import Scheduler
from relayd.scheduler.site_queue import SiteQueue
from relayd.smtp import reply
from tests.unit.scheduler.entries import entry, site

DOMAINS = st.sampled_from(["a.example", "b.example", "c.example"])
ACCOUNTS = st.sampled_from(["user:ann", "user:bob", "net:10.0.0.0/8", ""])
MESSAGES = st.sampled_from(["m1", "m2", "m3", "m4", "m5"])
SITES = st.sampled_from([site("mx1", 1), site("mx2", 3), site("mx3", 20, 0.5)])
TROUBLE = Trouble(Outcome(Verdict.DEFERRED, Scope.SITE, reply.unreachable("mx", "refused")), 0.0)
LONG_AFTER = 1e9
INTERACTIVE = Interactive(frozenset({"user:bob"}), 0.4)
PRIORITIES = st.sampled_from([0, 0, 0, 4, -4])
NAMES = ("active", "ready", "deferred", "held")
Turn = tuple[Site, PriorityClass, str]
"""A site, and whose turn it is there."""


def kind(of: Entry) -> PriorityClass:
    return class_of(of.message, INTERACTIVE.accounts)


def turn(queue: Site, of: Entry) -> Turn:
    return queue, kind(of), of.message.account


class SchedulerMachine(RuleBasedStateMachine):
    """Every entry is in one list of the model; every list is searched from its start."""

    @initialize()
    def start(self) -> None:
        self.scheduler = Scheduler(INTERACTIVE)
        self.now = 100.0
        self.added = 0
        self.deferred: list[Entry] = []
        self.held: list[Entry] = []
        self.waiting: dict[str, list[Entry]] = {}
        self.asked: set[str] = set()
        self.bindings: dict[str, tuple[Site, float]] = {}
        self.queued: dict[Site, list[Entry]] = collections.defaultdict(list)
        self.active: list[Entry] = []
        self.slots: list[tuple[Site, Entry]] = []  # in use, and by what
        self.ended: list[Entry] = []
        self.started: dict[Site, list[Entry]] = collections.defaultdict(list)
        self.withdrawn: list[float] = []  # when withdrawn entries would have been due
        # For each that waits: whom of its class the site served since it began to wait or had its last turn.
        self.served: dict[Turn, list[str]] = {}
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
        self.served.setdefault(turn(queue, ready), [])

    def startable(self) -> set[Site]:
        """By what the limits of the sites say; these have tests of their own."""
        return {state.site for state in self.states() if state.opens <= self.now}

    def states(self) -> list[SiteQueue]:
        found = [self.scheduler.sites.get(queue) for queue in self.queued]
        return [state for state in found if state is not None]

    def is_dead(self, queue: Site) -> bool:
        return any(state.site == queue and state.outage is not None for state in self.states())

    def site_times(self) -> list[float]:
        """When a site was to be looked at, or is: it may be looked at in vain."""
        return [at for at, _, _ in self.scheduler.sites._parked]

    def took(self, taken: tuple[Site, Entry]) -> None:
        queue, started = taken
        account = started.message.account
        oldest = next(e for e in self.queued[queue] if turn(queue, e) == turn(queue, started))
        assert started is oldest
        self.queued[queue].remove(started)
        self.active.append(started)
        self.started[queue].append(started)
        self.slots.append(taken)
        self.slots_are_kept_to(queue, started)
        del self.served[turn(queue, started)]
        for (other_site, rank, other), served in self.served.items():
            if (other_site, rank) == (queue, kind(started)):
                served.append(account)
                assert served.count(account) <= 1, f"{account} overtook {other}"
        if turn(queue, started) in {turn(queue, e) for e in self.queued[queue]}:
            self.served[turn(queue, started)] = []

    def busy(self, queue: Site) -> list[Entry]:
        return [e for used, e in self.slots if used == queue]

    def slots_are_kept_to(self, queue: Site, started: Entry) -> None:
        busy = self.busy(queue)
        if self.is_dead(queue):
            assert len(busy) == 1
            return
        assert len(busy) <= queue.terms.connections
        state = self.scheduler.sites.get(queue)
        assert state is not None
        if state._urgent_until and kind(started) is not classes.INTERACTIVE:
            others = sum(kind(e) is not classes.INTERACTIVE for e in busy)
            assert others <= state.width - reserve(state.width, INTERACTIVE.share)

    # --- calls

    @rule(
        message=MESSAGES,
        domain=DOMAINS,
        account=ACCOUNTS,
        later=st.sampled_from([-5.0, 0.0, 1.0, 10.0, 10.0, 60.0]),
        number=st.integers(1, 4),
        priority=PRIORITIES,
    )
    def add(
        self,
        message: str,
        domain: str,
        account: str,
        later: float,
        number: int,
        stalled: bool = False,
        priority: int = 0,
    ) -> None:
        for _ in range(number):
            new = entry(message, domain, account, self.now + later, priority, self.added)
            new.stalled = stalled
            self.add_one(new, held=False)

    def add_one(self, new: Entry, *, held: bool) -> None:
        self.scheduler.add(new, self.now, held=held)
        self.added += 1
        if held:
            self.held.append(new)
        elif new.due > self.now:
            self.deferred.append(new)
        else:
            self.become_ready(new)

    @rule(message=MESSAGES, held=st.booleans())
    def hold(self, message: str, held: bool) -> None:
        """Or release, as the dispatcher does it: all that waits of the message is added anew."""
        expected = [e for e in self.of_message(message) if e not in self.active]
        recalled = self.scheduler.recall(message)
        assert (recalled is None) == (not self.of_message(message))
        assert sorted(map(id, recalled or ())) == sorted(map(id, expected))
        for old in expected:
            self.forget(old)
        for old in recalled or ():
            anew = Entry(old.message, old.way, old.recipients, old.attempts, old.due, old.stalled)
            self.add_one(anew, held=held)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 9.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        following = self.scheduler.advance(self.now)
        self.forget_bindings()
        # sort is stable: equal times keep their order
        for due in sorted((e for e in self.deferred if e.due <= self.now), key=lambda e: e.due):
            self.become_ready(due)
        self.deferred = [e for e in self.deferred if e.due > self.now]
        self.withdrawn = [due for due in self.withdrawn if due > self.now]
        expected = min((e.due for e in self.deferred), default=None)
        if following != expected:
            # It may look too early, for one that is not there any more, and never too late.
            assert following in {*self.withdrawn, *self.site_times()}
            assert expected is None or following < expected
        opening = [state.opens for state in self.states() if self.now < state.opens < NEVER]
        assert following is not None if opening else True
        assert all(following <= at for at in opening)

    @rule()
    def unrouted(self) -> None:
        expected = [domain for domain in self.waiting if domain not in self.asked]
        assert [way.domain for way in self.scheduler.unbound.asked()] == expected
        self.asked.update(expected)

    @rule(domain=DOMAINS, queue=SITES, seconds=st.sampled_from([0.0, 5.0, 40.0]))
    def bind(self, domain: str, queue: Site, seconds: float) -> None:
        self.scheduler.bind(Way(domain), queue, self.now + seconds, self.now)
        self.bindings[domain] = (queue, self.now + seconds)
        self.asked.discard(domain)
        for ready in self.waiting.pop(domain, []):
            self.join(queue, ready)

    @rule(domain=DOMAINS)
    def unroute(self, domain: str) -> None:
        returned = self.scheduler.unroute(Way(domain))
        expected = self.waiting.pop(domain, [])
        assert sorted(map(id, returned)) == sorted(map(id, expected))
        self.asked.discard(domain)
        self.active.extend(returned)

    @rule()
    def take(self) -> None:
        startable = self.startable()
        taken = self.scheduler.take(self.now)
        if taken is None:
            assert not startable
            return
        assert taken[0] in startable
        self.passed.pop(taken[0], None)
        for waited, turns in self.passed.items():
            turns.append(taken[0])
            assert turns.count(taken[0]) <= 1, f"{taken[0]} overtook {waited}"
        self.took(taken)

    @rule(queue=SITES)
    def take_of_site(self, queue: Site) -> None:
        startable = self.startable()
        taken = self.scheduler.take(self.now, queue)
        if taken is None:
            assert queue not in startable
            return
        assert taken[0] == queue
        assert queue in startable
        self.took(taken)
        self.passed.pop(queue, None)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), signal=st.sampled_from(Signal), domain=DOMAINS, step=st.sampled_from([1.0, 60.0]))
    def release(self, data: st.DataObject, signal: Signal, domain: str, step: float) -> None:
        queue, ended = slot = data.draw(st.sampled_from(self.slots))
        changes = self.scheduler.sites.release(queue, ended, Report(signal, TROUBLE, step, Way(domain)), self.now)
        self.slots.remove(slot)
        for change in changes:
            self.wake(change.ways)

    @rule(queue=SITES, domain=DOMAINS, backlog=st.integers(1, 9))
    def fall_silent(self, queue: Site, domain: str, backlog: int) -> None:
        """A backlog comes, and a cohort of it fails."""
        self.bind(domain, queue, 40.0)
        self.add("m1", domain, "user:ann", 0.0, backlog)
        for _ in range(5):
            self.take_of_site(queue)
        for slot in [slot for slot in self.slots if slot[0] == queue]:
            self.scheduler.sites.release(*slot, Report(UNREACHABLE, TROUBLE, 1.0, Way(domain)), self.now)
            self.slots.remove(slot)

    def wake(self, ways: tuple[Way, ...]) -> None:
        woken = [e for e in self.deferred if e.stalled and e.way in ways]
        self.scheduler.wake(ways, self.now)
        self.deferred = [e for e in self.deferred if e not in woken]
        for one in sorted(woken, key=lambda e: e.message.accepted_at):
            self.withdrawn.append(one.due)
            self.become_ready(one)

    @precondition(lambda self: self.slots)
    @rule()
    def restore(self) -> None:
        queue = self.slots[0][0]
        entries = self.started[queue]
        if not entries or entries[-1] not in self.active:
            return
        again = entries.pop()
        self.scheduler.restore(queue, again, self.now)
        self.active.remove(again)
        self.queued[queue].insert(0, again)
        self.served[turn(queue, again)] = []
        for (other_site, rank, _), served in self.served.items():
            if (other_site, rank) == (queue, kind(again)) and again.message.account in served:
                served.remove(again.message.account)

    @rule()
    def barred(self) -> None:
        for queue, kept_out, outage in self.scheduler.barred():
            assert outage.trouble is TROUBLE
            assert self.is_dead(queue)
            self.queued[queue].remove(kept_out)
            self.active.append(kept_out)
        for queue, entries in self.queued.items():
            if self.is_dead(queue):
                assert len(entries) <= 1
                for waited in [key for key in self.served if key[0] == queue]:
                    del self.served[waited]
                self.served.update({turn(queue, e): [] for e in entries})

    @precondition(lambda self: self.active)
    @rule(data=st.data(), again=st.sampled_from([None, 0.0, 10.0]), stalled=st.booleans())
    def finish(self, data: st.DataObject, again: float | None, stalled: bool) -> None:
        done = data.draw(st.sampled_from(self.active))
        if again is not None:
            before = sum(self.scheduler.counts().values())
            self.add(done.message.id, done.domain, done.message.account, again, 1, stalled=stalled)
            assert sum(self.scheduler.counts().values()) == before
        self.scheduler.finish(done)
        self.active.remove(done)
        self.ended.append(done)

    def forget_bindings(self) -> None:
        self.bindings = {
            domain: bound for domain, bound in self.bindings.items() if bound[1] - bound[1] % GRAIN + GRAIN > self.now
        }

    def of_message(self, message: str) -> list[Entry]:
        return [e for e in self.everything() if e.message.id == message]

    def everything(self) -> list[Entry]:
        return [*self.ready(), *self.deferred, *self.active, *self.held]

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
        if gone in self.held:
            self.held.remove(gone)
        if gone in self.deferred:
            self.deferred.remove(gone)
            self.withdrawn.append(gone.due)
        for domain, entries in list(self.waiting.items()):
            if gone in entries:
                entries.remove(gone)
                if not entries:
                    del self.waiting[domain]
                    self.asked.discard(domain)
        for queue, entries in self.queued.items():
            if gone in entries:
                entries.remove(gone)
                if not any(turn(queue, e) == turn(queue, gone) for e in entries):
                    self.served.pop(turn(queue, gone), None)
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
    def only_mail_of_dead_sites_is_put_off(self) -> None:
        assert all(state.outage is not None and state.entries for state in self.scheduler.sites._barred)

    @invariant()
    def nothing_is_lost(self) -> None:
        ready = sum(map(len, self.waiting.values())) + sum(map(len, self.queued.values()))
        assert ready + len(self.deferred) + len(self.active) + len(self.held) + len(self.ended) == self.added
        assert all(e.state == GONE for e in self.ended)

    @invariant()
    def census_is_exact(self) -> None:
        ready = [e for entries in (*self.waiting.values(), *self.queued.values()) for e in entries]
        counted: set[str] = set()
        expected = {}
        for entries, name in zip((self.active, ready, self.deferred, self.held), NAMES, strict=True):
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
        for message in {e.message.id for e in self.held}:
            self.hold(message, held=False)
        self.advance(LONG_AFTER)
        for domain in list(self.waiting):
            self.bind(domain, site("mx1"), 1.0)
        while self.slots:
            self.scheduler.sites.release(*self.slots.pop(), Report(SERVED), self.now)
        for _ in range(self.added + 1):  # after a step that failed the model may have entries that are nowhere else
            self.advance(1000.0)
            self.take_all()
        assert not self.ready(), "somebody starves"
        for done in self.active:
            self.scheduler.finish(done)
            self.ended.append(done)
        assert len(self.ended) == self.added == len(set(map(id, self.ended)))
        assert set(self.scheduler.counts().values()) == {0}
        self.scheduler.advance(self.now + LONG_AFTER)
        assert self.scheduler.advance(self.now + LONG_AFTER) is None
        assert self.scheduler.size == 0

    def take_all(self) -> None:
        while (taken := self.scheduler.take(self.now)) is not None:
            self.took(taken)
            self.scheduler.sites.release(*self.slots.pop(), Report(SERVED), self.now)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
