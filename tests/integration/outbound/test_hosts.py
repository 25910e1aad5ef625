"""Which hosts are asked, in which order, and which never."""

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from relayd import clock
from relayd.message.outcome import Scope, Verdict
from relayd.message.site import Family, Host, Site
from relayd.smtp import reply
from tests.fakes.dns_server import DnsServer
from tests.fakes.smtp_peer import DROP, RESET
from tests.integration.outbound.rig import QUICK, Carrier, site_of

DELIVERED, DEFERRED, FAILED = Verdict.DELIVERED, Verdict.DEFERRED, Verdict.FAILED


@pytest.fixture
def closed_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def looking_up(dns):
    """A carrier that may reach loopback through MX."""
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.0/8"])
    yield carrier
    await carrier.close()


async def test_first_host_down_second_takes_it(start, carrier, closed_port):
    peer = await start()
    outcome = (await carrier.carry(site_of(("127.0.0.1", closed_port), peer)))[0]
    assert outcome.verdict is DELIVERED


async def test_all_hosts_down_defers(carrier, closed_port):
    outcome = (await carrier.carry(site_of(("127.0.0.1", closed_port))))[0]
    assert (outcome.verdict, outcome.scope, outcome.host) == (DEFERRED, Scope.SITE, "")
    assert str(outcome.reply).startswith("451 4.4.1")
    assert f"127.0.0.1:{closed_port}".split(":")[1] in outcome.reply.text
    assert "refused" in outcome.reply.text


async def test_hosts_of_one_preference_share_the_load(start, looking_up):
    one, two = await start(), await start()
    for _ in range(20):
        looking_up.pool.close()
        group = (Host("127.0.0.1", one.port), Host("127.0.0.1", two.port))
        assert (await looking_up.carry(Site((group,))))[0].verdict is DELIVERED
    assert len(one.messages) > 3
    assert len(two.messages) > 3


async def test_better_preferences_come_first(start, carrier):
    best, worse = await start(), await start()
    for _ in range(5):
        await carrier.carry(site_of(best, worse))
    assert (len(best.messages), len(worse.messages)) == (5, 0)


async def test_names_are_looked_up_and_their_addresses_tried_in_turn(start, dns, looking_up):
    peer = await start(host="127.0.0.3")
    dns.add("mx.example", "A", "127.0.0.2", "127.0.0.3")
    outcome = (await looking_up.carry(site_of(("mx.example", peer.port), trusted=False)))[0]
    assert (outcome.verdict, outcome.host) == (DELIVERED, f"mx.example[127.0.0.3]:{peer.port}")


async def test_five_addresses_an_attempt_at_most(start, dns, looking_up):
    peers = [await start({"GREETING": "421 no"}, host="127.0.0.2")]
    port = peers[0].port
    peers += [await start({"GREETING": "421 no"}, host=f"127.0.0.{n}", port=port) for n in range(3, 9)]
    dns.add("one.example", "A", *[f"127.0.0.{n}" for n in range(2, 6)])
    dns.add("two.example", "A", *[f"127.0.0.{n}" for n in range(6, 9)])
    site = site_of(("one.example", port), ("two.example", port), trusted=False)
    assert (await looking_up.carry(site))[0].verdict is DEFERRED
    assert sum(len(peer.sessions) for peer in peers) == 5


async def test_a_dead_host_costs_the_first_message_only(start, dns, looking_up):
    """One bad host of K must not slow the others: the second message goes straight to the second host."""
    dead, peer = await start({"GREETING": DROP}), await start({"DOT": "250 ok"}, host="127.0.0.2")
    dns.add("dead.example", "A", "127.0.0.1")
    dns.add("alive.example", "A", "127.0.0.2")
    site = site_of(("dead.example", dead.port), ("alive.example", peer.port), trusted=False)
    for _ in range(5):
        looking_up.pool.renew()
        assert (await looking_up.carry(site))[0].verdict is DELIVERED
    assert (len(dead.sessions), len(peer.sessions)) == (1, 5)


@pytest.fixture
def full_port():
    """One whose queue of connections is full: whoever wants another one hears nothing."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


async def test_attack_31_silence_at_connecting_costs_one_message_the_wait(start, full_port):
    carrier = Carrier(replace(QUICK, connect=2.0))
    peer, loop = await start(), asyncio.get_running_loop()
    waits = []
    for _ in range(3):
        carrier.pool.renew()
        begun = loop.time()
        assert (await carrier.carry(site_of(("127.0.0.1", full_port), peer)))[0].verdict is DELIVERED
        waits.append(loop.time() - begun >= 1.9)
    assert waits == [True, False, False]
    await carrier.close()


async def test_a_host_is_asked_again_after_two_minutes_and_forgiven(start, carrier, monkeypatch):
    first, second = await start({"GREETING": ["421 4.3.2 not now"]}), await start()
    site = site_of(first, second)
    await carrier.carry(site)
    await carrier.carry(site)
    assert (len(first.sessions), len(second.messages)) == (1, 2)
    now = time.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: now() + 121)
    carrier.pool.renew()
    await carrier.carry(site)
    assert (len(first.messages), len(second.messages)) == (1, 2)


@pytest.mark.parametrize("answer", [DROP, RESET, "421 4.3.2 busy", "554 5.7.1 no", "hello"])
@pytest.mark.parametrize("verb", ["GREETING", "EHLO"])
async def test_who_does_not_greet_is_asked_last_but_is_asked(start, carrier, verb, answer):
    first, second = await start({verb: answer, "HELO": answer}), await start({"MAIL": [DROP] * 9})
    site = site_of(first, second)
    assert (await carrier.carry(site))[0].verdict is DEFERRED
    asked = len(first.sessions)
    assert (await carrier.carry(site))[0].verdict is DEFERRED
    assert len(second.sessions) == 2, "first now, as it greets"
    assert len(first.sessions) == asked + 1, "and when it fails, the avoided one follows"


async def test_of_hosts_that_are_all_avoided_one_is_dialled(start, carrier):
    peers = [await start({"GREETING": f"554 5.3.2 number {number}"}) for number in range(3)]
    await carrier.carry(site_of(*peers))
    assert [len(peer.sessions) for peer in peers] == [1, 1, 1]
    outcome = (await carrier.carry(site_of(*peers)))[0]
    assert [len(peer.sessions) for peer in peers] == [2, 1, 1]
    assert str(outcome.reply) == "554 5.3.2 number 0", "what it said now, not what it said then"


async def test_two_lost_sessions_end_an_attempt(start, carrier):
    peers = [await start({"MAIL": DROP}), await start({"RCPT": RESET}), await start()]
    assert (await carrier.carry(site_of(*peers)))[0].verdict is DEFERRED
    assert [len(peer.sessions) for peer in peers] == [1, 1, 0]


@pytest.mark.parametrize("family", [Family.IPV4, Family.ANY])
async def test_the_family_of_a_site_chooses_among_addresses(start, dns, family):
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.0/8", "::1/128"])
    four = await start()
    six = await start(host="::1", port=four.port)
    dns.add("dual.example", "AAAA", "::1")
    dns.add("dual.example", "A", "127.0.0.1")
    site = site_of(("dual.example", four.port), trusted=False, family=family)
    assert (await carrier.carry(site))[0].verdict is DELIVERED
    assert (len(six.messages), len(four.messages)) == ((0, 1) if family is Family.IPV4 else (1, 0))
    await carrier.close()


async def test_the_other_address_family_is_fallen_back_to(start, dns):
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.0/8", "::1/128"])
    four = await start()
    dns.add("dual.example", "AAAA", "::1")
    dns.add("dual.example", "A", "127.0.0.1")
    assert (await carrier.carry(site_of(("dual.example", four.port), trusted=False)))[0].verdict is DELIVERED
    await carrier.close()


async def test_a_host_out_of_our_configurations_reach_never_fails_mail(start, dns, looking_up):
    dns.add("four.example", "A", "127.0.0.1")
    site = site_of(("four.example", 25), trusted=False, family=Family.IPV6)
    outcome = (await looking_up.carry(site))[0]
    assert (outcome.verdict, str(outcome.reply)[:9]) == (DEFERRED, "451 4.4.4")


async def test_an_address_behind_two_names_is_asked_once(start, dns, looking_up):
    peer = await start({"GREETING": "421 no"})
    dns.add("one.example", "A", "127.0.0.1")
    dns.add("two.example", "A", "127.0.0.1")
    site = site_of(("one.example", peer.port), ("two.example", peer.port), trusted=False)
    await looking_up.carry(site)
    assert len(peer.sessions) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])
async def test_private_addresses_behind_mx_are_refused(start, carrier, address):
    peer = await start()
    outcome = (await carrier.carry(site_of((address, peer.port), trusted=False)))[0]
    assert (outcome.verdict, outcome.scope) == (FAILED, Scope.SITE)
    assert str(outcome.reply).startswith("550 5.4.4")
    assert peer.sessions == []


async def test_private_addresses_of_a_route_are_trusted(start, carrier):
    peer = await start()
    assert (await carrier.carry(site_of(peer, trusted=True)))[0].verdict is DELIVERED


async def test_the_address_connected_to_is_judged_too(start, carrier):
    """As if a name led elsewhere between the question and the connection."""
    peer = await start()
    answers = iter([True, False])
    carrier.delivery._permitted = lambda address: next(answers)
    outcome = (await carrier.carry(site_of(peer, trusted=False)))[0]
    assert outcome.verdict is DEFERRED
    assert peer.messages == []
    assert all(session.lines == [] for session in peer.sessions)


async def test_a_private_host_does_not_hide_a_public_one(start, dns):
    peer = await start(host="127.0.0.3")
    dns.add("private.example", "A", "127.0.0.2")
    dns.add("public.example", "A", "127.0.0.3")
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.3/32"])
    site = site_of(("private.example", peer.port), ("public.example", peer.port), trusted=False)
    assert (await carrier.carry(site))[0].verdict is DELIVERED
    await carrier.close()


async def test_hosts_without_address_fail(dns, looking_up):
    outcome = (await looking_up.carry(site_of(("nowhere.example", 25), trusted=False)))[0]
    assert (outcome.verdict, str(outcome.reply)[:9]) == (FAILED, "550 5.4.4")


async def test_hosts_without_address_of_a_route_are_our_own_trouble(dns, looking_up):
    outcome = (await looking_up.carry(site_of(("nowhere.example", 25), trusted=True)))[0]
    assert (outcome.verdict, str(outcome.reply)[:9]) == (DEFERRED, "451 4.4.4")


async def test_dns_trouble_defers_even_beside_refused_hosts(dns, looking_up):
    dns.fail("broken.example", "SERVFAIL")
    dns.add("private.example", "A", "10.0.0.1")
    site = site_of(("broken.example", 25), ("private.example", 25), trusted=False)
    outcome = (await looking_up.carry(site))[0]
    assert (outcome.verdict, outcome.scope) == (DEFERRED, Scope.SITE)


@pytest.fixture
def no_descriptors():
    """The process has every descriptor it may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []

    def spend():
        gc.collect()  # what earlier tests left behind must not give one back in the middle
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))

    yield spend
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for descriptor in taken:
        os.close(descriptor)


async def test_without_descriptors_mail_is_deferred_and_nobody_blamed(start, carrier, no_descriptors):
    first, second = await start(), await start()
    await carrier.carry(first)
    no_descriptors()
    outcome = (await carrier.carry(second))[0]
    assert (outcome.verdict, outcome.reply, outcome.host) == (DEFERRED, reply.LOCAL_TROUBLE, "")
    assert second.sessions == []
    # What is open still works.
    assert (await carrier.carry(first))[0].verdict is DELIVERED


class WithoutIPv6:
    """The running loop on a machine where net.ipv6.conf.all.disable_ipv6 is set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name):
        return getattr(self._loop, name)

    async def create_connection(self, factory, host, port, **options):
        if ":" in host:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return await self._loop.create_connection(factory, host, port, **options)


async def test_without_ipv6_a_hosts_ipv4_address_is_used(start, dns, monkeypatch):
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.0/8", "::1/128"])
    peer = await start()
    dns.add("dual.example", "AAAA", "::1")
    dns.add("dual.example", "A", "127.0.0.1")
    loop = WithoutIPv6()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    outcome = (await carrier.carry(site_of(("dual.example", peer.port), trusted=False)))[0]
    assert outcome.verdict is DELIVERED
    await carrier.close()


async def test_a_bug_defers_its_message_and_nothing_else(start, carrier):
    peer = await start({"EHLO": "250 peer.example"})
    carrier.delivery._pool = None
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.scope, str(outcome.reply)[:9]) == (DEFERRED, Scope.MESSAGE, "451 4.3.0")
