"""A dead site: found out by a cohort, probed by one message at a time, and what happens when it is back."""

from __future__ import annotations

import pytest

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Site, Way
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import BROKEN, CROWDED, NOTHING, SERVED, SLOWED, UNREACHABLE, Aspect, Report, Trouble
from relayd.scheduler.limits import FIRST_PROBE, LONGEST_PROBE, MAX_WAYS
from relayd.scheduler.scheduler import Scheduler
from relayd.scheduler.window import START
from relayd.smtp import reply
from tests.unit.scheduler.entries import entry, site

MX = site("mx")
ALWAYS = float("inf")
TROUBLE = Trouble(Outcome(Verdict.DEFERRED, Scope.SITE, reply.unreachable("mx", "refused")), 0.0)


def unreached(domain: str = "a.example", step: float = 14_400.0) -> Report:
    return Report(UNREACHABLE, TROUBLE, step, Way(domain))


class Play:
    """A scheduler with one site, and messages that come when they are asked for."""

    def __init__(self, domain: str = "a.example", to: Site = MX) -> None:
        self.scheduler = Scheduler()
        self.scheduler.bind(Way(domain), to, ALWAYS, 0.0)
        self.number = 0

    def add(self, now: float, due: float = 0.0, *, stalled: bool = False) -> Entry:
        self.number += 1
        new = entry(f"m{self.number}", due=due, accepted_at=self.number)
        new.stalled = stalled
        self.scheduler.add(new, now)
        return new

    def attempt(self, report: Report, now: float):
        self.scheduler.advance(now)
        taken = self.scheduler.take(now)
        assert taken is not None
        changes = self.scheduler.sites.release(*taken, report, now)
        self.scheduler.finish(taken[1])
        return {change.aspect: change for change in changes}

    def kill(self, now: float = 0.0, step: float = 14_400.0) -> None:
        changes = {}
        while Aspect.HEALTH not in changes:
            self.add(now)
            changes = self.attempt(unreached(step=step), now)
        assert changes[Aspect.HEALTH].limit == 0

    def barred(self) -> list[Entry]:
        return [entry for _, entry, _ in self.scheduler.barred()]


def test_a_cohort_of_failures_in_a_row_makes_a_site_dead():
    play = Play()
    failures = 0
    changes = {}
    while Aspect.HEALTH not in changes:
        play.add(0.0)
        changes = play.attempt(unreached(), 0.0)
        failures += 1
    assert failures == START
    assert not changes[Aspect.HEALTH].raised


@pytest.mark.parametrize("answer", [SERVED, SLOWED])
def test_an_answer_between_begins_the_count_anew(answer):
    play = Play()
    for number in range(50):
        now = 1000.0 * number
        play.add(now)
        assert Aspect.HEALTH not in play.attempt(unreached(), now)
        play.add(now + 500)
        play.attempt(Report(answer), now + 500)


@pytest.mark.parametrize("signal", [BROKEN, NOTHING])
def test_what_says_nothing_of_the_site_kills_it_not(signal):
    play = Play()
    for _ in range(50):
        play.add(0.0)
        assert Aspect.HEALTH not in play.attempt(Report(signal, TROUBLE), 0.0)


def test_a_site_that_has_no_room_for_a_first_connection_is_not_reached():
    play = Play()
    for _ in range(START):
        play.add(0.0)
        changes = play.attempt(Report(CROWDED, TROUBLE, 60.0, Way("a.example")), 0.0)
    assert changes[Aspect.HEALTH].limit == 0


def test_a_dead_site_is_probed_by_one_message_at_doubling_times():
    play = Play()
    play.kill()
    now, waits = 0.0, []
    for _ in range(7):
        for _ in range(3):
            play.add(now)
        assert len(play.barred()) == 2, "one is kept for the probe"
        assert play.scheduler.take(now) is None
        due = play.scheduler.advance(now)
        assert due is not None
        waits.append(due - now)
        now = due
        play.attempt(unreached(), now)
    assert waits == [FIRST_PROBE, 120, 240, 480, LONGEST_PROBE, LONGEST_PROBE, LONGEST_PROBE]


def test_a_probe_waits_no_longer_than_the_mail_would():
    play = Play()
    play.kill(step=1.0)
    play.add(0.0)
    assert play.scheduler.advance(0.0) == 1.0
    play.attempt(unreached(step=2.0), 1.0)
    play.add(1.0)
    assert play.scheduler.advance(1.0) == 3.0


def test_while_the_probe_is_under_way_nothing_else_starts():
    play = Play()
    play.kill()
    for _ in range(2):
        play.add(0.0)
    play.scheduler.advance(FIRST_PROBE)
    assert play.scheduler.take(FIRST_PROBE) is not None
    assert play.scheduler.take(FIRST_PROBE) is None
    assert play.scheduler.take(FIRST_PROBE, MX) is None


def test_who_failed_last_is_asked_to_come_back_for_the_probe_when_nobody_waits():
    play = Play()
    assert play.scheduler.sites.probe(MX) is None
    play.kill()
    assert play.scheduler.sites.probe(MX) == FIRST_PROBE
    play.add(0.0)
    assert play.scheduler.sites.probe(MX) is None


def test_failures_of_attempts_that_began_before_do_not_push_the_probe_back():
    play = Play()
    for _ in range(START):
        play.add(0.0)
        assert play.scheduler.take(0.0) is not None
    for number in range(START):
        play.scheduler.sites.release(MX, entry(), unreached(), float(number))
    probe = play.scheduler.sites.probe(MX)
    assert probe is not None
    assert FIRST_PROBE < probe < START + FIRST_PROBE


def test_many_are_barred_in_turns(monkeypatch):
    monkeypatch.setattr("relayd.scheduler.scheduler.MOVED_AT_ONCE", 10)
    play = Play()
    play.kill()
    for _ in range(25):
        play.add(0.0)
    assert [len(play.barred()) for _ in range(4)] == [10, 10, 4, 0]


def test_the_first_success_wakes_what_waited_oldest_first():
    play = Play()
    play.kill()
    late = [play.add(0.0, due=5_000.0 - number, stalled=True) for number in range(3)]
    other = play.add(0.0, due=6_000.0)
    play.add(0.0)
    play.scheduler.advance(FIRST_PROBE)
    changes = play.attempt(Report(SERVED), FIRST_PROBE)
    assert changes[Aspect.HEALTH].raised
    assert changes[Aspect.HEALTH].ways == (Way("a.example"),)
    play.scheduler.wake(changes[Aspect.HEALTH].ways, FIRST_PROBE)
    taken = []
    while (work := play.scheduler.take(FIRST_PROBE)) is not None:
        taken.append(work[1])
    assert taken == late
    assert play.scheduler.advance(FIRST_PROBE) == other.due or play.scheduler.advance(6_000.0) is None


def test_what_comes_back_to_life_is_given_mail_as_if_it_were_new():
    play = Play()
    for _ in range(60):
        play.add(0.0)
    for _ in range(10):
        while play.scheduler.take(0.0) is not None:
            pass
        play.scheduler.sites.release(MX, entry(), Report(SERVED), 0.0)
    state = play.scheduler.sites.get(MX)
    assert state is not None
    assert state.width > START
    while state.busy or state.outage is None:
        play.scheduler.take(0.0)
        play.scheduler.sites.release(MX, entry(), unreached(), 0.0)
    play.attempt(Report(SERVED), FIRST_PROBE)
    assert state.width == START


def test_the_ways_of_an_outage_are_bounded():
    play = Play()
    play.kill()
    state = play.scheduler.sites.get(MX)
    assert state is not None and state.limits is not None
    for number in range(2 * MAX_WAYS):
        state.limits.put_off(Way(f"d{number}.example"))
    play.add(0.0)
    play.scheduler.advance(FIRST_PROBE)
    changes = play.attempt(Report(SERVED), FIRST_PROBE)
    assert len(changes[Aspect.HEALTH].ways) == MAX_WAYS


def test_an_operator_may_take_the_probing_message_away():
    play = Play()
    play.kill()
    probing = play.add(0.0)
    assert play.scheduler.recall(probing.message.id) == [probing]
    assert play.scheduler.advance(FIRST_PROBE) is None
    assert play.scheduler.take(FIRST_PROBE) is None
    play.add(FIRST_PROBE)
    assert play.scheduler.take(FIRST_PROBE) is not None


def test_a_site_that_came_back_while_mail_was_to_be_put_off_keeps_it():
    """Others were under way when it was found dead, and one of them was served before anything was put off."""
    play = Play()
    for _ in range(3 * START):
        play.add(0.0)
    for _ in range(START):
        while play.scheduler.take(0.0) is not None:
            pass
        play.scheduler.sites.release(MX, entry(), unreached(), 0.0)
    state = play.scheduler.sites.get(MX)
    assert state is not None
    assert state.busy
    assert state.outage is not None
    play.scheduler.sites.release(MX, entry(), Report(SERVED), 0.0)
    assert state.outage is None
    assert play.barred() == []
    assert play.scheduler.take(0.0) is not None


def test_who_waited_for_the_probe_and_was_taken_is_not_put_off():
    play = Play()
    play.kill()
    play.add(0.0)
    play.scheduler.advance(FIRST_PROBE)
    assert play.scheduler.take(FIRST_PROBE, MX) is not None
    assert play.barred() == []
