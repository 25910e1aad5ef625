"""Twenty thousand domains, each with a site of its own: what idle ones cost, and that they are forgotten."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from relayd.message.site import Way
from relayd.scheduler import bindings, sites
from relayd.scheduler.feedback import BROKEN, SERVED, Report, Signal
from relayd.scheduler.scheduler import Scheduler
from tests.unit.scheduler.entries import entry, site

DOMAINS = 20_000
HOUR = 3600.0


def domain(number: int) -> str:
    return f"domain-{number}.example"


def carry(scheduler: Scheduler, first: int, last: int, now: float, signal: Signal = BROKEN) -> None:
    """Two messages to each of these domains, from `add` to `finish`."""
    for number in range(first, last):
        for message in range(2):
            scheduler.add(entry(f"{number}-{message}", domain(number)), now)
    scheduler.advance(now)
    for way in scheduler.unbound.asked():
        scheduler.bind(way, site(f"mx.{way.domain}"), now + HOUR, now)
    while (taken := scheduler.take(now)) is not None:
        scheduler.sites.release(*taken, Report(signal), now)
        scheduler.finish(taken[1])


@pytest.fixture
def unbounded(monkeypatch):
    monkeypatch.setattr(sites, "MAX_IDLE", DOMAINS)


@pytest.mark.usefixtures("unbounded")
def test_an_idle_site_that_showed_a_limit_costs_less_than_2_kb():
    """Its domain's binding and way, itself and its queue, all together."""
    scheduler = Scheduler()
    gc.collect()
    tracemalloc.start()
    try:
        for first in range(0, DOMAINS, 1000):  # what waits at once is another's cost
            carry(scheduler, first, first + 1000, 0.0)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(scheduler.sites) == DOMAINS
    assert 500 < used / DOMAINS < 2048


def test_of_a_site_that_showed_nothing_nothing_is_kept():
    scheduler = Scheduler()
    carry(scheduler, 0, 1000, 0.0, SERVED)
    assert len(scheduler.sites) == 0


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(bindings, "MAX_BINDINGS", DOMAINS // 2)
    scheduler = Scheduler()
    for first in range(0, DOMAINS, 1000):
        carry(scheduler, first, first + 1000, first / 1000)
    scheduler.advance(DOMAINS / 1000)
    assert len(scheduler.sites) == sites.MAX_IDLE
    assert DOMAINS // 2 <= len(scheduler._bindings) < DOMAINS // 2 + 10  # and the times at which they end
    assert scheduler._bindings.last(Way(domain(DOMAINS - 1))) is not None, "those that end first go first"
    assert scheduler._bindings.last(Way(domain(0))) is None


def test_a_domain_that_is_bound_anew_all_the_time_costs_no_more():
    """A short TTL is no way to make anybody else's binding forgotten."""
    scheduler = Scheduler()
    for number in range(1000):
        scheduler.bind(Way("a.example"), site("mx.a.example"), number + 30.0, float(number))
        scheduler.advance(float(number))
    assert len(scheduler._bindings) <= 40


def test_nothing_is_kept_an_hour_later():
    scheduler = Scheduler()
    carry(scheduler, 0, DOMAINS, 0.0)
    assert scheduler.size > DOMAINS
    scheduler.advance(HOUR + bindings.GRAIN)
    assert scheduler.size == 0


def test_the_slowest_pace_is_kept_by_a_site_that_was_idle():
    """Its attempt took long, and nobody had looked at the sites since it began."""
    scheduler = Scheduler()
    slow = site("mx.a.example", rate=1 / HOUR)
    scheduler.bind(Way("a.example"), slow, 3 * HOUR, 0.0)
    scheduler.add(entry("m1"), 100.0)
    taken = scheduler.take(100.0)
    assert taken is not None
    scheduler.sites.release(*taken, Report(SERVED), 700.0)
    scheduler.finish(taken[1])
    scheduler.advance(HOUR)
    scheduler.add(entry("m2"), HOUR)
    assert scheduler.take(HOUR) is None
    assert scheduler.next == pytest.approx(HOUR + 100, abs=1)
    scheduler.advance(HOUR + 100)
    assert scheduler.take(HOUR + 100) is not None
