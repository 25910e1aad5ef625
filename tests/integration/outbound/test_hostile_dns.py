"""A DNS that is against us, from the question to the bounce: what fails, what waits, and where mail never goes.

What records mean is tested in `tests/unit/resolver`; here it is what becomes of the mail, and of everyone else's.
"""

import asyncio
import itertools
import struct
from collections.abc import Callable

import pytest
from dnslib import CNAME, QTYPE, RR, A, DNSLabel, DNSRecord

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.resolver.client import MAX_ADDRESSES, MAX_TTL, MIN_TTL, Resolver
from relayd.resolver.mx import MAX_HOSTS
from relayd.spool.records import State
from tests.fakes.dns_server import DnsServer
from tests.integration.outbound.rig import Carrier, site_of

LOOPBACK = ("127.0.0.0/8",)
DELIVERED, DEFERRED, FAILED = Verdict.DELIVERED, Verdict.DEFERRED, Verdict.FAILED


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def peer(start):
    return await start()


@pytest.fixture
async def result(dns, peer, relay, eventually):
    """`await result(domain)`: how the first attempt for the domain ended. Mail for sender.example goes to the peer."""
    relay = await relay(
        nameserver=dns.address,
        port=peer.port,
        private_next_hops=LOOPBACK,
        routes={"sender.example": [peer]},
        retry_schedule=(3600,),
    )
    ended = {}
    told = relay.dispatcher._conclusion._settling.ended

    def listen(entry, results):
        ended[entry.message.id] = results
        told(entry, results)

    relay.dispatcher._conclusion._settling.ended = listen

    async def first(domain, sender="a@sender.example"):
        name = await relay.submit(f"b@{domain}", sender=sender)
        (only,) = await eventually(lambda: ended.get(name))
        return only

    return first


def said(result):
    return result.state, str(result.reply)[:9].rstrip()


# --- 26: answers that are no hosts


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([("MX", "0 .")], (State.FAILED, "550 5.1.1")),
        ([("MX", "10 192.0.2.1")], (State.FAILED, "550 5.4.4")),
        ([("MX", "10 127.0.0.1")], (State.FAILED, "550 5.4.4")),
        ([("MX", "10 nowhere.example")], (State.FAILED, "550 5.4.4")),
        ([("MX", "10 relay.example")], (State.FAILED, "550 5.4.6")),
        ([("TXT", "v=spf1 -all")], (State.FAILED, "550 5.1.2")),
    ],
    ids=["null", "IPv4 as text", "own IPv4 as text", "a host without address", "ourselves", "nothing"],
)
async def test_attack_26_exchanges_that_are_none(dns, peer, result, records, expected):
    for kind, value in records:
        dns.add("d.example", kind, value)
    assert said(await result("d.example")) == expected


async def test_attack_26_a_null_mx_bounces_at_once_with_its_own_code(dns, peer, result, eventually):
    dns.add("null.example", "MX", "0 .")
    dns.add("null.example", "A", "127.0.0.1")
    found = await result("null.example")
    assert (found.state, found.reply.enhanced, found.attempts) == (State.FAILED, "5.1.10", 1)
    await eventually(lambda: peer.messages)
    assert b"Status: 5.1.10\r\n" in peer.messages[0].body
    assert peer.recipients == ["RCPT TO:<a@sender.example>"]


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR", "NOTAUTH"])
async def test_attack_26_no_answer_is_no_verdict(dns, result, code):
    dns.fail("d.example", code)
    assert said(await result("d.example")) == (State.DEFERRED, "451 4.4.3")


async def test_attack_26_nxdomain_is_a_verdict(dns, result):
    assert said(await result("d.example")) == (State.FAILED, "550 5.1.2")


async def test_attack_26_silence_defers(dns):
    dns.drop("d.example")
    resolver = Resolver([dns.address], "relay.example", seconds=0.4)
    found = await resolver.mail_hosts("d.example")
    assert isinstance(found, Outcome)
    assert (found.verdict, found.scope, found.reply.enhanced) == (DEFERRED, Scope.SITE, "4.4.3")
    await resolver.close()


async def test_attack_26_an_mx_that_is_an_alias_is_followed(dns, peer, result):
    """RFC 2181 §10.3 forbids it; half of the world does it."""
    dns.add("d.example", "MX", "10 mx.d.example")
    dns.add("mx.d.example", "CNAME", "host.example")
    dns.add("host.example", "A", "127.0.0.1")
    assert (await result("d.example")).state is State.DELIVERED
    assert peer.recipients == ["RCPT TO:<b@d.example>"]


@pytest.mark.parametrize("chase", [True, False])
async def test_attack_26_aliases_that_go_in_circles_defer(dns, result, chase):
    dns.chase = chase
    dns.add("d.example", "MX", "10 a.example")
    dns.add("a.example", "CNAME", "b.example")
    dns.add("b.example", "CNAME", "a.example")
    assert said(await result("d.example")) == (State.DEFERRED, "451 4.4.3")
    assert sum(dns.queries.values()) < 50


@pytest.mark.parametrize("chase", [True, False])
async def test_attack_26_a_thousand_aliases_are_not_followed(dns, result, chase):
    dns.chase = chase
    dns.add("d.example", "MX", "10 h0.example")
    for number in range(1000):
        dns.add(f"h{number}.example", "CNAME", f"h{number + 1}.example")
    dns.add("h1000.example", "A", "127.0.0.1")
    assert said(await result("d.example")) == (State.DEFERRED, "451 4.4.3")
    assert sum(dns.queries.values()) < 50


async def test_attack_26_an_alias_with_hostile_octets_leads_nowhere(dns, result):
    for number, labels in enumerate([(b"a\0b",), (b"a\r\nRCPT TO:<x@y>",), (b"a.b",), (b"\xff" * 63,), (b" ",)]):
        dns.add(f"d{number}.example", "MX", f"10 mx{number}.example")
        dns._records[f"mx{number}.example"] = [
            RR(f"mx{number}.example", QTYPE.CNAME, rdata=CNAME(DNSLabel((*labels, b"example"))), ttl=300)
        ]
        dns.chase = False
        found = await result(f"d{number}.example", sender="")
        assert found.state in (State.FAILED, State.DEFERRED)
        assert found.reply.text.isprintable()


async def test_attack_26_exchanges_with_hostile_octets_are_left_out(dns, peer, result):
    for labels in ((b"a\0b", b"example"), (b"a\nb", b"example"), (b"a\r\nDATA\r\n", b"example"), (b"x" * 63,) * 3):
        dns.add_exchange("d.example", 1, labels)
    dns.add("d.example", "MX", "10 mx.example")
    dns.add("mx.example", "A", "127.0.0.1")
    assert (await result("d.example")).state is State.DELIVERED
    assert dns.asked("mx.example", "A") == 1


async def test_attack_26_as_many_exchanges_as_a_reply_can_hold(dns, peer, result):
    """By TCP: RFC 1035 §4.2.2 gives it 65,535 octets, which is 2,900 exchanges. The best of them are tried."""
    dns.add("d.example", "MX", *(f"{10 + number} h{number}.d.example" for number in range(2900)))
    dns.add("d.example", "MX", "1 mx.d.example")
    dns.add("mx.d.example", "A", "127.0.0.1")
    assert (await result("d.example")).state is State.DELIVERED
    assert dns.tcp_queries == 1
    assert sum(dns.queries.values()) < 10


async def test_attack_26_thousands_of_exchanges_that_lead_nowhere_cost_few_questions(dns, result):
    dns.add("d.example", "MX", *(f"10 h{number}.d.example" for number in range(2900)))
    assert (await result("d.example")).state is State.FAILED
    assert len(dns.queries) <= 1 + 2 * MAX_HOSTS


async def test_attack_26_hundreds_of_addresses_are_few_connections(start, dns):
    first = await start({"GREETING": "421 no"}, host="127.0.0.2")
    others = [await start({"GREETING": "421 no"}, host=f"127.0.0.{n}", port=first.port) for n in range(3, 20)]
    dns.add("mx.example", "A", *(f"127.0.{third}.{fourth}" for third in range(2) for fourth in range(2, 252)))
    carrier = Carrier(nameserver=dns.address, networks=LOOPBACK)
    outcome = (await carrier.carry(site_of(("mx.example", first.port), trusted=False)))[0]
    assert outcome.verdict is DEFERRED
    assert sum(len(peer.sessions) for peer in (first, *others)) <= MAX_ADDRESSES
    await carrier.close()


class Shouting(DnsServer):
    """Gives names back in upper case, those of the question too (as `draft-vixie-dnsext-dns0x20` makes clients mix)."""

    async def _reply(self, query: DNSRecord) -> DNSRecord | None:
        reply = await super()._reply(query)
        if reply is not None:
            reply.q.qname = DNSLabel(str(reply.q.qname).upper())
            for rr in reply.rr:
                rr.rname = DNSLabel(str(rr.rname).upper())
        return reply


async def test_attack_26_case_is_no_difference():
    async with Shouting() as dns:
        dns.chase = False
        dns.add("d.example", "CNAME", "E.Example")
        dns.add("e.example", "MX", "10 Mx.Example")
        dns.add("mx.example", "A", "192.0.2.1")
        resolver = Resolver([dns.address], "relay.example", seconds=3)
        assert await resolver.mail_hosts("d.EXAMPLE") == ((("mx.example",),), 300)
        assert await resolver.addresses("MX.example") == ("192.0.2.1",)
        await resolver.close()


async def test_attack_26_a_truncated_answer_is_asked_for_by_tcp_and_never_used(dns, peer, result):
    """Of the truncated one, nothing: the one that says TC may hold any part."""
    dns.add("d.example", "MX", *(f"{number} a-rather-long-name-{number:03}.d.example" for number in range(2, 80)))
    dns.add("d.example", "MX", "1 mx.example")
    dns.add("mx.example", "A", "127.0.0.1")
    assert (await result("d.example")).state is State.DELIVERED
    assert dns.tcp_queries == 1


async def test_attack_26_a_domain_that_nobody_answers_for_holds_up_no_other(dns, peer, relay, eventually):
    """Nor do 99 of them; a hundred domains are resolved at once."""
    dns.add("fine.example", "MX", "10 mx.example")
    dns.add("mx.example", "A", "127.0.0.1")
    relay = await relay(nameserver=dns.address, port=peer.port, private_next_hops=LOOPBACK, retry_schedule=(3600,))
    for number in range(99):
        dns.hold(f"tarpit{number}.example")
        await relay.submit(f"b@tarpit{number}.example")
    await relay.submit("b@fine.example")
    await eventually(lambda: peer.messages, seconds=4)
    assert peer.recipients == ["RCPT TO:<b@fine.example>"]
    assert sum(relay.scheduler.counts().values()) >= 99


# --- 27: answers that lead inside


INSIDE = {
    "A": [
        "127.0.0.1",
        "127.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
    ],
    "AAAA": [
        "::1",
        "::",
        "::ffff:7f00:1",
        "::ffff:a00:1",
        "fe80::1",
        "fd00::1",
        "fec0::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
}


@pytest.mark.parametrize(("kind", "address"), [(kind, address) for kind in INSIDE for address in INSIDE[kind]])
async def test_attack_27_addresses_inside_are_refused_unasked(dns, start, kind, address):
    peer = await start(host="0.0.0.0")
    carrier = Carrier(nameserver=dns.address)
    dns.add("mx.example", kind, address)
    outcome = (await carrier.carry(site_of(("mx.example", peer.port), trusted=False)))[0]
    assert (outcome.verdict, outcome.scope, outcome.reply.enhanced) == (FAILED, Scope.SITE, "5.4.4")
    assert outcome.host == ""
    assert peer.sessions == []
    await carrier.close()


async def test_attack_27_of_several_addresses_the_private_ones_are_left_out(dns, start):
    inside = await start(host="127.0.0.2")
    await start(host="127.0.0.3", port=inside.port)
    dns.add("mx.example", "A", "127.0.0.2", "10.0.0.1", "127.0.0.3")
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.3/32"])
    outcome = (await carrier.carry(site_of(("mx.example", inside.port), trusted=False)))[0]
    assert (outcome.verdict, outcome.host) == (DELIVERED, f"mx.example[127.0.0.3]:{inside.port}")
    assert inside.sessions == []
    await carrier.close()


async def test_attack_27_an_answer_that_changes_is_judged_each_time(dns, start):
    """Rebinding: the name leads outside when it is judged and inside a moment later. What is judged is connected to."""
    inside = await start(host="127.0.0.2")
    outside = await start(host="127.0.0.3", port=inside.port)
    now = 0.0
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.3/32"])
    resolver = carrier.delivery._resolver = Resolver([dns.address], "relay.example", now=lambda: now)
    site = site_of(("mx.example", inside.port), trusted=False)
    dns.add("mx.example", "A", "127.0.0.3", ttl=0)
    for step in range(6):
        await carrier.carry(site)
        carrier.pool.close()
        dns.remove("mx.example")
        dns.add("mx.example", "A", f"127.0.0.{2 + step % 2}", ttl=0)
        now += MAX_TTL
    assert dns.asked("mx.example", "A") == 6
    assert len(outside.messages) == 3
    assert inside.sessions == []
    await resolver.close()
    await carrier.close()


async def test_attack_27_the_address_of_the_socket_is_judged(dns, start, monkeypatch):
    """Even where the connection does not lead to the address that was asked for."""
    inside = await start(host="127.0.0.2")
    carrier = Carrier(nameserver=dns.address, networks=["127.0.0.3/32"])
    dns.add("mx.example", "A", "127.0.0.3")
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    class Elsewhere:
        def __getattr__(self, name):
            return getattr(loop, name)

        def create_connection(self, factory, host, port, **kwargs):
            return connect(factory, "127.0.0.2", port, **kwargs)

    monkeypatch.setattr("relayd.outbound.connector.asyncio.get_running_loop", Elsewhere)
    outcome = (await carrier.carry(site_of(("mx.example", inside.port), trusted=False)))[0]
    monkeypatch.undo()
    assert (outcome.verdict, outcome.reply.enhanced) == (DEFERRED, "4.4.1")
    assert inside.messages == []
    assert all(session.lines == [] for session in inside.sessions)
    await carrier.close()


async def test_attack_27_an_address_literal_leads_inside_no_more_than_a_name(dns, peer, relay, eventually):
    relay = await relay(nameserver=dns.address, port=peer.port, routes={"sender.example": [peer]})
    names = ["[127.0.0.1]", "[10.0.0.1]", "[169.254.169.254]", "[IPv6:::1]", "[IPv6:::ffff:127.0.0.1]"]
    await relay.submit(*[f"b@{name}" for name in names])
    await eventually(lambda: relay.empty)
    assert set(peer.recipients) == {"RCPT TO:<a@sender.example>"}
    assert b"".join(message.body for message in peer.messages).count(b"Status: 5.4.4") == len(names)


async def test_attack_27_our_own_name_among_others_ends_before_a_loop(dns, peer, result):
    dns.add("d.example", "MX", "10 relay.example", "20 mx.example")
    dns.add("relay.example", "A", "127.0.0.1")
    dns.add("mx.example", "A", "127.0.0.1")
    assert said(await result("d.example", sender="")) == (State.FAILED, "550 5.4.6")
    assert peer.sessions == []


# --- 28: answers of others


def forged(query: DNSRecord, number: int, name: str) -> bytes:
    """An answer that leads inside."""
    reply = query.reply()
    reply.header.id, reply.header.ra = number, 1
    reply.q.qname = DNSLabel(name)
    reply.add_answer(RR(name, QTYPE.A, rdata=A("127.6.6.6"), ttl=86400))
    return reply.pack()


class Spoofed(DnsServer):
    """Before each answer by UDP, one made by `forge(question)` comes from the server's address and port."""

    def __init__(self, forge: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._forge = forge

    async def _answer_datagram(self, data: bytes, client: tuple[str, int]) -> None:
        self._udp.sendto(self._forge(data), client)
        await super()._answer_datagram(data, client)


FORGERIES = {
    "another number": lambda data: forged(q := DNSRecord.parse(data), (q.header.id + 1) & 0xFFFF, str(q.q.qname)),
    "another question": lambda data: forged(q := DNSRecord.parse(data), q.header.id, f"bank.{q.q.qname}"),
    "nothing": lambda data: b"",
}

BROKEN = {
    "the number alone": lambda data: data[:2],
    "half a header": lambda data: data[:11],
    "garbage": lambda data: data[:2] + b"\xff" * 600,
    "a name that points to itself": lambda data: (
        data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0\xc0\x0c\0\1\0\1" + b"\xc0\x0c" * 30
    ),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_attack_28_what_does_not_belong_to_the_question_is_not_believed(forge):
    async with Spoofed(forge) as dns:
        dns.add("mx.example", "A", "192.0.2.1")
        resolver = Resolver([dns.address], "relay.example", seconds=3)
        assert await resolver.addresses("mx.example") == ("192.0.2.1",)
        await resolver.close()


@pytest.mark.parametrize("forge", BROKEN.values(), ids=BROKEN.keys())
async def test_attack_28_what_cannot_be_parsed_is_no_verdict(forge):
    async with Spoofed(forge) as dns:
        dns.add("mx.example", "MX", "10 mx.example")
        dns.add("mx.example", "A", "192.0.2.1")
        resolver = Resolver([dns.address], "relay.example", seconds=3)
        addresses, hosts = await resolver.addresses("mx.example"), await resolver.mail_hosts("mx.example")
        for found, right in ((addresses, ("192.0.2.1",)), (hosts, ((("mx.example",),), 300))):
            assert found == right or (found.verdict, found.reply.enhanced) == (DEFERRED, "4.4.3")
        await resolver.close()


class Generous(DnsServer):
    """Tells of a name that nobody asked for."""

    def _fill(self, reply: DNSRecord, name: str, kind: str) -> None:
        super()._fill(reply, name, kind)
        gift = RR("bank.example", QTYPE.A, rdata=A("127.6.6.6"), ttl=86400)
        reply.add_ar(gift)
        reply.add_auth(gift)


async def test_attack_28_records_of_other_names_are_not_kept():
    async with Generous() as dns:
        dns.add("evil.example", "A", "192.0.2.1")
        dns.add("bank.example", "A", "192.0.2.2")
        resolver = Resolver([dns.address], "relay.example", seconds=3)
        assert await resolver.addresses("evil.example") == ("192.0.2.1",)
        assert await resolver.addresses("bank.example") == ("192.0.2.2",)
        await resolver.close()


@pytest.mark.parametrize(
    ("ttl", "kept"),
    [(0, MIN_TTL), (1, MIN_TTL), (100, 100), (86_400, MAX_TTL), (2**31 - 1, MAX_TTL), (2**32 - 1, None)],
)
async def test_attack_28_no_answer_binds_for_longer_than_an_hour(dns, ttl, kept):
    """RFC 2181 §8: a TTL with the highest bit set counts as 0."""
    now = 0.0
    resolver = Resolver([dns.address], "relay.example", seconds=3, now=lambda: now)
    dns.add("d.example", "MX", "10 old.example", ttl=ttl)
    _, seconds = await resolver.mail_hosts("d.example")
    assert MIN_TTL <= seconds <= MAX_TTL
    assert kept in (None, seconds)
    assert (await resolver.mail_hosts("d.example"))[0] == (("old.example",),)
    assert dns.asked("d.example", "MX") == 1
    await resolver.close()


async def test_attack_28_questions_come_from_different_ports_with_different_numbers():
    """The library's work, watched: RFC 5452 §9.2. A guess of both is one in four thousand million."""
    seen = []

    class Watching(DnsServer):
        def datagram(self, data: bytes, client: tuple[str, int]) -> None:
            seen.append((client[1], struct.unpack("!H", data[:2])[0]))
            super().datagram(data, client)

    async with Watching() as dns:
        resolver = Resolver([dns.address], "relay.example", seconds=3)
        for number in range(40):
            await resolver.mail_hosts(f"d{number}.example")
        await resolver.close()
    ports, ids = zip(*seen, strict=True)
    assert len(set(ports)) > 0.5 * len(seen)
    assert len(set(ids)) > 0.9 * len(seen)
    steps = {(second - first) & 0xFFFF for first, second in itertools.pairwise(ids)}
    assert len(steps) > 0.9 * (len(ids) - 1)
