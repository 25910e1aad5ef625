"""Order among accounts."""

import pytest

from relayd.scheduler.entry import Entry
from relayd.scheduler.fair_queue import FairQueue
from tests.unit.scheduler.entries import entry


def _queue(*accounts: str) -> FairQueue:
    queue = FairQueue()
    for number, account in enumerate(accounts):
        queue.push(entry(f"{account}{number}", account=account))
    return queue


def _drained(queue: FairQueue) -> list[str]:
    popped: list[Entry] = []
    while queue:
        popped.append(queue.pop())
    return [e.message.id for e in popped]


def test_one_account_is_first_in_first_out() -> None:
    assert _drained(_queue("a", "a", "a")) == ["a0", "a1", "a2"]


def test_accounts_take_turns_in_the_order_they_came() -> None:
    assert _drained(_queue("a", "a", "a", "b", "c", "b")) == ["a0", "b3", "c4", "a1", "b5", "a2"]


def test_a_late_account_waits_one_round_at_most() -> None:
    queue = _queue(*["a"] * 1000)
    queue.pop()
    queue.push(entry("late", account="b"))
    assert [queue.pop().message.id for _ in range(2)] == ["a1", "late"]


def test_an_account_that_refills_itself_does_not_overtake() -> None:
    queue = _queue("a", "b")
    assert queue.pop().message.id == "a0"
    queue.push(entry("a-again", account="a"))
    assert _drained(queue) == ["b1", "a-again"]


def test_absorbing_joins_accounts_and_empties_the_other() -> None:
    queue, other = _queue("a", "b"), _queue("b", "c", "b")
    queue.absorb(other)
    assert not other
    assert _drained(queue) == ["a0", "b1", "c1", "b0", "b2"]


def test_what_was_absorbed_is_not_shared() -> None:
    queue, other = FairQueue(), _queue("a")
    queue.absorb(other)
    other.push(entry("new", account="a"))
    assert _drained(queue) == ["a0"]


def test_an_empty_queue_is_false_and_cannot_be_popped() -> None:
    queue = _queue("a")
    assert queue
    queue.pop()
    assert not queue
    with pytest.raises(KeyError):
        queue.pop()
