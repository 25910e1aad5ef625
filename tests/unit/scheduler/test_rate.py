"""The pace of a site: kept where it is configured, found where the site has one of its own."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable

import pytest

from relayd.scheduler.rate import SLACK, Rate

Law = Callable[[float], bool]


def starts(rate: Rate, seconds: float, late: float = 0.0) -> list[float]:
    """When messages start that are always there, by a clock that is `late`."""
    times, now = [], 0.0
    while now < seconds:
        times.append(now)
        rate.start(now)
        now = max(now, rate.next + late)
    return times


@pytest.mark.parametrize("limit", [0.1, 1.0, 7.0, 50.0, 900.0])
@pytest.mark.parametrize("late", [0.0, 0.001, 0.009, 0.3])
def test_no_stretch_of_time_sees_more_than_its_share(limit, late):
    times = starts(Rate(limit, 0.0), 40 / limit, late)
    for length in (0.5, 1.0, 3.0, 10.0):
        for first in range(len(times)):
            within = sum(1 for time in times[first:] if time < times[first] + length)
            assert within <= limit * (length + SLACK) + 1 + 1e-6


@pytest.mark.parametrize("limit", [1.0, 50.0])
def test_a_timer_that_is_a_little_late_costs_no_pace(limit):
    assert len(starts(Rate(limit, 0.0), 100.0, 0.0015)) >= 0.999 * limit * 100


def test_what_was_not_sent_is_not_made_up_for():
    rate = Rate(10.0, 0.0)
    rate.start(0.0)
    rate.start(100.0)
    assert rate.next >= 100.0 + 0.1 - SLACK


def test_without_a_limit_nothing_waits():
    rate = Rate(0.0, 5.0)
    for _ in range(1000):
        rate.start(5.0)
        rate.served(5.0)
    assert rate.next <= 5.0
    assert rate.limit is None


# --- a server with a limit of its own -----------------------------------------------------------------------------------


def sliding(limit: float, seconds: float = 1.0) -> Law:
    """At most `limit * seconds` in any stretch of so many seconds; what is refused doesn't count."""
    taken: collections.deque[float] = collections.deque()

    def takes(now: float) -> bool:
        while taken and taken[0] <= now - seconds:
            taken.popleft()
        if len(taken) >= limit * seconds:
            return False
        taken.append(now)
        return True

    return takes


def bucket(limit: float, burst: float) -> Law:
    """Tokens that come at `limit` a second, `burst` at most."""
    state = [burst, 0.0]

    def takes(now: float) -> bool:
        state[0] = min(burst, state[0] + (now - state[1]) * limit)
        state[1] = now
        if state[0] < 1:
            return False
        state[0] -= 1
        return True

    return takes


def calendar(limit: float) -> Law:
    """So many in each second of the clock."""
    counts: collections.Counter[int] = collections.Counter()

    def takes(now: float) -> bool:
        counts[int(now)] += 1
        return counts[int(now)] <= limit

    return takes


def play(law: Law, minutes: int, most: float = 0.0, flying: int = 20, latency: float = 0.02) -> list[tuple[int, int]]:
    """For each minute, how many were taken and how many refused, of mail that is always there."""
    rate, now = Rate(most, 0.0), 0.0
    answers: list[tuple[float, int, bool]] = []
    number = itertools.count()
    tally = [[0, 0] for _ in range(minutes)]
    while now < 60 * minutes:
        if len(answers) < flying and rate.next <= now:
            rate.start(now)
            heapq.heappush(answers, (now + latency, next(number), law(now + latency / 2)))
            continue
        now = min(answers[0][0] if answers else rate.next, rate.next if len(answers) < flying else float("inf"))
        while answers and answers[0][0] <= now:
            at, _, taken = heapq.heappop(answers)
            (rate.served if taken else rate.refused)(at)
            if now < 60 * minutes:
                tally[int(now // 60)][not taken] += 1
    return [(taken, refused) for taken, refused in tally]


LAWS = {
    "sliding": sliding,
    "bucket": lambda limit: bucket(limit, limit),
    "small bucket": lambda limit: bucket(limit, max(limit / 10, 1)),
    "calendar": calendar,
}


@pytest.mark.parametrize(("limit", "share"), [(5, 0.75), (50, 0.95), (400, 0.95)])
@pytest.mark.parametrize("law", LAWS)
def test_the_pace_of_a_server_is_found_and_kept(law, limit, share):
    minutes = play(LAWS[law](limit), 6)
    refused = [refused / (taken + refused) for taken, refused in minutes]
    goodput = [taken / (60 * limit) for taken, _ in minutes]
    assert refused[0] <= 0.2
    assert max(refused[1:]) <= 0.05
    assert min(goodput[1:]) >= share


def play_together(law: Law, minutes: int, workers: int, latency: float = 0.02) -> list[tuple[int, int]]:
    """As `play`, of workers that have a connection or more each and learn by themselves."""
    rates = [Rate(0.0, 0.0) for _ in range(workers)]
    flying = [0] * workers
    answers: list[tuple[float, int, int, bool]] = []
    number, now = itertools.count(), 0.0
    tally = [[0, 0] for _ in range(minutes)]
    while now < 60 * minutes:
        for worker, rate in enumerate(rates):
            while flying[worker] < 20 // workers and rate.next <= now:
                rate.start(now)
                flying[worker] += 1
                heapq.heappush(answers, (now + latency, next(number), worker, law(now + latency / 2)))
        waiting = (rate.next for worker, rate in enumerate(rates) if flying[worker] < 20 // workers)
        now = min((*waiting, *(at for at, *_ in answers[:1])))
        while answers and answers[0][0] <= now:
            at, _, worker, taken = heapq.heappop(answers)
            flying[worker] -= 1
            (rates[worker].served if taken else rates[worker].refused)(at)
            if now < 60 * minutes:
                tally[int(now // 60)][not taken] += 1
    return [(taken, refused) for taken, refused in tally]


@pytest.mark.parametrize(("limit", "most_refused"), [(50, 0.025), (400, 0.01)])
@pytest.mark.parametrize("law", LAWS)
def test_workers_that_learn_by_themselves_find_the_pace_together(law, limit, most_refused):
    minutes = play_together(LAWS[law](limit), 6, 4)
    refused = [refused / (taken + refused) for taken, refused in minutes]
    goodput = [taken / (60 * limit) for taken, _ in minutes]
    assert refused[0] <= 0.05
    assert max(refused[1:]) <= most_refused
    assert min(goodput[1:]) >= 0.94


def test_a_quota_that_is_spent_is_asked_for_less_and_less():
    taken, refused = zip(*play(sliding(1000 / 3600, 3600), 130), strict=True)
    assert sum(taken[:60]) == 1000
    assert sum(refused[1:60]) <= 20
    assert sum(taken[60:130]) >= 200


def test_a_pace_that_the_server_gives_up_is_forgotten():
    rate = Rate(0.0, 0.0)
    now = 0.0
    for _ in range(10):
        rate.served(now)
        now += 0.1
    rate.refused(now)
    slow = rate.limit
    assert slow is not None
    while rate.limit is not None:
        now = max(now, rate.next)
        rate.start(now)
        rate.served(now)
        assert now < 300
    assert rate.next <= now + SLACK


def test_one_refusal_where_little_is_sent_slows_little():
    """Perhaps it was about its recipient alone."""
    rate = Rate(0.0, 0.0)
    rate.start(0.0)
    rate.refused(0.1)
    taken, now = 0, 0.1
    while now < 10.0:
        now = max(now, rate.next)
        rate.start(now)
        rate.served(now)
        taken += 1
    assert taken > 200


def test_what_is_configured_is_never_exceeded():
    minutes = play(sliding(50), 3, most=20)
    assert all(taken <= 20 * 60 + 2 for taken, _ in minutes)
    assert not any(refused for _, refused in minutes)
