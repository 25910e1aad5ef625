"""What processes that accept together have of connections, and which of them leaves the next to another."""

import os

import pytest

from relayd.inbound.headcount import Headcount, table


@pytest.fixture
def processes():
    descriptor = table(3)
    yield [Headcount(descriptor, number) for number in range(3)]
    os.close(descriptor)


def accept(process: Headcount, connections: int, client: str = "") -> None:
    process.open()
    for _ in range(connections):
        process.count(client, 1)


def test_nobody_leaves_anything_to_processes_that_do_not_accept(processes):
    accept(processes[0], 1000)
    assert not processes[0].leaves()


def test_the_only_one_there_takes_what_comes(processes):
    accept(processes[1], 0)
    assert not processes[1].leaves()
    alone = Headcount.alone()
    accept(alone, 9)
    assert not alone.leaves()
    assert not alone.awaits
    assert alone.elsewhere() == alone.of_elsewhere("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("own", "fewest", "leaves"),
    [(0, 0, False), (1, 0, False), (2, 0, True), (12, 8, False), (13, 8, True), (1000, 749, False), (1000, 748, True)],
)
def test_clearly_more_is_a_quarter_and_more_than_one(processes, own, fewest, leaves):
    for process, connections in zip(processes, (own, fewest, own + 1), strict=True):
        accept(process, connections)
    assert processes[0].leaves() is leaves
    assert not processes[1].leaves()


def test_one_that_drains_is_left_nothing_and_what_it_has_still_counts(processes):
    accept(processes[0], 20)
    accept(processes[1], 2)
    assert processes[0].leaves()
    processes[1].shut()
    assert not processes[0].leaves()
    assert processes[0].elsewhere() == 2


def test_one_that_has_ended_has_nothing(processes):
    accept(processes[0], 20)
    accept(processes[1], 2, "192.0.2.1")
    processes[1].clear()
    assert not processes[0].leaves()
    assert processes[0].elsewhere() == processes[0].of_elsewhere("192.0.2.1") == 0
    accept(processes[1], 1, "192.0.2.1")
    assert processes[0].of_elsewhere("192.0.2.1") == 1


def test_those_that_start_are_awaited_until_they_accept_or_have_ended(processes):
    assert processes[0].awaits
    processes[1].open()
    assert processes[0].awaits
    processes[2].clear()
    assert not processes[0].awaits
    assert processes[1].awaits
    processes[0].open()
    processes[2].open()
    assert not any(process.awaits for process in processes)
    processes[1].shut()
    processes[0].clear()
    assert not any(process.awaits for process in processes)


def test_a_client_is_counted_with_all_the_others(processes):
    for process, connections in zip(processes, (3, 4, 5), strict=True):
        accept(process, connections, "192.0.2.1")
        accept(process, 1, "2001:db8::/64")
        accept(process, 1)
    processes[2].count("192.0.2.1", -1)
    assert [process.of_elsewhere("192.0.2.1") for process in processes] == [8, 7, 7]
    assert [process.of_elsewhere("2001:db8::/64") for process in processes] == [2, 2, 2]
    assert [process.elsewhere() for process in processes] == [12, 11, 11]


def test_of_many_clients_hardly_any_is_taken_for_another(processes):
    """One in a thousand, says the docstring, of 2,000; counted too high, never too low."""
    clients = [f"192.0.{number // 256}.{number % 256}" for number in range(2000)]
    for client in clients:
        processes[1].count(client, 1)
    seen = [processes[0].of_elsewhere(client) for client in clients]
    assert min(seen) == 1
    assert sum(count > 1 for count in seen) < 20
    strangers = [processes[0].of_elsewhere(f"198.51.{number // 256}.{number % 256}") for number in range(2000)]
    assert sum(count > 0 for count in strangers) < 20


def test_the_key_is_another_for_each_relay(processes):
    """Or one client could choose its addresses so that another is refused."""
    descriptor = table(2)
    cells = Headcount(descriptor, 0)._cells("192.0.2.1"), processes[0]._cells("192.0.2.1")
    os.close(descriptor)
    assert cells[0] != cells[1]


def test_the_table_is_the_same_in_each_process(processes):
    accept(processes[0], 9)
    if (child := os.fork()) == 0:
        accept(processes[1], 2, "192.0.2.1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert processes[0].leaves()
    assert processes[0].of_elsewhere("192.0.2.1") == 2
