"""Slots that are kept for interactive mail: what it may count on, and what it leaves to the rest."""

from __future__ import annotations

import collections

import pytest

from relayd.message.site import Site, Way
from relayd.scheduler.classes import Interactive, reserve
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import SERVED, Report
from relayd.scheduler.scheduler import Scheduler
from tests.unit.scheduler.entries import entry, site

ALWAYS = float("inf")
NOW = 1.0


class Play:
    """A scheduler with one site that serves all; running: what it is at."""

    def __init__(self, share: float, connections: int) -> None:
        self.scheduler = Scheduler(Interactive(share=share))
        self.site = site("mx", connections)
        self.scheduler.bind(Way("a.example"), self.site, ALWAYS, 0.0)
        self.number = 0
        self.running: collections.deque[tuple[Site, Entry]] = collections.deque()

    def add(self, priority: int) -> Entry:
        self.number += 1
        added = entry(f"m{self.number}", priority=priority)
        self.scheduler.add(added, NOW)
        return added

    def fill(self) -> None:
        while (taken := self.scheduler.take(NOW)) is not None:
            self.running.append(taken)

    def end(self) -> Entry:
        """The attempt that began first."""
        of, ended = self.running.popleft()
        self.scheduler.sites.release(of, ended, Report(SERVED), NOW)
        self.scheduler.finish(ended)
        return ended


@pytest.mark.parametrize(("share", "connections"), [(0.2, 2), (0.9, 2), (0.2, 5), (0.9, 5)])
def test_a_flood_of_interactive_mail_leaves_others_every_tenth_turn(share: float, connections: int) -> None:
    play = Play(share, connections)
    others = [play.add(0) for _ in range(5)]
    ended = []
    for _ in range(80):
        while play.scheduler.counts()["ready"] < 20:
            play.add(1)
        play.fill()
        ended.append(play.end())
    assert set(others) <= set(ended)


def test_others_never_use_the_slots_that_are_kept() -> None:
    play = Play(0.4, 5)
    kept = reserve(5, 0.4)
    play.add(1)
    play.fill()
    for number in range(200):
        play.add(0)
        if not number % 3:
            play.add(1)
        play.fill()
        assert sum(taken.message.priority == 0 for _, taken in play.running) <= 5 - kept
        # Others take long: of what runs, an interactive one ends.
        play.running = collections.deque(sorted(play.running, key=lambda running: -running[1].message.priority))
        if number % 2:
            play.end()


def test_who_is_held_meanwhile_leaves_the_kept_slots_alone() -> None:
    play = Play(0.2, 2)
    play.add(1)
    play.fill()
    play.end()
    play.add(0)
    play.fill()
    play.add(0)
    urgent = play.add(1)
    assert play.scheduler.recall(urgent.message.id) == [urgent]
    assert play.scheduler.take(NOW) is None
    play.end()
    assert play.scheduler.take(NOW) is not None
