"""What the broker answers to each thing that a worker may say, and what a worker makes of each answer."""

from __future__ import annotations

import collections

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site, Source, Terms, Tls, Way
from relayd.scheduler import broker as brokers
from relayd.scheduler.broker import TURN, Broker
from relayd.scheduler.division import divide
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import BROKEN, CROWDED, SERVED, UNREACHABLE, Report, Signal, Trouble
from relayd.scheduler.lease import FIRST_PATIENCE, SPARE
from relayd.scheduler.lease_messages import (
    Back,
    Broken,
    Crowded,
    Grant,
    Pace,
    Recall,
    Reply,
    Request,
    Share,
    Want,
)
from relayd.scheduler.leased_sites import LeasedSites
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp import reply
from tests.unit.scheduler.entries import entry, site

MX = site("mx")
THREE = site("mx3", 3)
PACED = site("paced", 20, 10.0)
HOUR = 3600.0
TROUBLE = Trouble(Outcome(Verdict.DEFERRED, Scope.SITE, reply.unreachable("mx", "refused")), 0.0)
A, B, C, D = range(4)


# --- the broker -------------------------------------------------------------------------------------------------------


def test_what_is_wanted_is_granted_as_far_as_the_window_is_wide():
    broker = Broker()
    assert broker.receive(A, [Want(MX, 2)], 0.0) == [(A, Grant(MX, 2))]
    assert broker.receive(B, [Want(MX, 2)], 0.0) == [(B, Grant(MX, 2, shared=True))]
    assert broker.receive(C, [Want(MX, 2)], 0.0) == [(A, Recall(MX, 2)), (C, Grant(MX, 1, shared=True))][1:]


def test_whoever_has_more_than_its_part_is_asked_for_it():
    broker = Broker()
    broker.receive(A, [Want(MX, 20)], 0.0)
    assert broker.receive(B, [Want(MX, 20)], 0.0) == [(A, Recall(MX, 3))]
    assert broker.receive(B, [Want(MX, 20)], 0.0) == [], "once"
    assert broker.receive(A, [Want(MX, 20, returned=1)], 0.0) == [(B, Grant(MX, 1, shared=True))]
    assert broker.receive(A, [Want(MX, 20, returned=1)], 0.0) == [(B, Grant(MX, 1, shared=True))]
    assert broker.receive(B, [Want(MX, 0, returned=2)], 0.0) == [(A, Grant(MX, 2))]


def test_what_nobody_needs_any_more_may_be_kept():
    broker = Broker()
    broker.receive(A, [Want(MX, 20)], 0.0)
    broker.receive(B, [Want(MX, 20)], 0.0)
    assert broker.receive(B, [Want(MX, 0)], 0.0) == [(A, Grant(MX, 0))]


def test_a_worker_that_ended_leaves_what_it_held():
    broker = Broker()
    broker.receive(A, [Want(THREE, 3)], 0.0)
    assert broker.receive(B, [Want(THREE, 3)], 0.0) == [(A, Recall(THREE, 2))]
    assert broker.gone(A, 1.0) == [(B, Grant(THREE, 3))]
    assert broker.gone(B, 1.0) == []
    assert broker.size == 0


def test_more_workers_than_connections_take_turns():
    broker = Broker()
    for worker in (A, B, C):
        broker.receive(worker, [Want(THREE, 1)], 0.0)
    assert broker.receive(D, [Want(THREE, 1)], 0.0) == []
    assert broker.next == TURN
    assert broker.advance(TURN) == [(C, Recall(THREE, 0))]
    assert broker.receive(C, [Want(THREE, 1, returned=1)], TURN) == [(D, Grant(THREE, 1, shared=True))]
    assert broker.advance(2 * TURN) == [(B, Recall(THREE, 0))]


def test_the_window_is_raised_by_reports_one_at_a_time():
    broker = Broker()
    broker.receive(A, [Want(MX, 20)], 0.0)
    assert broker.receive(A, [Want(MX, 20, served=10)], 0.0) == [(A, Grant(MX, 1))]
    assert broker.receive(A, [Want(MX, 20, served=10**9)], 0.0) == [(A, Grant(MX, 1))]
    assert broker.receive(A, [Want(MX, 20, served=3)], 0.0) == []
    assert broker.receive(A, [Want(MX, 20, served=4)], 0.0) == [(A, Grant(MX, 1))]


def test_refused_connections_name_the_machines_limit():
    """Three workers with five connections, of which the site takes three."""
    broker = Broker()
    for worker, wanted in ((A, 2), (B, 2), (C, 1)):
        broker.receive(worker, [Want(MX, wanted)], 0.0)
    assert broker.receive(B, [Crowded(MX, 1), Want(MX, 2)], 1.0) == []
    assert broker.receive(C, [Crowded(MX, 1), Want(MX, 1)], 1.0) == [(A, Recall(MX, 1))]
    assert broker._divisions[MX].window.size == 3
    broker.receive(A, [Want(MX, 2, returned=1)], 1.0)
    broker.receive(A, [Want(MX, 2, served=100)], 30.0)
    assert broker._divisions[MX].window.size == 3, "kept to for a minute"


def test_attempts_that_came_to_nothing_lower_it_and_the_end_of_an_outage_restores_it():
    broker = Broker()
    broker.receive(A, [Want(MX, 5)], 0.0)
    assert broker.receive(A, [Broken(MX, 5)], 0.0) == [(A, Recall(MX, 3))]
    assert broker.receive(A, [Back(MX)], 0.0) == [(A, Grant(MX, 0))]
    broker.receive(A, [Want(MX, 20, served=10)], 0.0)
    broker.receive(A, [Back(MX)], 0.0)
    assert broker._divisions[MX].window.size == 6, "one worker's outage lowers nothing"


def test_nonsense_is_ignored():
    broker = Broker()
    assert broker.receive(A, [Crowded(MX, 5), Broken(MX, 0), Pace(MX), Want(MX, -1, returned=3, served=-1)], 0.0) == []
    assert broker.receive(A, [Want(MX, 10**9)], 0.0) == [(A, Grant(MX, 5))]
    broker.receive(A, [Want(MX, 0, returned=10**9), Crowded(MX, 10**9), Broken(MX, -5)], 0.0)
    assert broker.receive(B, [Want(MX, 10**9, returned=-3)], 0.0) == [(B, Grant(MX, 5))]
    broker.receive(B, [Want(MX, 0, returned=5)], 0.0)
    broker.gone(C, 0.0)
    assert broker.size == 0


def test_what_a_site_has_shown_is_kept_for_an_hour_and_of_so_many_sites(monkeypatch):
    broker = Broker()
    broker.receive(A, [Want(MX, 5)], 0.0)
    broker.receive(A, [Crowded(MX, 1), Want(MX, 0, returned=4)], 0.0)
    broker.advance(HOUR - 1)
    assert broker.receive(A, [Want(MX, 20)], HOUR - 1) == [(A, Grant(MX, 4))]
    broker.receive(A, [Want(MX, 0, returned=4)], HOUR)
    assert broker.next == 2 * HOUR
    broker.advance(2 * HOUR)
    assert broker.size == 0
    monkeypatch.setattr(brokers, "MAX_IDLE", 10)
    for number in range(100):
        name = site(f"mx{number}")
        broker.receive(A, [Want(name, 5)], 3 * HOUR)
        broker.receive(A, [Crowded(name, 1), Want(name, 0, returned=4)], 3 * HOUR)
    broker.advance(3 * HOUR)
    assert broker.size == 10


def test_shares_of_a_pace_are_given_and_given_anew():
    broker = Broker()
    assert broker.receive(A, [Pace(PACED)], 0.0) == [(A, Share(PACED, 10.0, 2.0))]
    assert broker.receive(B, [Pace(PACED)], 0.5) == []
    assert broker.receive(A, [Pace(PACED)], 1.0) == [(A, Share(PACED, 5.0, 3.0))]
    assert broker.advance(2.0) == [(B, Share(PACED, 5.0, 4.0))]
    broker.advance(3.0)
    broker.advance(4.0)
    assert broker.size == 0


@given(st.integers(0, 40), st.dictionaries(st.integers(0, 9), st.integers(0, 30), max_size=5))
def test_parts_are_max_min_fair(connections, wants):
    parts = divide(connections, wants)
    assert parts.keys() == wants.keys()
    assert sum(parts.values()) == min(connections, sum(wants.values()))
    for worker, part in parts.items():
        assert 0 <= part <= wants[worker]
        if part < wants[worker]:
            assert max(parts.values()) <= part + 1
    short = [worker for worker in wants if parts[worker] < wants[worker]]
    assert [parts[worker] for worker in short] == sorted((parts[w] for w in short), reverse=True), "the first get more"


def test_every_message_travels():
    full = Site(
        ((Host("mx1.example", 25, 3, implicit_tls=True),), (Host("mx2.example", 26),)),
        Terms("routes[0]", trusted=True, tls=Tls.VERIFY, messages_per_second=2.5, retry_schedule=(1.0, 2.0)),
        Source("out.example", "192.0.2.1", "2001:db8::1"),
    )
    requests: list[Request] = [Want(full, 3, 1, 7), Crowded(full, 1), Broken(full, 2), Back(full), Pace(full)]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(requests), type=list[Request]) == requests
    replies: list[Reply] = [Grant(full, 2, shared=True), Recall(full, 1), Share(full, 1.25, 100.5)]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(replies), type=list[Reply]) == replies


# --- the worker -------------------------------------------------------------------------------------------------------


class Worker:
    """A scheduler with leased sites, and the connections it would have."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(leased=True)
        assert self.scheduler.leased is not None
        self.sites: LeasedSites = self.scheduler.leased
        self.active: list[tuple[Site, Entry]] = []
        self.idle: collections.Counter[Site] = collections.Counter()
        self.number = 0

    def mail(self, of: Site, messages: int, now: float = 0.0) -> None:
        way = Way(of.groups[0][0].name)
        self.scheduler.bind(way, of, 10 * HOUR, now)
        for _ in range(messages):
            self.number += 1
            self.scheduler.add(entry(f"m{self.number}", way.domain), now)

    def start(self, now: float = 0.0) -> int:
        self.scheduler.advance(now)
        before = len(self.active)
        while (taken := self.scheduler.take(now)) is not None:
            self.active.append(taken)
        return len(self.active) - before

    def told(self, now: float = 0.0) -> list[Request]:
        self.start(now)
        return self.sites.requests(now, self.idle.__getitem__)

    def hears(self, *replies: Reply, now: float = 0.0) -> list[Request]:
        for said in replies:
            self.sites.receive(said, now)
        return self.told(now)

    def end(self, signal: Signal = SERVED, now: float = 0.0) -> None:
        of, ended = self.active.pop(0)
        self.sites.release(of, ended, Report(signal, TROUBLE, 60.0, ended.way), now)
        self.scheduler.finish(ended)


def connected(connections: int, *, mail: int, shared: bool = False) -> Worker:
    """With so much mail, and so many connections in use for it."""
    worker = Worker()
    worker.mail(MX, mail)
    worker.told()
    worker.hears(Grant(MX, connections, shared=shared))
    worker.sites.opened(MX, connections)
    return worker


def test_a_worker_asks_for_what_it_lacks_once_and_for_twice_as_many_each_time():
    worker = Worker()
    worker.mail(MX, 30)
    assert worker.told() == [Want(MX, 1)]
    worker.mail(MX, 1)
    assert worker.told() == []
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 2)]
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 4)]
    assert worker.hears(Grant(MX, 1)) == [], "one is on its way yet"
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 8)]
    assert worker.hears(Grant(MX, 4)) == [Want(MX, 16)]
    assert worker.hears(Grant(MX, 8)) == [Want(MX, 20)]
    assert worker.hears(Grant(MX, 4)) == []
    assert len(worker.active) == 20


def test_nothing_is_asked_for_a_message_that_finds_a_connection():
    worker = connected(1, mail=1)
    for _ in range(100):
        worker.end()
        assert worker.told() == []
        worker.mail(MX, 1)
        assert worker.told() == []
        assert len(worker.active) == 1


def test_what_is_not_needed_goes_back_a_second_after_its_connection_is_gone():
    worker = Worker()
    worker.mail(MX, 2)
    worker.told()
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 2)]
    worker.sites.opened(MX, 1)
    assert worker.hears(Grant(MX, 5)) == [Want(MX, 2, returned=4)]
    worker.sites.opened(MX, 2)
    worker.end()
    worker.end()
    assert worker.told() == []
    assert worker.sites.held(MX) == 2
    worker.sites.opened(MX, 1)
    assert worker.told() == []
    assert worker.scheduler.next == SPARE
    assert worker.told(SPARE) == [Want(MX, 1, returned=1)]
    worker.sites.opened(MX, 0)
    assert worker.told(SPARE) == [Want(MX, 0, returned=1)], "an only one at once"
    assert (worker.sites.held(MX), len(worker.sites)) == (0, 0)


def test_a_connection_that_follows_another_takes_its_place_unasked():
    worker = connected(3, mail=3)
    for number in range(10):
        worker.end(now=0.1 * number)
        worker.sites.opened(MX, 2)
        assert worker.told(0.1 * number) == []
        worker.mail(MX, 1)
        worker.sites.opened(MX, 3)
        assert worker.told(0.1 * number) == []
        assert len(worker.active) == 3
    assert worker.told(100.0) == []


def test_what_others_need_goes_back_at_once_though_it_might_be_needed_again():
    worker = connected(3, mail=3)
    for _ in range(3):
        worker.end()
    worker.sites.opened(MX, 0)
    assert worker.told() == []
    assert worker.hears(Recall(MX, 1)) == [Want(MX, 1, returned=2)]
    assert worker.hears(Recall(MX, 0)) == [Want(MX, 0, returned=1)]


def test_a_worker_that_drains_keeps_nothing():
    worker = connected(3, mail=3)
    for _ in range(3):
        worker.end()
    worker.sites.opened(MX, 0)
    assert worker.sites.requests(0.0, lambda _: 0, starts=False) == [Want(MX, 0, returned=3)]


def test_what_comes_after_it_is_not_wanted_any_more_goes_back_at_once():
    worker = Worker()
    worker.mail(MX, 1)
    assert worker.told() == [Want(MX, 1)]
    worker.scheduler.recall("m1")
    assert worker.told() == [Want(MX, 0)]
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 0, returned=1)]
    assert worker.hears(Recall(MX, 0), Share(MX, 1.0, 2.0)) == []
    assert len(worker.sites) == 0


def test_slots_that_end_are_not_refilled_beyond_what_was_recalled_to():
    worker = connected(3, mail=30)
    assert worker.hears(Recall(MX, 1)) == []
    assert list(worker.sites.surplus()) == []
    worker.end()
    assert worker.start() == 0
    assert list(worker.sites.surplus()) == [(MX, 0)], "its connection is idle"
    worker.sites.opened(MX, 2)
    assert worker.told() == [Want(MX, 6, returned=1, served=1)]
    worker.end()
    worker.sites.opened(MX, 1)
    assert worker.told() == [Want(MX, 6, returned=1, served=1)]
    worker.end()
    assert worker.start() == 1
    assert worker.hears(Recall(MX, 0), Grant(MX, 0)) == []
    worker.end()
    assert worker.start() == 1, "it may keep it after all"


def test_a_connection_that_was_refused_goes_back_as_such():
    worker = connected(3, mail=30)
    worker.end(CROWDED)
    assert worker.told() == [], "it may be open still, as the site sees it"
    worker.sites.opened(MX, 2)
    assert worker.told() == [Crowded(MX, 1)]
    assert len(worker.active) == worker.sites.held(MX) == 2


@pytest.mark.parametrize("shared", [False, True])
def test_the_only_connection_of_a_worker_was_one_too_many_where_others_have_some(shared):
    worker = connected(1, mail=30, shared=shared)
    assert worker.sites.shares(MX) == shared
    worker.end(CROWDED)
    worker.sites.opened(MX, 0)
    assert worker.told() == ([Crowded(MX, 1)] if shared else [Broken(MX, 1)])


def test_a_dead_site_of_which_others_have_connections_is_not_dead():
    worker = connected(5, mail=30)
    for _ in range(5):
        worker.end(UNREACHABLE)
    worker.sites.opened(MX, 0)
    assert worker.told() == [Broken(MX, 5), Want(MX, 0, returned=5)]
    assert worker.told(59.0) == []
    assert worker.told(60.0) == [Want(MX, 1)], "to probe it"
    worker.hears(Grant(MX, 1, shared=True), now=60.0)
    worker.sites.opened(MX, 1)
    worker.end(CROWDED, 61.0)
    worker.sites.opened(MX, 0)
    assert worker.told(61.0) == [Back(MX), Crowded(MX, 1)]


def test_what_was_served_with_all_in_use_is_told_seldom_and_more_seldom():
    worker = connected(5, mail=5000)
    assert worker.told() == []
    reports = []
    for _ in range(1000):
        worker.end()
        reports += worker.told()
    assert [said.served for said in reports if isinstance(said, Want)] == [10, 20, 40, 80, 160, 320]
    assert worker.hears(Grant(MX, 1)) == [Want(MX, 10, served=370)], "a grant is a reason to tell more"
    for _ in range(2 * FIRST_PATIENCE - 1):
        worker.end()
        assert worker.told() == []
    worker.end()
    assert worker.told() == [Want(MX, 10, served=20)]


def test_lost_sessions_are_told():
    worker = Worker()
    worker.mail(MX, 30)
    worker.told()
    worker.hears(Grant(MX, 2))
    worker.end(BROKEN)
    worker.end(BROKEN)
    assert worker.told() == [Broken(MX, 2)]


def test_mail_of_a_site_with_a_pace_waits_for_a_share_and_has_it_renewed():
    worker = Worker()
    worker.mail(PACED, 30)
    assert worker.told() == [Pace(PACED)], "and for no connection before"
    assert worker.hears(Share(PACED, 5.0, 2.0)) == [Want(PACED, 1)]
    assert worker.hears(Grant(PACED, 1)) == []
    assert len(worker.active) == 1
    assert worker.scheduler.next == pytest.approx(0.2)
    assert worker.told(0.2) == [Want(PACED, 2)], "the next is due, and the connection in use"
    assert worker.scheduler.next == pytest.approx(1.0), "to have the share renewed"
    assert worker.told(1.0) == [Pace(PACED)]
    worker.end(now=2.0)
    assert worker.start(2.0) == 0, "it was not, in time"
    worker.hears(Share(PACED, 5.0, 5.0), Grant(PACED, 1), now=3.0)
    assert len(worker.active) == 1
