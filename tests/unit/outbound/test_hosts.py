"""Whom to ask first, and what is remembered of whom, with times and dice as arguments."""

import random
from collections import Counter

import pytest
from msgspec.structs import replace

from relayd.message.site import Family, Host, Site, Source, Terms, Tls
from relayd.outbound.hosts import (
    AVOIDED_FIRST,
    AVOIDED_LONGEST,
    REMEMBERED,
    HostMemory,
    Latest,
    in_order,
    reachable_from,
)

PEER = ("192.0.2.1", 25, Source(), Tls.OPPORTUNISTIC)
SITE = Site(((Host("mx.example", 25),),))


def test_what_failed_is_avoided_for_two_minutes():
    memory = HostMemory()
    assert not memory.avoided(PEER, 0.0)
    memory.failed(PEER, 1000.0)
    assert memory.avoided(PEER, 1000.0)
    assert memory.avoided(PEER, 999.9 + AVOIDED_FIRST)
    assert not memory.avoided(PEER, 1000.0 + AVOIDED_FIRST)


def test_it_doubles_with_each_failure_up_to_the_longest():
    memory, now, waits = HostMemory(), 0.0, []
    for _ in range(6):
        memory.failed(PEER, now)
        begun = now
        while memory.avoided(PEER, now):
            now += 1
        waits.append(now - begun)
    assert waits == [120, 240, 480, 900, 900, 900]
    assert waits[-1] == AVOIDED_LONGEST


def test_failures_at_once_count_once():
    memory = HostMemory()
    for _ in range(20):
        memory.failed(PEER, 0.0)
    assert not memory.avoided(PEER, AVOIDED_FIRST)


def test_a_success_forgets():
    memory = HostMemory()
    memory.failed(PEER, 0.0)
    memory.failed(PEER, 500.0)
    memory.reached(PEER)
    assert not memory.avoided(PEER, 500.0)
    memory.failed(PEER, 600.0)
    assert not memory.avoided(PEER, 600.0 + AVOIDED_FIRST)
    memory.reached(("never heard of", *PEER[1:]))


def test_port_and_source_tell_peers_apart():
    memory = HostMemory()
    memory.failed(PEER, 0.0)
    assert not memory.avoided(("192.0.2.1", 587, *PEER[2:]), 0.0)
    assert not memory.avoided(("192.0.2.1", 25, Source(ipv4="192.0.2.9"), Tls.OPPORTUNISTIC), 0.0)
    assert not memory.avoided((*PEER[:3], Tls.ENCRYPT), 0.0)


def test_bdat_that_was_unknown_is_asked_again_later():
    memory = HostMemory()
    assert memory.takes_bdat(PEER, 0.0)
    memory.lacks_bdat(PEER, 10.0)
    assert not memory.takes_bdat(PEER, 9.0 + REMEMBERED)
    assert memory.takes_bdat(PEER, 10.0 + REMEMBERED)


def test_a_learnt_limit_holds_for_an_hour_and_below_the_configured_one():
    memory = HostMemory()
    assert memory.messages(SITE, 0.0) == 100
    memory.ended_after(SITE, 20, 0.0)
    assert memory.messages(SITE, REMEMBERED - 1) == 20
    assert memory.messages(SITE, REMEMBERED) == 100
    modest = replace(SITE, terms=Terms(messages_per_connection=5))
    memory.ended_after(modest, 20, 0.0)
    assert memory.messages(modest, 0.0) == 5


def test_memory_is_bounded():
    memory = HostMemory(size=100)
    for number in range(1000):
        peer = (f"2001:db8::{number:x}", *PEER[1:])
        memory.failed(peer, 0.0)
        memory.lacks_bdat(peer, 0.0)
        memory.ended_after(Site(((Host(peer[0], 25),),)), 3, 0.0)
    assert [len(kind) for kind in (memory._avoided, memory._without_bdat, memory._sessions)] == [100] * 3
    assert memory.avoided(peer, 1.0)


def test_the_one_set_longest_ago_makes_room():
    latest = Latest(2)
    for key in "abac":
        latest.set(key, key)
    assert [latest.get(key) for key in "abc"] == ["a", None, "c"]


def test_preferences_come_in_order_and_equal_ones_at_random():
    groups = (tuple(Host(name, 25) for name in "abc"), (Host("d", 25),), tuple(Host(name, 25) for name in "ef"))
    dice = random.Random(1)
    orders = Counter("".join(host.name for host in in_order(Site(groups), dice)) for _ in range(12_000))
    assert len(orders) == 6 * 2
    assert all(order[:3] < "d" and order[3] == "d" for order in orders)
    assert min(orders.values()) > 850 and max(orders.values()) < 1150


def test_weights_are_shares_of_being_first():
    group = (Host("a", 25, 1), Host("b", 25, 2), Host("c", 25, 7), Host("never", 25, 0))
    dice = random.Random(1)
    first = Counter(next(in_order(Site((group,)), dice)).name for _ in range(10_000))
    assert first["a"] == pytest.approx(1000, abs=120)
    assert first["b"] == pytest.approx(2000, abs=150)
    assert first["c"] == pytest.approx(7000, abs=200)
    assert list(in_order(Site((group,)), dice))[-1].name == "never"


@pytest.mark.parametrize(
    ("family", "source", "four", "six"),
    [
        (Family.ANY, Source(), True, True),
        (Family.IPV4, Source(), True, False),
        (Family.IPV6, Source(), False, True),
        (Family.ANY, Source(ipv4="192.0.2.9"), True, False),
        (Family.ANY, Source(ipv6="2001:db8::9"), False, True),
        (Family.ANY, Source(ipv4="192.0.2.9", ipv6="2001:db8::9"), True, True),
        (Family.IPV6, Source(ipv4="192.0.2.9"), False, False),
        (Family.ANY, Source(hostname="other.example"), True, True),
    ],
)
def test_family_and_source_say_what_is_reachable(family, source, four, six):
    site = replace(SITE, terms=Terms(family=family), source=source)
    assert (reachable_from(site, "198.51.100.1"), reachable_from(site, "2001:db8::1")) == (four, six)
    assert reachable_from(site, "fe80::1%eth0") == six
