"""Who leaves the next connection to another process."""

import os

import pytest

from relayd.inbound.balance import Balance, table


@pytest.fixture
def processes():
    descriptor = table(3)
    yield [Balance(descriptor, number) for number in range(3)]
    os.close(descriptor)


def test_nobody_leaves_anything_to_processes_that_are_away(processes):
    processes[0].has(1000)
    assert not processes[0].leaves()


def test_the_only_one_there_takes_what_comes(processes):
    processes[1].has(0)
    assert not processes[1].leaves()


@pytest.mark.parametrize(
    ("own", "fewest", "leaves"),
    [(0, 0, False), (1, 0, False), (2, 0, True), (12, 8, False), (13, 8, True), (1000, 749, False), (1000, 748, True)],
)
def test_clearly_more_is_a_quarter_and_more_than_one(processes, own, fewest, leaves):
    for process, connections in zip(processes, (own, fewest, own + 1), strict=True):
        process.has(connections)
    assert processes[0].leaves() is leaves
    assert not processes[1].leaves()


def test_a_process_that_has_ended_is_left_nothing(processes):
    processes[0].has(20)
    processes[1].has(0)
    assert processes[0].leaves()
    processes[1].away()
    assert not processes[0].leaves()


def test_the_table_is_the_same_in_each_process(processes):
    processes[0].has(9)
    if (child := os.fork()) == 0:
        processes[1].has(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert processes[0].leaves()
