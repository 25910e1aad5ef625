"""What of a message waits can be taken out: when nobody needs it here for now, or to be scheduled anew."""

from __future__ import annotations

import pytest

from relayd.message.site import Way
from relayd.scheduler import deferred
from relayd.scheduler.census import GONE
from relayd.scheduler.feedback import SERVED, Report
from relayd.scheduler.scheduler import Scheduler
from tests.unit.scheduler.entries import entry, site

MX = site("mx")
NOW = 100.0


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def test_who_is_unknown_is_not_needed(scheduler):
    assert scheduler.withdraw("m1", NOW, 0)


def test_what_is_due_soon_is_needed(scheduler):
    scheduler.add(entry(due=NOW + 10), NOW)
    assert not scheduler.withdraw("m1", NOW + 10, 0)
    assert scheduler.counts()["deferred"] == 1
    assert scheduler.withdraw("m1", NOW + 9, 0)
    assert sum(scheduler.counts().values()) == 0
    assert scheduler.advance(NOW + 10) is None
    assert scheduler.size == 0


def test_what_is_active_is_needed(scheduler):
    scheduler.bind(Way("a.example"), MX, NOW + 50, NOW)
    scheduler.add(entry(), NOW)
    _, taken = scheduler.take(NOW)
    assert not scheduler.withdraw("m1", NOW, 0)
    scheduler.finish(taken)
    assert scheduler.withdraw("m1", NOW, 0)


@pytest.mark.parametrize("bound", [False, True])
def test_what_is_ready_is_needed_while_its_lane_is_short(scheduler, bound):
    if bound:
        scheduler.bind(Way("a.example"), MX, NOW + 50, NOW)
    for number in range(3):
        scheduler.add(entry(f"m{number}"), NOW)
    assert not scheduler.withdraw("m0", NOW, 3)
    assert scheduler.withdraw("m0", NOW, 2)
    assert not scheduler.withdraw("m1", NOW, 2)
    assert scheduler.lanes.of("a.example", "user:ann") == 2
    if not bound:
        scheduler.bind(Way("a.example"), MX, NOW + 50, NOW)
    assert scheduler.take(NOW)[1].message.id == "m1"


def test_all_of_a_message_or_nothing(scheduler):
    for domain in ("a.example", "b.example"):
        scheduler.add(entry("m1", domain, due=NOW + 100), NOW)
    scheduler.add(entry("m1", "c.example", due=NOW + 5), NOW)
    assert not scheduler.withdraw("m1", NOW + 60, 0)
    assert scheduler.lanes.total == 3
    scheduler.advance(NOW + 5)
    assert not scheduler.withdraw("m1", NOW + 60, 1)
    assert scheduler.withdraw("m1", NOW + 60, 0)
    assert scheduler.lanes.total == 0
    assert [way.domain for way in scheduler.unbound.asked()] == [], "nobody waits for the domain any more"


def test_held_mail_is_not_needed_and_never_due(scheduler):
    scheduler.add(entry(), NOW, held=True)
    assert scheduler.counts()["held"] == 1
    assert scheduler.lanes.total == 0
    assert scheduler.advance(NOW + 1e6) is None
    assert [way.domain for way in scheduler.unbound.asked()] == []
    assert scheduler.withdraw("m1", NOW, 0)
    assert scheduler.size == 0


def test_many_that_were_withdrawn_are_not_remembered(scheduler, monkeypatch):
    monkeypatch.setattr(deferred, "DEAD_ENTRIES", 10)
    for number in range(1000):
        scheduler.add(entry(f"m{number}", due=NOW + 1000 + number), NOW)
    for number in range(990):
        assert scheduler.withdraw(f"m{number}", NOW, 0)
    assert scheduler.size < 100
    assert scheduler.advance(NOW + 1989) == NOW + 1990.0
    assert scheduler.counts()["deferred"] == 10


def test_a_message_that_comes_back_is_scheduled_once(scheduler):
    scheduler.add(entry(due=NOW + 100), NOW)
    assert scheduler.withdraw("m1", NOW, 0)
    scheduler.add(entry(due=NOW + 100), NOW)
    scheduler.bind(Way("a.example"), MX, NOW + 500, NOW)
    assert scheduler.advance(NOW + 100) is None
    assert scheduler.take(NOW) is not None
    scheduler.sites.release(MX, entry(), Report(SERVED), NOW)
    assert scheduler.take(NOW) is None


def test_a_withdrawn_site_that_was_full_starts_nothing(scheduler):
    scheduler.bind(Way("a.example"), MX, NOW + 500, NOW)
    for number in range(2):
        scheduler.add(entry(f"m{number}"), NOW)
    assert scheduler.take(NOW) is not None
    assert scheduler.withdraw("m1", NOW, 0)
    scheduler.sites.release(MX, entry(), Report(SERVED), NOW)
    assert scheduler.take(NOW) is None
    scheduler.add(entry("m2"), NOW)
    assert scheduler.take(NOW) is not None


def test_what_waits_is_recalled_and_what_is_active_stays(scheduler):
    scheduler.bind(Way("a.example"), MX, NOW + 500, NOW)
    scheduler.add(entry("m1"), NOW)
    _, active = scheduler.take(NOW)
    scheduler.add(entry("m1", due=NOW + 10), NOW)
    scheduler.add(entry("m1", "b.example"), NOW)
    scheduler.add(entry("m1", "c.example"), NOW, held=True)
    recalled = scheduler.recall("m1")
    assert {one.domain for one in recalled} == {"a.example", "b.example", "c.example"}
    assert all(one.state == GONE for one in recalled)
    assert scheduler.counts() == {"held": 0, "deferred": 0, "ready": 0, "active": 1}
    scheduler.finish(active)
    assert scheduler.recall("m1") is None


def test_what_stands_where_its_domain_was_bound_before_is_recalled(scheduler):
    for message in ("m0", "m1"):
        scheduler.add(entry(message), NOW)
    scheduler.bind(Way("a.example"), MX, NOW + 10, NOW)
    scheduler.take(NOW)
    scheduler.bind(Way("a.example"), site("other"), NOW + 300, NOW)
    assert len(scheduler.recall("m1")) == 1


def test_what_stands_where_its_domain_was_bound_once_is_recalled(scheduler):
    for message in ("m0", "m1"):
        scheduler.add(entry(message), NOW)
    scheduler.bind(Way("a.example"), MX, NOW + 10, NOW)
    scheduler.take(NOW)
    scheduler.advance(NOW + 20)
    assert len(scheduler.recall("m1")) == 1
    assert scheduler.counts()["ready"] == 0
