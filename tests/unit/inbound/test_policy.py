import pytest

from relayd.config.schema import Settings
from relayd.inbound.policy import Policy, client_address, subscriber
from relayd.smtp import reply

SETTINGS = {"hostname": "Relay.Test", "relay": {"trusted_networks": ["192.0.2.0/24", "2001:db8::/32"]}}


def policy(**local) -> Policy:
    return Policy(Settings.model_validate(SETTINGS | {"local": local}))


def test_trusted_network():
    assert policy().trusted_network("192.0.2.7") == "192.0.2.0/24"
    assert policy().trusted_network("2001:db8::7") == "2001:db8::/32"
    assert policy().trusted_network("198.51.100.1") == ""


@pytest.mark.parametrize("said", ["postmaster", "Postmaster", "POSTMASTER@relay.test", "postmaster@RELAY.TEST"])
def test_postmaster(said):
    assert policy(postmaster="ops@example.net").destination(said) == "ops@example.net"
    assert policy().destination(said) is reply.NO_SUCH_USER


def test_mail_for_this_host_and_for_others():
    assert policy().destination("root@relay.test") is reply.NO_SUCH_USER
    for other in ("a@example.test", "a@sub.relay.test", "postmaster@example.test", "a%b@c.test", "a@[192.0.2.1]"):
        assert policy(postmaster="ops@example.net").destination(other) == other


def test_client_address():
    assert client_address(("192.0.2.1", 25)) == "192.0.2.1"
    assert client_address(("::ffff:192.0.2.1", 25, 0, 0)) == "192.0.2.1"
    assert client_address(("fe80::1%eth0", 25, 0, 2)) == "fe80::1"
    assert subscriber("192.0.2.1") == "192.0.2.1"
    assert subscriber("2001:db8::1") == subscriber("2001:db8::2") != subscriber("2001:db8:0:1::1")
