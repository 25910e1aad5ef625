import os

import pytest

from relayd.config.schema import Settings
from relayd.inbound.admission import Admission
from relayd.inbound.headcount import Headcount, table
from relayd.inbound.policy import Policy
from relayd.smtp import reply

SETTINGS = Settings.model_validate(
    {
        "hostname": "relay.test",
        "relay": {"trusted_networks": ["192.0.2.0/24"]},
        "limits": {"connections": 5, "connections_per_client": 2},
    }
)


def admission_of(headcount):
    return Admission(SETTINGS.limits, Policy(SETTINGS), headcount)


@pytest.fixture
def admission():
    return admission_of(Headcount.alone())


@pytest.fixture
def two():
    """Those of two processes of one relay."""
    descriptor = table(2)
    yield [admission_of(Headcount(descriptor, number)) for number in range(2)]
    os.close(descriptor)


def test_per_client(admission):
    assert [admission.admit("198.51.100.1") for _ in range(3)] == [None, None, reply.TOO_MANY_CONNECTIONS_OF_CLIENT]
    assert admission.admit("198.51.100.2") is None
    admission.release("198.51.100.1")
    assert admission.admit("198.51.100.1") is None


def test_a_64_is_one_client(admission):
    assert [admission.admit(f"2001:db8::{n}") for n in range(1, 4)][-1] is reply.TOO_MANY_CONNECTIONS_OF_CLIENT
    assert admission.admit("2001:db8:0:1::1") is None


def test_total_counts_for_the_trusted_too(admission):
    assert [admission.admit("192.0.2.1") for _ in range(6)] == [None] * 5 + [reply.TOO_MANY_CONNECTIONS]


def test_nothing_is_remembered_of_who_left(admission):
    for _ in range(3):
        admission.admit("198.51.100.1")
    for _ in range(2):
        admission.release("198.51.100.1")
    assert not admission._by_client
    assert admission._open == 0


def test_a_client_has_what_it_may_have_with_whichever_process(two):
    first, second = two
    assert [first.admit("198.51.100.1") for _ in range(2)] == [None, None]
    assert second.admit("198.51.100.1") is reply.TOO_MANY_CONNECTIONS_OF_CLIENT
    assert second.admit("198.51.100.2") is None
    first.release("198.51.100.1")
    assert second.admit("198.51.100.1") is None
    assert first.admit("198.51.100.1") is reply.TOO_MANY_CONNECTIONS_OF_CLIENT


def test_the_total_is_that_of_all_processes(two):
    first, second = two
    assert [first.admit("192.0.2.1") for _ in range(4)] == [None] * 4
    assert [second.admit("192.0.2.1") for _ in range(2)] == [None, reply.TOO_MANY_CONNECTIONS]
    assert first.admit("192.0.2.1") is reply.TOO_MANY_CONNECTIONS
    second.release("192.0.2.1")
    assert first.admit("192.0.2.1") is None


def test_who_is_refused_counts_nowhere(two):
    first, second = two
    for _ in range(9):
        first.admit("198.51.100.1")
    for _ in range(2):
        first.release("198.51.100.1")
    assert [second.admit("198.51.100.1") for _ in range(2)] == [None, None]
