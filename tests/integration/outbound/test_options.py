"""Each option about outgoing mail, from the text of the file to what the next hop sees: none is without effect.

A whole service without listeners: mail goes into its queue, the DNS and the next hops are fakes on loopback.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from pathlib import Path

import pytest
import trustme

from relayd.config.load import load
from relayd.service import Service
from relayd.spool.records import DEFERRED
from tests.fakes.dns_server import DnsServer
from tests.fakes.smtp_peer import CAPABILITIES
from tests.integration.outbound.rig import BODY, envelope

HOST = "mx.peer.example"

PLACES = {
    "domains": '[[destinations]]\ndomains = ["peer.example"]\n',
    "hosts": '[[destinations]]\nhosts = ["*.peer.example"]\n',
    "route": f'[[routes]]\ndomains = ["peer.example"]\nnext_hops = ["{HOST}:PORT"]\n',
}
"""Three ways to say an option, for mail to the same domain."""

everywhere = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())


class Relay:
    """A service, and how to give it mail."""

    def __init__(self, service: Service) -> None:
        self.queue = service.queue
        self.service = service

    async def submit(self, *recipients: str, body: bytes = BODY, **fields) -> str:
        message = envelope(*(recipients or ("b@peer.example",)), id=self.queue.new_id(), size=len(body), **fields)
        await self.queue.accept(message, body)
        return message.id

    async def submit_large(self, *, body: bytes, **fields) -> None:
        """As `submit`, by way of a file."""
        writing = self.queue.file(self.queue.new_id())
        for start in range(0, len(body), 100_000):
            writing.write(body[start : start + 100_000])
        filed = await writing.finish()
        await self.queue.accept(envelope("b@peer.example", id=writing.id, size=len(body), **fields), filed)

    def results(self, name: str):
        """Of a message that is still here; empty when it is gone."""
        message = self.queue.get(name)
        return message.results if message else ()

    @property
    def empty(self) -> bool:
        return not any(self.service.scheduler.counts().values())


@pytest.fixture
async def dns():
    async with DnsServer() as dns:
        dns.add("peer.example", "MX", f"10 {HOST}")
        dns.add(HOST, "A", "127.0.0.1")
        yield dns


@pytest.fixture
async def serve(tmp_path: Path, dns: DnsServer):
    """`relay = await serve(port, text)`: PORT in the text is the port, too."""
    async with contextlib.AsyncExitStack() as stack:

        async def served(port: int, text: str, **delivery) -> Relay:
            usual = {"port": port, "private_next_hops": '["127.0.0.0/8", "::1/128"]', **delivery}
            said = "\n".join(f"{name} = {value}" for name, value in usual.items())
            (tmp_path / "relayd.toml").write_text(
                f'hostname = "relay.example"\nworkers = 1\n[dns]\nnameservers = ["{dns.address}"]\n'
                f'[admin]\nbind = "127.0.0.1:0"\n[relay]\ntrusted_networks = ["10.0.0.0/8"]\n[delivery]\n{said}\n' + text.replace("PORT", str(port))
            )
            service = Service(load(tmp_path / "relayd.toml"))
            stack.push_async_callback(service.stop, "end of test")
            service.bind()
            await service.start()
            return Relay(service)

        yield served


@pytest.fixture
def authority(tmp_path: Path, monkeypatch) -> trustme.CA:
    """The only one the system trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return authority


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


# --- limits -----------------------------------------------------------------------------------------------------------


@everywhere
async def test_connections(start, serve, eventually, place):
    gate = asyncio.Event()

    async def slow(session, line):
        await gate.wait()
        return "250 ok"

    peer = await start({"MAIL": slow})
    relay = await serve(peer.port, place + "connections = 2\n")
    for _ in range(6):
        await relay.submit()
    await eventually(lambda: relay.service.scheduler.counts()["active"] == 2)
    assert len(peer.sessions) <= 2
    gate.set()
    await eventually(lambda: relay.empty)
    assert (len(peer.messages), len(peer.sessions)) == (6, 2)


@everywhere
async def test_connections_that_are_not_closed_yet_count(start, serve, eventually, place):
    at_once = []

    async def slow(session, line):
        await asyncio.sleep(0.1)  # the peer takes its time, and its limit counts this session meanwhile
        return "221 bye"

    def greet(session, line):
        at_once.append(sum(not one.closed for one in peer.sessions))
        return "220 peer.example"

    peer = await start({"GREETING": greet, "QUIT": slow})
    relay = await serve(peer.port, place + "connections = 2\nmessages_per_connection = 1\n")
    for _ in range(6):
        await relay.submit()
    await eventually(lambda: relay.empty)
    assert (len(peer.messages), max(at_once)) == (6, 2)


async def test_connections_are_those_of_the_delivery_where_nobody_says(start, serve, eventually):
    gate = asyncio.Event()

    async def slow(session, line):
        await gate.wait()
        return "250 ok"

    peer = await start({"MAIL": slow})
    relay = await serve(peer.port, "", connections_per_site=3)
    for _ in range(6):
        await relay.submit()
    await eventually(lambda: len(peer.sessions) == 3)
    assert relay.service.scheduler.counts()["active"] == 3
    gate.set()
    await eventually(lambda: relay.empty)


@everywhere
async def test_messages_per_second(start, serve, eventually, place):
    times: list[float] = []

    def take(session, line):
        times.append(asyncio.get_running_loop().time())
        return "250 ok"

    peer = await start({"MAIL": take})
    relay = await serve(peer.port, place + "messages_per_second = 20\n")
    for _ in range(8):
        await relay.submit()
    await eventually(lambda: relay.empty)
    assert times[-1] - times[0] >= 7 / 20 - 0.05


@everywhere
async def test_messages_per_connection(start, serve, eventually, place):
    peer = await start()
    relay = await serve(peer.port, place + "connections = 1\nmessages_per_connection = 2\n")
    for _ in range(6):
        await relay.submit()
    await eventually(lambda: relay.empty)
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [2, 2, 2]


# --- how ----------------------------------------------------------------------------------------------------------------

NO_TLS, OTHER_NAME, RIGHT = "no TLS", "another name's certificate", "the name's certificate"


@everywhere
@pytest.mark.parametrize(
    ("tls", "offered", "expected"),
    [
        ("none", RIGHT, "clear"),
        ("opportunistic", NO_TLS, "clear"),
        ("opportunistic", OTHER_NAME, "TLS"),
        ("encrypt", NO_TLS, "4.7.4"),
        ("encrypt", OTHER_NAME, "TLS"),
        ("verify", NO_TLS, "4.7.4"),
        ("verify", OTHER_NAME, "4.7.5"),
        ("verify", RIGHT, "TLS"),
    ],
)
async def test_tls(start, serve, eventually, authority, place, tls, offered, expected):
    names = {OTHER_NAME: "elsewhere.example", RIGHT: HOST}
    peer = await start(tls=certified(authority, names[offered]) if offered in names else None)
    relay = await serve(peer.port, f'{place}tls = "{tls}"\n')
    name = await relay.submit()
    if expected in {"TLS", "clear"}:
        await eventually(lambda: relay.empty)
        assert [message.tls for message in peer.messages] == [expected == "TLS"]
    else:
        [result] = await eventually(lambda: any(relay.results(name)) and relay.results(name))
        assert (result.state, result.reply.enhanced) == (DEFERRED, expected)
        assert "MAIL" not in str(peer.sessions[0].verbs())


@everywhere
@pytest.mark.parametrize("said", ["", 'retry_schedule = ["90s", "3h"]\n'], ids=["usual", "own"])
async def test_retry_schedule(start, serve, eventually, place, said):
    peer = await start({"RCPT": "450 4.2.0 later"})
    relay = await serve(peer.port, place + said, retry_schedule='["10m"]')
    name = await relay.submit()
    [result] = await eventually(lambda: any(relay.results(name)) and relay.results(name))
    assert result.due - result.at == pytest.approx(90 if said else 600, rel=0.1)


async def test_retry_schedule_of_a_domain_that_the_dns_does_not_tell_of(serve, dns, eventually):
    dns.fail("peer.example")
    relay = await serve(25, PLACES["domains"] + 'retry_schedule = ["90s"]\n')
    name = await relay.submit()
    [result] = await eventually(lambda: any(relay.results(name)) and relay.results(name))
    assert result.due - result.at == pytest.approx(90, rel=0.1)


@everywhere
@pytest.mark.parametrize(("family", "expected"), [("ipv4", "127.0.0.1"), ("ipv6", "::1"), ("any", "::1")])
async def test_addresses(start, serve, eventually, dns, place, family, expected):
    dns.add(HOST, "AAAA", "::1")
    four = await start()
    six = await start(host="::1", port=four.port)
    relay = await serve(four.port, f'{place}addresses = "{family}"\n')
    await relay.submit()
    await eventually(lambda: relay.empty)
    assert [session.client for session in four.sessions + six.sessions] == [expected]


EIGHT_BITS = BODY + "grüße\r\n".encode()


@everywhere
@pytest.mark.parametrize(
    ("said", "capability", "body", "declared", "taken"),
    [
        ("send", False, EIGHT_BITS, True, True),
        ("refuse", True, EIGHT_BITS, True, True),
        ("refuse", False, EIGHT_BITS, True, False),
        ("refuse", False, EIGHT_BITS, False, False),  # whatever its client said, or did not say: octets count
        ("refuse", False, BODY, True, True),
    ],
)
async def test_eight_bit(start, serve, eventually, place, said, capability, body, declared, taken):
    peer = await start(capabilities=CAPABILITIES if capability else ("PIPELINING",))
    relay = await serve(peer.port, f'{place}eight_bit = "{said}"\n')
    await relay.submit(body=body, eightbit=declared, sender="")
    await relay.submit_large(body=body + b"x\r\n" * 100_000, eightbit=declared, sender="")
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 2 * taken


SOURCE = '[[sources]]\nname = "{0}"\naddresses = [{{ipv4 = "{1}", hostname = "{0}.example"}}]\n'


@pytest.mark.parametrize("place", ["domains", "route"])
async def test_source(start, serve, eventually, place):
    peer = await start()
    relay = await serve(peer.port, PLACES[place] + 'source = "main"\n' + SOURCE.format("main", "127.0.0.5"))
    await relay.submit()
    await eventually(lambda: relay.empty)
    assert [(session.client, session.lines[0]) for session in peer.sessions] == [("127.0.0.5", "EHLO main.example")]


async def test_source_of_an_account_counts_first(start, serve, eventually):
    peer = await start()
    own = SOURCE.format("own", "127.0.0.6") + 'accounts = ["user:ada"]\n'
    relay = await serve(peer.port, PLACES["route"] + 'source = "main"\n' + SOURCE.format("main", "127.0.0.5") + own)
    await relay.submit(account="user:ada")
    await relay.submit(account="user:bob")
    await eventually(lambda: relay.empty)
    assert {session.client for session in peer.sessions} == {"127.0.0.5", "127.0.0.6"}
    assert {message.mail[:9] for message in peer.messages} == {"MAIL FROM"}


# --- which --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "fields"),
    [
        ('senders = ["<>"]', {"sender": ""}),
        ('senders = ["*.Sender.example"]', {"sender": "x@sub.sender.example"}),
        ('senders = ["ADA@sender.example"]', {"sender": "ada@Sender.Example"}),
        ('accounts = ["user:ada"]', {"account": "user:ada"}),
        ('senders = ["*"]\naccounts = ["net:10.0.0.0/8"]', {"account": "net:10.0.0.0/8"}),
    ],
)
async def test_conditions_of_a_route(start, serve, eventually, condition, fields):
    usual, special = await start(), await start()
    route = f'[[routes]]\ndomains = ["*"]\nnext_hops = ["127.0.0.1:{special.port}"]\n{condition}\n'
    relay = await serve(usual.port, route)
    await relay.submit(**fields)
    await relay.submit(account="user:other", sender="other@elsewhere.example")
    await eventually(lambda: relay.empty)
    assert (len(special.messages), len(usual.messages)) == (1, 1)


HOPS = '[[routes]]\ndomains = ["*"]\nmessages_per_connection = 1\nnext_hops = [{}]\n'


async def test_weights(start, serve, eventually):
    peers = [await start(), await start()]
    hops = [
        f'{{host = "127.0.0.1", port = {peer.port}, weight = {weight}, preference = 0}}'
        for peer, weight in zip(peers, (1, 1_000_000), strict=True)
    ]
    relay = await serve(25, HOPS.format(", ".join(hops)))
    for _ in range(20):
        await relay.submit()
    await eventually(lambda: relay.empty)
    assert [len(peer.messages) for peer in peers] == [0, 20]


async def test_preference(start, serve, eventually):
    """The second alone where the first is down, whatever their order."""
    first, second = await start({"GREETING": ["220 peer.example"] * 2 + ["554 no"] * 9}), await start()
    hops = f'{{host = "127.0.0.1", port = {second.port}, preference = 7}}, {{host = "127.0.0.1", port = {first.port}, preference = 3}}'
    relay = await serve(25, HOPS.format(hops))
    for number in range(4):
        await relay.submit()
        await eventually(lambda number=number: len(first.messages) + len(second.messages) == number + 1)
    assert (len(first.messages), len(second.messages)) == (2, 2)


async def test_mail_hosts_in_order_of_preference(start, serve, eventually, dns):
    dns.add("two.example", "MX", "20 b.two.example", "10 a.two.example")
    dns.add("a.two.example", "A", "127.0.0.2")
    dns.add("b.two.example", "A", "127.0.0.3")
    second = await start(host="127.0.0.3")
    relay = await serve(second.port, "")
    await relay.submit("x@two.example")
    await eventually(lambda: relay.empty)
    first = await start(host="127.0.0.2", port=second.port)
    assert (len(first.messages), len(second.messages)) == (0, 1)


async def test_the_first_destination_that_matches_counts(start, serve, eventually):
    peer = await start({"RCPT": "450 4.2.0 later"})
    first = PLACES["hosts"] + 'retry_schedule = ["90s"]\n'
    relay = await serve(peer.port, first + PLACES["domains"] + 'retry_schedule = ["1h"]\n')
    name = await relay.submit()
    [result] = await eventually(lambda: any(relay.results(name)) and relay.results(name))
    assert result.due - result.at == pytest.approx(90, rel=0.1)


@pytest.mark.parametrize("tls", ["opportunistic", "verify"])
async def test_implicit_tls(start, serve, eventually, authority, tls):
    peer = await start(tls=certified(authority, HOST), implicit_tls=True)
    hop = f'{{host = "{HOST}", port = {peer.port}, implicit_tls = true}}'
    relay = await serve(25, HOPS.format(hop) + f'tls = "{tls}"\n')
    await relay.submit()
    await eventually(lambda: relay.empty)
    assert [message.tls for message in peer.messages] == [True]
    assert "STARTTLS" not in peer.sessions[0].verbs()


async def test_credentials(start, serve, eventually, authority, tmp_path):
    """With no word of TLS, they go to a verified host alone."""
    (tmp_path / "secret").write_text("correct horse\n")
    peer = await start(capabilities=(*CAPABILITIES, "AUTH PLAIN"), tls=certified(authority, HOST))
    relay = await serve(peer.port, PLACES["route"] + 'credentials = {username = "ada", password_file = "secret"}\n')
    await relay.submit()
    await eventually(lambda: relay.empty)
    said = base64.b64encode(b"\0ada\0correct horse").decode()
    assert peer.sessions[0].verbs()[:3] == ["EHLO", "STARTTLS", "EHLO"]
    assert f"AUTH PLAIN {said}" in peer.sessions[0].lines
    assert [message.tls for message in peer.messages] == [True]


async def test_authorities_are_read_anew_on_reload(start, serve, eventually, authority, tmp_path):
    other = trustme.CA()
    peer = await start(tls=certified(other, HOST))
    relay = await serve(peer.port, PLACES["route"] + 'tls = "verify"\nretry_schedule = ["200ms"]\n')
    name = await relay.submit()
    await eventually(lambda: any(relay.results(name)))
    assert peer.messages == []
    other.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    relay.service.reload()
    await eventually(lambda: relay.empty)
    assert [message.tls for message in peer.messages] == [True]
