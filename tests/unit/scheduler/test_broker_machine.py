"""Workers with real schedulers, a broker, and messages under way for any time, against a server that counts.

Whatever hypothesis makes of that: a site never has one connection too many, its pace is kept, and all comes back.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Site, Way
from relayd.scheduler.broker import TURN, Broker, Replies
from relayd.scheduler.classes import Interactive
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import BROKEN, CROWDED, SERVED, SLOWED, UNREACHABLE, Report, Signal, Trouble
from relayd.scheduler.lease import SPARE
from relayd.scheduler.lease_messages import Crowded, Reply, Request, Want
from relayd.scheduler.leased_sites import LeasedSites
from relayd.scheduler.rate import SLACK
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp import reply
from tests.unit.scheduler.entries import entry, site

TROUBLE = Trouble(Outcome(Verdict.DEFERRED, Scope.SITE, reply.unreachable("mx", "refused")), 0.0)
NARROW, SHAPED, WIDE, PACED = site("mx1", 1), site("mx2", 3), site("mx3", 20), site("mx4", 6, 0.5)
SERVED_AT_ONCE = {NARROW: 1, SHAPED: 3, WIDE: 4, PACED: 6}
"""What the servers take, and refuse beyond: WIDE less than its terms say."""
SITES = st.sampled_from([NARROW, SHAPED, WIDE, PACED])
WORKERS = st.integers(0, 2)
LONG = 1e5


@dataclass(eq=False)
class Slot:
    site: Site
    entry: Entry
    looked: bool = False
    connected: bool = False
    refused: bool = False


@dataclass(eq=False)
class Worker:
    """What the dispatcher, the pool and the connector do. up, down: messages under way."""

    up: collections.deque[Request] = field(default_factory=collections.deque)
    down: collections.deque[Reply] = field(default_factory=collections.deque)
    slots: list[Slot] = field(default_factory=list)
    idle: collections.Counter[Site] = field(default_factory=collections.Counter)
    closing: collections.Counter[Site] = field(default_factory=collections.Counter)
    scheduler: Scheduler = field(default_factory=lambda: Scheduler(Interactive(frozenset(), 0.4), leased=True))

    @property
    def sites(self) -> LeasedSites:
        assert self.scheduler.leased is not None
        return self.scheduler.leased

    def open(self, of: Site) -> int:
        connected = sum(slot.connected for slot in self.slots if slot.site == of)
        return connected + self.idle[of] + self.closing[of]


class BrokerMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.broker = Broker()
        self.workers = [Worker() for _ in range(3)]
        self.now = 100.0
        self.number = 0
        self.restarts = 0
        self.begun: list[float] = []  # at PACED
        self.before: dict[Site, int] = {}

    # --- what a worker does of itself

    def pump(self, worker: Worker) -> None:
        worker.scheduler.advance(self.now)
        for _, barred, _ in worker.scheduler.barred():
            worker.scheduler.finish(barred)
        while (taken := worker.scheduler.take(self.now)) is not None:
            self.begin(worker, Slot(*taken))
        self.settle(worker)

    def begin(self, worker: Worker, slot: Slot) -> None:
        worker.slots.append(slot)
        if slot.site == PACED:
            self.begun.append(self.now)

    def look(self, worker: Worker) -> None:
        """Those that have just got a slot take what is idle; it may be their last look at that."""
        for slot in worker.slots:
            if not slot.looked:
                slot.looked = True
                slot.connected = worker.idle[slot.site] > 0
                worker.idle[slot.site] -= slot.connected

    def dial(self, worker: Worker) -> None:
        """Those that found none, as far as there are places."""
        for slot in worker.slots:
            if slot.looked and not slot.connected and worker.open(slot.site) < worker.sites.held(slot.site):
                slot.refused = self.open(slot.site) >= SERVED_AT_ONCE[slot.site]
                slot.connected = True
                worker.sites.opened(slot.site, worker.open(slot.site))

    def settle(self, worker: Worker) -> None:
        for of, keep in [*worker.sites.surplus()]:
            shed = max(0, worker.idle[of] - keep)
            worker.idle[of] -= shed
            worker.closing[of] += shed
        requests = worker.sites.requests(self.now, worker.idle.__getitem__)
        assert all(said.connections > 0 for said in requests if isinstance(said, Crowded))
        assert all(said.returned >= 0 for said in requests if isinstance(said, Want))
        worker.up.extend(requests)

    def send(self, replies: Replies) -> None:
        for number, said in replies:
            self.workers[number].down.append(said)

    def open(self, of: Site) -> int:
        return sum(worker.open(of) for worker in self.workers)

    # --- what happens

    @rule(number=WORKERS, of=SITES, messages=st.integers(1, 12), priority=st.sampled_from([0, 0, 4]))
    def mail(self, number: int, of: Site, messages: int, priority: int) -> None:
        worker = self.workers[number]
        name = of.groups[0][0].name
        worker.scheduler.bind(Way(name), of, self.now + LONG, self.now)
        for _ in range(messages):
            self.number += 1
            worker.scheduler.add(entry(f"m{self.number}", name, priority=priority), self.now)
        self.pump(worker)

    @rule(number=WORKERS)
    def begun_attempts_look(self, number: int) -> None:
        self.look(self.workers[number])
        self.settle(self.workers[number])

    @rule(number=WORKERS)
    def dialled(self, number: int) -> None:
        """Hosts have been found: until now, slots were in use without a connection."""
        self.look(self.workers[number])
        self.dial(self.workers[number])
        self.settle(self.workers[number])

    @precondition(lambda self: any(worker.slots for worker in self.workers))
    @rule(data=st.data(), signal=st.sampled_from([SERVED, SERVED, SERVED, BROKEN, UNREACHABLE, SLOWED]))
    def end(self, data: st.DataObject, signal: Signal) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.slots]))
        self.ended(worker, data.draw(st.sampled_from(worker.slots)), signal)

    def ended(self, worker: Worker, slot: Slot, signal: Signal) -> None:
        if not slot.connected:
            return  # it looks for a host, or waits for a place
        said = CROWDED if slot.refused else signal
        worker.slots.remove(slot)
        (worker.idle if said in {SERVED, SLOWED} else worker.closing)[slot.site] += 1
        again = said is CROWDED and worker.sites.shares(slot.site)
        if again:
            worker.scheduler.restore(slot.site, slot.entry, self.now)
        report = Report(said, TROUBLE, 60.0, slot.entry.way)
        worker.sites.release(slot.site, slot.entry, report, self.now)
        if not again:
            worker.scheduler.finish(slot.entry)
        self.pump(worker)

    @rule(number=WORKERS, of=SITES)
    def idle_connections_end(self, number: int, of: Site) -> None:
        worker = self.workers[number]
        worker.closing[of] += worker.idle.pop(of, 0)

    @rule(number=WORKERS, of=SITES)
    def closed(self, number: int, of: Site) -> None:
        worker = self.workers[number]
        if worker.closing.pop(of, 0):
            worker.sites.opened(of, worker.open(of))
            self.settle(worker)

    @rule(number=WORKERS, most=st.integers(1, 5))
    def broker_hears(self, number: int, most: int) -> None:
        up = self.workers[number].up
        requests = [up.popleft() for _ in range(min(most, len(up)))]
        # Of one batch, a request can take what the window allows, and then a report makes that smaller.
        self.before = {of: max(each.held, each.window.size) for of, each in self.broker._divisions.items()}
        self.send(self.broker.receive(number, requests, self.now))

    @rule(number=WORKERS, most=st.integers(1, 5))
    def worker_hears(self, number: int, most: int) -> None:
        worker = self.workers[number]
        for _ in range(min(most, len(worker.down))):
            worker.sites.receive(worker.down.popleft(), self.now)
        self.pump(worker)

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.3, 1.0, 2.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.send(self.broker.advance(self.now))
        for worker in self.workers:
            self.pump(worker)

    @rule()
    def all_hear(self) -> None:
        """What was under way when it began."""
        for number in range(len(self.workers)):
            self.broker_hears(number, 1000)
            self.beyond_the_window_less_and_less_is_held()
        for number in range(len(self.workers)):
            self.worker_hears(number, 1000)

    @rule(of=SITES, messages=st.integers(1, 12))
    def everybody_has_mail(self, of: Site, messages: int) -> None:
        for number in range(len(self.workers)):
            self.mail(number, of, messages, 0)
        self.exchange()

    @rule(number=WORKERS, signal=st.sampled_from([SERVED, SERVED, BROKEN]))
    def all_end(self, number: int, signal: Signal) -> None:
        for slot in [*self.workers[number].slots]:
            self.ended(self.workers[number], slot, signal)

    @rule(number=WORKERS, really=st.sampled_from([False, False, True]))
    def worker_dies(self, number: int, *, really: bool) -> None:
        if not really:
            return
        self.workers[number] = Worker()
        self.restarts += 1
        self.send(self.broker.gone(number, self.now))

    # --- what always holds

    @invariant()
    def no_connection_too_many(self) -> None:
        for of in SERVED_AT_ONCE:
            assert self.open(of) <= of.terms.connections
            division = self.broker._divisions.get(of)
            assert self.open(of) <= (division.held if division else 0)
            for number, worker in enumerate(self.workers):
                holding = division._holdings.get(number) if division else None
                assert worker.open(of) <= worker.sites.held(of) <= (holding.held if holding else 0)
                assert sum(slot.site == of for slot in worker.slots) <= worker.sites.held(of)
                # Who has a slot finds a place once those that were closed are gone, however long others are kept idle.
                looked = sum(slot.looked for slot in worker.slots if slot.site == of)
                assert looked + worker.idle[of] <= worker.sites.held(of)

    @invariant()
    def beyond_the_window_less_and_less_is_held(self) -> None:
        for of, division in self.broker._divisions.items():
            assert division.held <= max(division.window.size, self.before.get(of, 0))
        self.before = {of: division.held for of, division in self.broker._divisions.items()}

    @invariant()
    def the_pace_is_kept(self) -> None:
        for first, at in enumerate(self.begun):
            most = PACED.terms.messages_per_second * (self.now - at + SLACK) + len(self.workers) + self.restarts
            assert len(self.begun) - first <= most + 1e-6

    def teardown(self) -> None:
        """All mail that there is gets through while all have some, and then nothing is held, and nothing remembered."""
        if not hasattr(self, "broker"):
            return
        for _ in range(2000):
            if not any(sum(worker.scheduler.counts().values()) for worker in self.workers):
                break
            self.exchange()
            for worker in self.workers:
                for slot in [*worker.slots]:
                    self.ended(worker, slot, SERVED)
            self.time_passes(TURN)
        self.the_pace_is_kept()
        assert not any(sum(worker.scheduler.counts().values()) for worker in self.workers), "somebody starves"
        for number in range(len(self.workers)):
            for of in SERVED_AT_ONCE:
                self.idle_connections_end(number, of)
        self.exchange()
        self.time_passes(SPARE)
        self.exchange()
        assert not any(division.held for division in self.broker._divisions.values())
        for _ in range(3):
            self.time_passes(2 * LONG)
            self.exchange()
        assert self.broker.size == 0
        assert [worker.scheduler.size for worker in self.workers] == [0] * len(self.workers)

    def exchange(self) -> None:
        """Until there is nothing to say."""
        for _ in range(1000):
            for number in range(len(self.workers)):
                for of in SERVED_AT_ONCE:
                    self.closed(number, of)
                self.dialled(number)
            if not any(worker.up or worker.down for worker in self.workers):
                return
            for number in range(len(self.workers)):
                self.broker_hears(number, 1000)
                self.worker_hears(number, 1000)
                self.no_connection_too_many()
                self.beyond_the_window_less_and_less_is_held()
        raise AssertionError("they talk for ever")


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
