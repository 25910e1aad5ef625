"""Counting messages by state."""

import random

import pytest

from relayd import metrics
from relayd.scheduler.census import ACTIVE, DEFERRED, GONE, HELD, READY, Census

ZERO = {"active": 0, "ready": 0, "deferred": 0, "held": 0}


def test_it_has_the_states_of_the_metric() -> None:
    assert set(Census().counts()) == set(metrics.STATES)


@pytest.mark.parametrize(
    ("state", "name"), [(ACTIVE, "active"), (READY, "ready"), (DEFERRED, "deferred"), (HELD, "held")]
)
def test_one_entry_counts_in_its_state_and_leaves_nothing(state: int, name: str) -> None:
    census = Census()
    census.move("m", GONE, state)
    assert census.counts() == ZERO | {name: 1}
    census.move("m", state, GONE)
    assert census.counts() == ZERO
    assert len(census) == 0


def test_a_message_counts_once_in_the_first_state_of_its_entries() -> None:
    census = Census()
    for state in (HELD, DEFERRED, READY, ACTIVE, ACTIVE):
        census.move("m", GONE, state)
    assert census.counts() == ZERO | {"active": 1}
    census.move("m", ACTIVE, GONE)
    assert census.counts() == ZERO | {"active": 1}
    census.move("m", ACTIVE, DEFERRED)
    assert census.counts() == ZERO | {"ready": 1}
    census.move("m", READY, GONE)
    assert census.counts() == ZERO | {"deferred": 1}


def test_a_thousand_entries_in_one_state_stay_in_it() -> None:
    census = Census()
    for _ in range(1000):
        census.move("m", GONE, DEFERRED)
    assert census.counts() == ZERO | {"deferred": 1}


def test_it_agrees_with_counting_over_again() -> None:
    dice = random.Random(7)
    names = {ACTIVE: "active", READY: "ready", DEFERRED: "deferred", HELD: "held"}
    census, states = Census(), [GONE] * 120
    messages = [f"m{dice.randrange(40)}" for _ in states]
    for _ in range(3000):
        chosen = dice.randrange(len(states))
        state = dice.choice([GONE, *names])
        if state == states[chosen] == GONE:
            continue
        census.move(messages[chosen], states[chosen], state)
        states[chosen] = state
        best: dict[str, int] = {}
        for message, value in zip(messages, states, strict=True):
            best[message] = max(best.get(message, GONE), value)
        expected = dict(ZERO)
        for value in best.values():
            if value:
                expected[names[value]] += 1
        assert census.counts() == expected
