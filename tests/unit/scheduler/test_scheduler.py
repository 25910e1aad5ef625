"""The scheduler's promises one by one; `test_scheduler_machine` searches for what these forget."""

import pytest

from relayd.message.site import Site, Way
from relayd.scheduler import scheduler as module
from relayd.scheduler.bindings import GRAIN
from relayd.scheduler.feedback import BROKEN, SERVED, Report
from relayd.scheduler.scheduler import Scheduler
from relayd.scheduler.sites import MEMORY
from tests.unit.scheduler.entries import entry, site

MX1, MX2, MX3 = site("mx1"), site("mx2"), site("mx3")
ONE, TWO = site("one", 1), site("two", 2)
"""Named for how many connections they take."""

NOW = 0.0
OK = Report(SERVED)
ALWAYS = float("inf")


def _bound(**domains: Site) -> Scheduler:
    scheduler = Scheduler()
    for domain, to in domains.items():
        scheduler.bind(Way(domain), to, ALWAYS, 0.0)
    return scheduler


def _taken(scheduler: Scheduler, of: Site | None = None) -> list[str]:
    ids = []
    while (taken := scheduler.take(NOW, of)) is not None:
        ids.append(taken[1].message.id)
    return ids


def _asked(scheduler: Scheduler) -> list[str]:
    return [way.domain for way in scheduler.unbound.asked()]


def test_an_entry_waits_for_its_domain_to_be_bound() -> None:
    scheduler = Scheduler()
    first = entry(domain="a")
    scheduler.add(first, 0.0)
    assert scheduler.take(NOW) is None
    assert scheduler.counts()["ready"] == 1
    assert _asked(scheduler) == ["a"]
    scheduler.bind(Way("a"), MX1, 10.0, 0.0)
    assert scheduler.take(NOW) == (MX1, first)
    assert scheduler.counts()["active"] == 1


def test_a_domain_is_handed_out_once_until_it_is_answered() -> None:
    scheduler = Scheduler()
    scheduler.add(entry("m1", "a"), 0.0)
    assert _asked(scheduler) == ["a"]
    scheduler.add(entry("m2", "a"), 0.0)
    assert _asked(scheduler) == []
    assert [e.message.id for e in scheduler.unroute(Way("a"))] == ["m1", "m2"]
    scheduler.add(entry("m3", "a"), 0.0)
    assert _asked(scheduler) == ["a"]


def test_domains_are_handed_out_longest_waiting_first() -> None:
    scheduler = Scheduler()
    for domain in ("c", "a", "b"):
        scheduler.add(entry(domain, domain), 0.0)
    assert _asked(scheduler) == ["c", "a", "b"]


def test_a_binding_ends_at_its_time() -> None:
    scheduler = Scheduler()
    scheduler.bind(Way("a"), MX1, 10.0, 0.0)
    scheduler.add(entry("before", "a"), 9.9)
    scheduler.add(entry("after", "a"), 10.0)
    assert _taken(scheduler) == ["before"]
    assert _asked(scheduler) == ["a"]


def test_a_later_binding_outlives_the_end_of_an_earlier_one() -> None:
    scheduler = Scheduler()
    scheduler.bind(Way("a"), MX1, 10.0, 0.0)
    scheduler.bind(Way("a"), MX2, 20.0, 0.0)
    scheduler.advance(15.0)
    scheduler.add(entry(domain="a"), 15.0)
    taken = scheduler.take(NOW)
    assert taken is not None
    assert taken[0] == MX2


def test_an_entry_is_deferred_until_it_is_due() -> None:
    scheduler = _bound(a=MX1)
    scheduler.add(entry("late", "a", due=20.0), 0.0)
    scheduler.add(entry("soon", "a", due=10.0), 0.0)
    assert scheduler.advance(9.9) == 10.0
    assert _taken(scheduler) == []
    assert scheduler.advance(10.0) == 20.0
    assert _taken(scheduler) == ["soon"]
    assert scheduler.advance(20.0) is None
    assert _taken(scheduler) == ["late"]


def test_entries_due_at_the_same_time_keep_their_order() -> None:
    scheduler = _bound(a=MX1)
    for name in ("m3", "m1", "m2"):
        scheduler.add(entry(name, "a", due=5.0), 0.0)
    scheduler.advance(5.0)
    assert _taken(scheduler) == ["m3", "m1", "m2"]


def test_one_advance_does_a_bounded_amount() -> None:
    scheduler = _bound(a=MX1)
    for number in range(module.MOVED_AT_ONCE + 1):
        scheduler.add(entry(f"m{number}", "a", due=5.0), 0.0)
    assert scheduler.advance(5.0) == 5.0
    assert scheduler.counts()["deferred"] == 1
    assert scheduler.advance(5.0) is None


def test_a_site_uses_no_more_than_its_slots() -> None:
    scheduler = _bound(a=TWO)
    for number in range(4):
        scheduler.add(entry(f"m{number}", "a"), 0.0)
    assert _taken(scheduler) == ["m0", "m1"]
    assert scheduler.take(NOW, TWO) is None
    scheduler.sites.release(TWO, entry(), OK, NOW)
    assert _taken(scheduler, TWO) == ["m2"]


def test_two_domains_of_one_site_share_its_slots() -> None:
    scheduler = _bound(a=ONE, b=site("one", 1))
    scheduler.add(entry("m1", "a"), 0.0)
    scheduler.add(entry("m2", "b"), 0.0)
    assert _taken(scheduler) == ["m1"]


def test_a_full_site_does_not_hold_up_others() -> None:
    scheduler = _bound(slow=ONE, fast=MX2)
    for number in range(3):
        scheduler.add(entry(f"s{number}", "slow"), 0.0)
    scheduler.add(entry("f", "fast"), 0.0)
    assert _taken(scheduler) == ["s0", "f"]


def test_sites_take_turns() -> None:
    scheduler = _bound(a=MX1, b=MX2, c=MX3)
    for domain in ("a", "a", "a", "b", "b", "c"):
        scheduler.add(entry(domain, domain), 0.0)
    assert _taken(scheduler) == ["a", "b", "c", "a", "b", "a"]


def test_a_site_that_more_mail_arrives_for_keeps_its_turn() -> None:
    scheduler = _bound(a=MX1, b=MX2)
    scheduler.add(entry("a0", "a"), 0.0)
    for number in range(3):
        scheduler.add(entry(f"b{number}", "b"), 0.0)
    scheduler.add(entry("other", "other"), 0.0)
    scheduler.bind(Way("other"), MX1, ALWAYS, 0.0)
    scheduler.add(entry("a1", "a"), 0.0)
    assert _taken(scheduler)[:2] == ["a0", "b0"]


def test_taking_of_one_site_takes_nothing_of_another() -> None:
    scheduler = _bound(a=MX1, b=MX2)
    scheduler.add(entry(domain="a"), 0.0)
    assert scheduler.take(NOW, MX2) is None
    assert scheduler.take(NOW, MX3) is None


def test_a_hundred_thousand_of_one_account_delay_another_by_one() -> None:
    scheduler = _bound(a=TWO)
    for number in range(100_000):
        scheduler.add(entry(f"bulk{number}", "a", "user:bulk"), 0.0)
    scheduler.add(entry("single", "a", "user:single"), 0.0)
    assert _taken(scheduler) == ["bulk0", "single"]


def test_a_hundred_thousand_that_wait_for_their_domain_do_neither() -> None:
    scheduler = _bound(a=TWO)
    scheduler.add(entry("single", "a", "user:single"), 0.0)
    for number in range(100_000):
        scheduler.add(entry(f"bulk{number}", "unbound", "user:bulk"), 0.0)
    scheduler.bind(Way("unbound"), TWO, ALWAYS, 0.0)
    assert _taken(scheduler) == ["single", "bulk0"]


def test_a_partly_deferred_message_never_leaves_the_census() -> None:
    scheduler = _bound(a=MX1)
    first = entry("m", "a")
    scheduler.add(first, 0.0)
    scheduler.take(NOW)
    scheduler.add(entry("m", "a", due=60.0), 0.0)
    assert scheduler.counts() == {"active": 1, "ready": 0, "deferred": 0, "held": 0}
    scheduler.finish(first)
    assert scheduler.counts() == {"active": 0, "ready": 0, "deferred": 1, "held": 0}


def test_a_slot_is_free_before_its_outcome_is_durable() -> None:
    scheduler = _bound(a=ONE)
    first, second = entry("m1", "a"), entry("m2", "a")
    for new in (first, second):
        scheduler.add(new, 0.0)
    scheduler.take(NOW)
    scheduler.sites.release(ONE, entry(), OK, NOW)
    assert scheduler.take(NOW) == (ONE, second)
    assert scheduler.counts()["active"] == 2


def test_unrouted_entries_use_no_slot() -> None:
    scheduler = Scheduler()
    scheduler.add(entry(domain="a"), 0.0)
    (returned,) = scheduler.unroute(Way("a"))
    assert scheduler.counts()["active"] == 1
    scheduler.finish(returned)
    assert scheduler.size == 0
    assert scheduler.unroute(Way("a")) == []


def test_nothing_is_remembered_of_what_is_idle() -> None:
    scheduler = Scheduler()
    for number in range(500):
        done, domain = entry(f"m{number}", f"d{number}", f"user:{number}"), f"d{number}"
        scheduler.add(done, 0.0)
        scheduler.bind(Way(domain), site(domain), 60.0 + number % 7, 0.0)
        taken = scheduler.take(NOW)
        assert taken is not None
        scheduler.sites.release(*taken, Report(BROKEN), NOW)
        scheduler.finish(done)
    assert scheduler.size == 1001, "bindings, the time at which they end, and sites"
    scheduler.advance(70.0)
    assert scheduler.size == 500
    scheduler.advance(MEMORY)
    assert scheduler.size == 0


def test_bindings_are_bounded_and_those_that_end_first_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.scheduler.bindings.MAX_BINDINGS", 10)
    scheduler = Scheduler()
    for number in range(30):
        scheduler.bind(Way(f"d{number}"), MX1, 100.0 + number * GRAIN, 0.0)
    scheduler.advance(0.0)
    assert scheduler.size == 20
    scheduler.add(entry("m1", "d29"), 0.0)
    scheduler.add(entry("m2", "d0"), 0.0)
    assert _asked(scheduler) == ["d0"]
    assert _taken(scheduler) == ["m1"]


def test_misuse_is_an_error_that_changes_nothing() -> None:
    scheduler = _bound(a=MX1)
    new = entry(domain="a")
    scheduler.add(new, 0.0)
    with pytest.raises(ValueError, match="twice"):
        scheduler.add(new, 0.0)
    with pytest.raises(ValueError, match="not active"):
        scheduler.finish(new)
    with pytest.raises(ValueError, match="no slot"):
        scheduler.sites.release(MX1, entry(), OK, NOW)
    assert scheduler.take(NOW) == (MX1, new)
    scheduler.finish(new)
    with pytest.raises(ValueError, match="not active"):
        scheduler.finish(new)
    scheduler.sites.release(MX1, entry(), OK, NOW)
    with pytest.raises(ValueError, match="no slot"):
        scheduler.sites.release(MX1, entry(), OK, NOW)
