"""From which address of this machine a session comes, and what it calls itself."""

import socket

import pytest

from relayd.message.outcome import Scope, Verdict
from relayd.message.site import Host, Source
from tests.integration.outbound.rig import Carrier, site_of

DELIVERED, DEFERRED = Verdict.DELIVERED, Verdict.DEFERRED

NOT_OURS = "192.0.2.77"  # RFC 5737


@pytest.fixture(scope="module")
def ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")


async def test_each_source_has_its_address_and_its_name(start, carrier):
    peer = await start()
    sources = [
        Source("one.example", "127.0.0.2"),
        Source("two.example", "127.0.0.3"),
        Source("", "127.0.0.4"),
        Source(),
    ]
    for source in sources:
        assert (await carrier.carry(site_of(peer, source=source)))[0].verdict is DELIVERED
    assert [(session.client, session.lines[0]) for session in peer.sessions] == [
        ("127.0.0.2", "EHLO one.example"),
        ("127.0.0.3", "EHLO two.example"),
        ("127.0.0.4", "EHLO relay.example"),
        ("127.0.0.1", "EHLO relay.example"),
    ]


async def test_connections_are_shared_within_a_source_alone(start, carrier):
    peer = await start()
    one, two = (site_of(peer, source=Source("", address)) for address in ("127.0.0.2", "127.0.0.3"))
    for site in (one, two, one, two):
        await carrier.carry(site)
    assert [session.client for session in peer.sessions] == ["127.0.0.2", "127.0.0.3"]


async def test_the_name_is_said_under_tls_and_after_a_fall_back_too(start, carrier, certificate):
    peer = await start({"STARTTLS": ["454 4.7.0 not now"]}, tls=certificate)
    site = site_of(peer, source=Source("one.example", "127.0.0.2"))
    for _ in range(2):
        assert (await carrier.carry(site))[0].verdict is DELIVERED
        carrier.pool.close()
        carrier.connector.renew(carrier.connector._contexts)
    names = [line for session in peer.sessions for line in session.lines if line.startswith("EHLO")]
    assert names == ["EHLO one.example"] * 4
    assert {session.client for session in peer.sessions} == {"127.0.0.2"}


async def test_the_family_of_the_address_decides_which_source_it_is(ipv6, start, carrier):
    peer = await start(host="::1")
    site = site_of(Host("::1", peer.port), source=Source("one.example", "127.0.0.2", "::1"))
    assert (await carrier.carry(site))[0].verdict is DELIVERED
    assert peer.sessions[0].client == "::1"


async def test_a_source_that_is_not_ours_defers_without_asking_anybody_else(start, carrier, alerts):
    one, two = await start(), await start()
    for _ in range(3):
        outcome = (await carrier.carry(site_of(one, two, source=Source("", NOT_OURS), name="routes[0]")))[0]
        assert (outcome.verdict, outcome.scope) == (DEFERRED, Scope.SITE)
        assert str(outcome.reply).startswith("451 4.3.5")
        assert NOT_OURS not in outcome.reply.text, "what senders read tells nothing of our network"
    assert one.sessions == two.sessions == []
    assert [(alert["what"], alert["source"]) for alert in alerts()] == [("source address unusable", NOT_OURS)]


async def test_an_ipv6_source_that_is_not_ours_is_no_lack_of_ipv6(ipv6, start, carrier, alerts):
    peer = await start(host="::1")
    site = site_of(Host("::1", peer.port), source=Source("", "", "2001:db8::77"))
    assert (await carrier.carry(site))[0].reply.enhanced == "4.3.5"
    assert len(alerts()) == 1


async def test_from_loopback_nothing_else_is_reached(alerts):
    carrier = Carrier()
    site = site_of(("198.51.100.1", 25), source=Source("", "127.0.0.2"))
    assert (await carrier.carry(site))[0].reply.enhanced == "4.3.5"
    await carrier.close()


BOTH = Source("", "192.0.2.1", "2001:db8::1")
