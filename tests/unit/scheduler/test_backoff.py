"""The waits between attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.scheduler.backoff import Backoff

SCHEDULE = (120.0, 300.0, 600.0)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 120), (2, 300), (3, 600), (4, 600), (1000, 600)])
def test_each_attempt_takes_the_next_wait_and_the_last_repeats(attempts: int, seconds: float) -> None:
    assert Backoff(SCHEDULE).delay(attempts, 0.5) == pytest.approx(seconds)


@given(st.integers(1, 20), st.floats(0, 1, exclude_max=True))
def test_jitter_leaves_the_timers_their_part_of_a_tenth(attempts: int, roll: float) -> None:
    seconds = SCHEDULE[min(attempts, 3) - 1]
    assert Backoff(SCHEDULE).delay(attempts, roll) == pytest.approx(seconds, rel=0.080001)


def test_the_dice_spread_the_waits() -> None:
    backoff = Backoff((100.0,), jitter=0.2)
    assert [backoff.delay(1, roll) for roll in (0.0, 0.25, 0.75)] == pytest.approx([80, 90, 110])


def test_no_wait_before_the_first_attempt() -> None:
    with pytest.raises(ValueError, match="no attempt"):
        Backoff(SCHEDULE).delay(0, 0.5)


def test_a_schedule_has_a_wait() -> None:
    with pytest.raises(ValueError, match="empty"):
        Backoff(())
