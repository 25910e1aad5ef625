"""The window: raised at the end of a run of successes, lowered at the start of one of failures."""

from __future__ import annotations

import pytest

from relayd.scheduler.window import FIRST_MEMORY, LONGEST_MEMORY, START, Window


def serve(window: Window, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        window.served(window.size, now)


def test_it_grows_by_one_for_as_many_successes_as_it_is_wide():
    window = Window(20)
    serve(window, START - 1)
    assert window.size == START
    serve(window, 1)
    assert window.size == START + 1
    serve(window, START + 1)
    assert window.size == START + 2


def test_it_is_never_wider_than_configured_nor_closed():
    assert Window(2).size == 2
    window = Window(7)
    serve(window, 1000)
    assert window.size == 7
    for _ in range(1000):
        window.failed()
    assert window.size == 1


def test_successes_that_do_not_fill_it_do_not_widen_it():
    window = Window(20)
    for _ in range(1000):
        window.served(window.size - 1, 0.0)
    assert window.size == START


def test_a_run_of_failures_takes_one_at_once_and_one_more_for_each_width():
    window = Window(20)
    window.failed()
    assert window.size == START - 1
    for _ in range(START - 2):
        window.failed()
    assert window.size == START - 1
    window.failed()
    assert window.size == START - 2


def test_a_success_ends_a_run_of_failures():
    window = Window(20)
    window.failed()
    window.served(1, 0.0)
    window.failed()
    assert window.size == START - 2


def test_one_failure_in_twenty_does_not_close_it():
    """It settles where so many successes make up for one failure."""
    window = Window(20)
    for _ in range(1000):
        serve(window, 19)
        window.failed()
    assert window.size >= 9


def test_a_named_limit_is_kept_to_and_tried_again_after_longer_and_longer():
    window, now, waits = Window(20), 0.0, []
    serve(window, 1000)
    window.refused(6, now)
    assert window.size == 5
    last = now
    while len(waits) < 8:
        now += 1.0
        serve(window, 5, now)
        assert window.size in (5, 6)
        if window.size == 6:
            waits.append(now - last)
            last = now
            window.refused(6, now)
    assert waits[:3] == [FIRST_MEMORY, 2 * FIRST_MEMORY, 4 * FIRST_MEMORY]
    assert waits[-1] == LONGEST_MEMORY


def test_several_refused_at_once_are_one_lesson():
    window = Window(20)
    for busy in (5, 4, 3):
        window.refused(busy, 10.0)
    assert window.size == 2
    serve(window, 100, 10.0 + FIRST_MEMORY)
    assert window.size > 2


@pytest.mark.parametrize("busy", [1, 2])
def test_the_last_connection_is_never_taken(busy):
    window = Window(20)
    window.refused(busy, 0.0)
    assert window.size == 1
