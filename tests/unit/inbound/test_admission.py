import pytest

from relayd.config.schema import Settings
from relayd.inbound.admission import Admission
from relayd.inbound.policy import Policy
from relayd.smtp import reply


@pytest.fixture
def admission():
    settings = Settings.model_validate(
        {
            "hostname": "relay.test",
            "relay": {"trusted_networks": ["192.0.2.0/24"]},
            "limits": {"connections": 5, "connections_per_client": 2},
        }
    )
    return Admission(settings.limits, Policy(settings))


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
