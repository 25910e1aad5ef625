"""Which segment answers for what, in every order of accepting, moving, settling and coming back."""

from __future__ import annotations

import pytest

from relayd.spool.journal import Place
from relayd.spool.ledger import Ledger, Segment
from relayd.spool.records import Held, State
from tests.fakes.mail import accepted, name, result, settled


class Kept:
    """A ledger, and segments that begin when they are first written to."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ledger.replaying = False

    def segment(self, number: int) -> Segment:
        known = [segment for segment in self.ledger.segments if segment.number == number]
        return known[0] if known else self.ledger.grow(number, 0)

    def __call__(self, number: int, *records) -> None:
        for row, record in enumerate(records):
            self.ledger.apply(record, self.segment(number), Place(number, row, 100 + row))

    @property
    def live(self) -> dict[int, set[str]]:
        return {segment.number: set(segment.live) for segment in self.ledger.segments}

    def moved(self, number: int) -> None:
        names = list(self.segment(number).live)
        self.ledger.move(names)
        self.ledger.moved(names)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def deferred(number: int):
    return settled(number, result(state=State.DEFERRED))


def test_a_message_lives_where_it_was_accepted_until_it_is_done(kept):
    kept(1, accepted(1), accepted(2))
    kept(2, deferred(1))
    assert kept.live == {1: {name(1), name(2)}, 2: set()}
    kept(2, settled(1))
    assert kept.live == {1: {name(2)}, 2: set()}
    assert kept.ledger.removable() == []
    kept(2, settled(2))
    assert [segment.number for segment in kept.ledger.removable()] == [1]
    assert kept.ledger.messages == {}


def test_the_newest_segment_stays(kept):
    kept(1, accepted(1), settled(1))
    assert kept.ledger.removable() == []


def test_segments_go_oldest_first_and_not_while_they_move(kept):
    kept(1, accepted(1))
    kept(2)
    kept.segment(2)
    kept.segment(3)
    assert kept.ledger.removable() == []
    kept.segment(1).moving = True
    kept.moved(1)
    assert kept.ledger.removable() == []
    kept.segment(1).moving = False
    assert [segment.number for segment in kept.ledger.removable()] == [1, 2]
    with pytest.raises(AssertionError, match="oldest first"):
        kept.ledger.remove(kept.segment(2))


def test_what_was_moved_rests_until_it_changes(kept):
    kept(1, accepted(1))
    assert not kept.ledger.rests(name(1))
    assert kept.ledger.place(name(1)) == Place(1, 0, 100)
    kept.moved(1)
    assert kept.ledger.rests(name(1))
    assert kept.ledger.place(name(1)) is None, "its body is in the index"
    kept(2, deferred(1))
    assert not kept.ledger.rests(name(1))
    assert kept.live == {1: set(), 2: {name(1)}}
    with pytest.raises(AssertionError, match="lacks changes"):
        kept.ledger.evict(name(1))
    kept.moved(2)
    kept.ledger.evict(name(1))
    assert (kept.ledger.messages, kept.ledger.indexed) == ({}, set())


def test_a_change_during_the_move_finds_a_later_home(kept):
    kept(1, accepted(1), accepted(2), accepted(3))
    names = list(kept.segment(1).live)
    kept.ledger.move(names)
    kept(2, deferred(1), settled(2))
    kept.ledger.moved(names)
    assert kept.live == {1: set(), 2: {name(1), name(2)}}
    assert [kept.ledger.rests(name(n)) for n in (1, 3)] == [False, True]
    assert kept.ledger.gone == {name(2)}
    kept.moved(2)
    assert kept.ledger.gone == set(), "its row has been dropped"


def test_after_a_move_that_failed_the_segment_answers_again(kept):
    kept(1, accepted(1), accepted(2), accepted(3))
    names = list(kept.segment(1).live)
    kept.ledger.move(names)
    kept(2, deferred(1), settled(2))
    kept.ledger.unmoved(names, kept.segment(1))
    assert kept.live == {1: {name(1), name(2), name(3)}, 2: set()}
    assert all(kept.ledger.place(name(n)) == Place(1, n - 1, 99 + n) for n in (1, 3))
    kept.moved(1)
    assert kept.ledger.gone == set()
    assert set(kept.ledger.messages) == {name(1), name(3)}


def test_what_comes_back_is_taken_once_and_never_when_it_is_done(kept):
    kept(1, accepted(1), accepted(2))
    first, second = kept.ledger.messages.values()
    kept.moved(1)
    kept.ledger.evict(name(1))
    assert kept.ledger.adopt(first)
    assert not kept.ledger.adopt(first)
    kept(2, settled(2))
    assert not kept.ledger.adopt(second)
    assert kept.live == {1: set(), 2: {name(2)}}


def test_an_outcome_of_nobody_is_ignored_and_its_notification_is_not(kept):
    kept(1, settled(1, result(state=State.FAILED), notification=accepted(2)))
    assert set(kept.ledger.messages) == {name(2)}
    assert kept.ledger.place(name(2)) == Place(1, 0, 100)
    assert kept.ledger.strays == {}


@pytest.mark.parametrize("final", [False, True])
def test_in_a_replay_what_is_said_of_others_is_kept_for_the_index(kept, final):
    before = Kept()
    before(1, accepted(1))
    (message,) = before.ledger.messages.values()
    kept.ledger.replaying = True
    kept(2, deferred(1), Held(name(1), held=True))
    kept(3, settled(1, result(0, State.FAILED if final else State.DEFERRED, 7)))
    assert set(kept.ledger.strays) == {name(1)}
    kept.ledger.reconcile(message)
    assert kept.live == {2: {name(1)}, 3: set()}, "the first of them is what the index lacks"
    assert (set(kept.ledger.messages), kept.ledger.gone) == ((set(), {name(1)}) if final else ({name(1)}, set()))
    if not final:
        assert message.held
        assert message.results == [result(0, State.DEFERRED, 7)]


def test_the_same_acceptance_again_changes_nothing(kept):
    kept(1, accepted(1))
    kept(2, deferred(1), accepted(1))
    assert kept.live == {1: {name(1)}, 2: set()}
    assert kept.ledger.place(name(1)) == Place(1, 0, 100)
    kept.moved(1)
    kept(2, settled(1), accepted(1))
    assert kept.ledger.messages == {}
