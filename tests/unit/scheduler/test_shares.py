"""A pace that workers share: what each is given, and that together they never start more than it allows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.scheduler.rate import SLACK, Rate
from relayd.scheduler.shares import SHORTEST_TERM, Shares


def given_to(shares: Shares, now: float) -> dict[int, float]:
    return {worker: round(per_second, 6) for worker, per_second, _ in shares.give(now)}


def test_one_alone_has_all_of_it():
    shares = Shares(10.0)
    shares.ask(1)
    assert shares.give(100.0) == [(1, 10.0, 102.0)]
    assert given_to(shares, 100.0) == {}, "who did not ask is not told"


def test_one_that_comes_anew_waits_until_the_others_have_no_more_than_their_part():
    shares = Shares(10.0)
    shares.ask(1)
    assert given_to(shares, 100.0) == {1: 10.0}
    shares.ask(2)
    assert given_to(shares, 100.5) == {}
    shares.ask(1)
    assert given_to(shares, 101.0) == {1: 5.0}, "renewed, as one of two"
    assert shares.next == 102.0
    assert given_to(shares, 101.9) == {}, "it may not have heard of that, and still go by the former share"
    assert given_to(shares, 102.0) == {2: 5.0}


def test_whoever_does_not_renew_leaves_its_part():
    shares = Shares(9.0)
    for worker in (1, 2, 3):
        shares.ask(worker)
    assert given_to(shares, 0.0) == {1: 3.0, 2: 3.0, 3: 3.0}
    shares.ask(1)
    assert given_to(shares, 1.0) == {1: 3.0}
    shares.ask(1)
    assert given_to(shares, 2.5) == {1: 9.0}


def test_what_a_worker_had_that_has_ended_is_free_at_once():
    shares = Shares(10.0)
    shares.ask(1)
    shares.give(0.0)
    shares.ask(2)
    shares.gone(1)
    assert given_to(shares, 0.1) == {2: 10.0}
    shares.gone(2)
    assert not shares


@pytest.mark.parametrize(("rate", "term"), [(1000.0, 2.0), (1.0, 2.0), (0.1, 20.0), (1 / 3600, 60.0)])
def test_shares_of_a_slow_pace_are_good_for_longer(rate, term):
    assert Shares(rate).term == term


def test_who_waited_for_half_of_an_interval_waits_for_the_other_half_at_its_new_share():
    rate = Rate(10.0, 0.0, lapsed=True)
    rate.share(1.0, 100.0, 0.0)
    rate.start(0.0)
    rate.share(0.5, 100.0, 0.5)
    assert rate.next == pytest.approx(1.5)
    rate.share(2.0, 100.0, 1.0)
    assert rate.next == pytest.approx(1.125)
    rate.until = 1.025
    rate.lapse()
    rate.share(1.0, 100.0, 50.0)
    assert rate.next == pytest.approx(50.2), "no time counts in which it had none"


def test_a_share_that_ended_on_its_way_is_none():
    rate = Rate(10.0, 0.0, lapsed=True)
    rate.share(1.0, 0.5, 0.0)
    rate.start(0.0)
    rate.share(1.0, 9.0, 10.0)
    assert rate.lapsed
    rate.share(1.0, 30.0, 20.0)
    assert rate.next == pytest.approx(20.5)


def test_a_pause_that_the_site_asked_for_is_not_made_shorter_by_a_larger_share():
    rate = Rate(10.0, 0.0, lapsed=True)
    rate.share(1.0, 100.0, 0.0)
    rate.refused(0.5)
    assert rate.next == 1.5
    rate.share(100.0, 200.0, 0.6)
    assert rate.next == 1.5


def test_a_pace_that_was_learned_below_the_share_stays():
    rate = Rate(100.0, 0.0, lapsed=True)
    rate.share(100.0, 100.0, 0.0)
    rate.refused(0.5)
    assert rate.limit == 9.5
    rate.share(50.0, 100.0, 1.0)
    assert (rate.limit, rate.learned) == (9.5, True)
    rate.share(5.0, 100.0, 1.0)
    assert (rate.limit, rate.learned) == (5.0, False)


class Worker:
    """One that starts a message whenever it may. told: shares under way to it, and when they arrive."""

    def __init__(self, pace: float) -> None:
        self.rate = Rate(pace, 0.0, lapsed=True)
        self.told: list[tuple[float, float, float]] = []
        self.asked = False
        self.busy = False

    def hear(self, now: float) -> None:
        while self.told and self.told[0][0] <= now:
            _, share, until = self.told.pop(0)
            self.asked = False
            self.rate.share(share, until, now)

    def starts(self, now: float) -> int:
        if now >= self.rate.until:
            self.rate.lapse()
        number = 0
        while self.busy and not self.rate.lapsed and self.rate.next <= now:
            self.rate.start(now)
            number += 1
        return number


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.sampled_from([0.4, 5.0, 60.0]), st.integers(0, 10**9))
def test_no_more_start_than_the_pace_allows_whoever_comes_and_goes(workers, pace, seed):
    """Steps of some milliseconds; a share takes up to half a second to arrive."""
    dice = random.Random(seed)
    shares, now, begun = Shares(pace), 1.0, []
    all_workers = {number: Worker(pace) for number in range(workers)}
    for _ in range(1500):
        now += dice.choice([0.001, 0.004, 0.02, 0.05])
        for number, worker in all_workers.items():
            if dice.random() < 0.01:
                worker.busy = not worker.busy
            worker.hear(now)
            begun += [now] * worker.starts(now)
            if worker.busy and not worker.asked and (worker.rate.lapsed or dice.random() < 0.05):
                worker.asked = True
                shares.ask(number)
        for number, share, until in shares.give(now):
            told = all_workers[number].told
            told.append((max(now + 0.5 * dice.random(), told[-1][0] if told else 0.0), share, until))
        in_force = [w.rate._most or 0.0 for w in all_workers.values() if not w.rate.lapsed and now < w.rate.until]
        assert sum(in_force) <= pace * (1 + 1e-9)
    for first, at in enumerate(begun):
        for last in range(first, len(begun), max(1, len(begun) // 50)):
            assert last - first + 1 <= pace * (begun[last] - at + SLACK) + workers + 1e-6


def test_those_that_have_mail_use_the_whole_pace():
    shares, now, begun = Shares(50.0), 0.0, 0
    workers = {number: Worker(50.0) for number in range(3)}
    for step in range(20_000):
        now += 0.002
        for number, worker in workers.items():
            worker.busy = number < 2 or step < 5000
            worker.hear(now)
            begun += worker.starts(now)
            if worker.busy and not worker.asked and (worker.rate.lapsed or now > worker.rate.until - SHORTEST_TERM / 2):
                worker.asked = True
                shares.ask(number)
        for number, share, until in shares.give(now):
            workers[number].told.append((now + 0.01, share, until))
    assert begun == pytest.approx(50.0 * now, rel=0.06)
