import ipaddress

import pytest

from relayd.outbound.addresses import Permitted

REFUSED = [
    "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
    "fec0::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::1",
]  # fmt: skip

PUBLIC = ["8.8.8.8", "193.0.6.139", "2001:67c:2e8::1", "2a00:1450:4001::1a", "::ffff:8.8.8.8", "2002:808:808::1"]


@pytest.mark.parametrize("text", REFUSED)
def test_private_and_special_addresses_are_refused(text):
    assert not Permitted(())(text)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_permitted(text):
    assert Permitted(())(text)


def test_what_is_listed_is_permitted_however_it_is_written():
    permitted = Permitted((ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    assert permitted("10.1.2.3")
    assert permitted("::ffff:10.1.2.3")
    assert permitted("fd00::1")
    assert not permitted("10.2.0.1")
    assert not permitted("127.0.0.1")
