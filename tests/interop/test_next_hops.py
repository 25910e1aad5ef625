"""Postfix, Exim and OpenSMTPD as next hops of a running relayd: what is submitted comes out behind them, once and whole.

Each passes mail on to a sink, where it has two trace headers more than when it was submitted. Notifications come to the
same sink straight from relayd.
"""

import asyncio
import collections
import hashlib
import os
import re
import smtplib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.conftest import Eventually
from tests.fakes.judge import Judge
from tests.fakes.relay_process import HOST, RelayProcess
from tests.fakes.sender import Sender
from tests.fakes.sink import Received, Sink
from tests.interop.mail_servers import DOMAIN, EXIM, OPENSMTPD, POSTFIX, RECIPIENTS, Kind, MailServer, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENDER = "a@sender.test"
SIX_OCTETS = "é€".encode() + b"!"
HEADER = (
    b"From: <a@sender.test>\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <next-hop@sender.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
)
DOTS = b".\r\n..\r\n.hidden\r\n...\r\n" + b"." * 998 + b"\r\n." + b"x" * 997 + b"\r\n" + b"y" * 998 + b"\r\n\r\n.\r\n"
MESSAGES = {
    "plain": HEADER + b"\r\nHello.\r\n",
    "no-body": HEADER + b"\r\n",
    "dots": HEADER + b"\r\n" + DOTS,
    "8-bit": HEADER + b"\r\n" + SIX_OCTETS * 100 + b"\r\n" + bytes(range(128, 256)) + b"\r\n",
    "blanks": HEADER + b"Subject: folded\r\n\t and \r\n  folded again \t\r\n\r\n \t \r\n\r\nFrom here\r\n\r\n\r\n",
    # Above limits.inline_body and the BDAT chunk of anybody; dots at line starts all the way.
    "large": HEADER + b"\r\n" + (b"." * 60 + SIX_OCTETS * 5 + b"\r\n") * 30_000,
}


class Hop(NamedTuple):
    """A relayd, the server its mail for peer.test goes to, and the sink behind that one."""

    relay: RelayProcess
    server: MailServer
    sink: Sink

    async def submit(self, recipients: Sequence[str], content: bytes, *options: str) -> None:
        """Through smtplib, which shares no code with relayd; all recipients taken."""

        def session() -> None:
            with smtplib.SMTP(HOST, self.relay.ports["relay"], timeout=30) as client:
                assert client.sendmail(SENDER, recipients, content, ["BODY=8BITMIME", *options]) == {}

        await asyncio.to_thread(session)

    def mail(self) -> list[Received]:
        """What came through the server."""
        return [each for each in self.sink.received if not each.sender.startswith(b"<>")]

    def onward(self) -> Iterator[Received]:
        """The mail as relayd handed it to the server, which has to say whether TLS was used."""
        for received in self.mail():
            content = received.behind_trace()
            trace = received.content.removesuffix(content)
            protocol = re.search(rb"by peer\.test.*?with (?:utf8)?e?smtp(s?)\b", trace, re.DOTALL | re.IGNORECASE)
            assert protocol, trace
            assert bool(protocol[1]) == self.server.tls, trace
            yield received._replace(content=content)

    def delivered(self) -> collections.Counter[tuple[str, str]]:
        """How often each came: recipient and digest, in however many transactions."""
        return collections.Counter(
            (recipient, digest(received.behind_trace()))
            for received in self.onward()
            for recipient in received.addresses
        )

    def notifications(self) -> list[str]:
        """What the sender was told."""
        return [each.content.decode() for each in self.sink.received if each.sender.startswith(b"<>")]


@pytest.fixture(scope="module", params=[POSTFIX, EXIM, OPENSMTPD], ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    kind: Kind = request.param
    with running(kind, tmp_path_factory.mktemp(kind.name)) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_hop(server: MailServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hop]:
    # The sink outlives a test: a server that finds a kept connection closed waits for minutes before it tries again.
    sink = Sink()
    sink.port = server.sink
    async with (
        sink,
        RelayProcess(
            tmp_path_factory.mktemp("relay"),
            [sink.port],
            routes={DOMAIN: [server.port]},
            delivery="connections_per_site = 4",
        ) as relay,
    ):
        yield Hop(relay, server, sink)


@pytest.fixture
def hop(running_hop: Hop) -> Hop:
    running_hop.sink.received.clear()
    return running_hop


def digest(content: bytes) -> str:
    return f"{len(content)} octets, {hashlib.sha256(content).hexdigest()}"


async def arrivals(hop: Hop, count: int, eventually: Eventually) -> Mapping[tuple[str, str], int]:
    """What was delivered, when so much has come and relayd's queue is empty."""
    await eventually(lambda: sum(len(each.recipients) for each in hop.mail()) >= count, 30)
    await hop.relay.emptied()
    return hop.delivered()


async def test_tls_works_where_debian_makes_it_work(server: MailServer) -> None:
    # Where OpenSMTPD's handshake fails, all that follows is about falling back.
    assert server.tls or server.kind is OPENSMTPD


async def test_every_message_arrives_byte_for_byte(hop: Hop, eventually: Eventually) -> None:
    sent = {f"n{number}-{name}@{DOMAIN}": content for number, (name, content) in enumerate(MESSAGES.items())}
    for recipient, content in sent.items():
        await hop.submit([recipient], content)
    got = await arrivals(hop, len(sent), eventually)
    assert got == {(recipient, digest(content)): 1 for recipient, content in sent.items()}


async def test_addresses_in_utf8_arrive_or_the_sender_is_told(hop: Hop, eventually: Eventually) -> None:
    recipients = [f"n1-müller@{DOMAIN}", f"n2-почта@{DOMAIN}"]
    content = "Subject: grüße\r\n".encode() + MESSAGES["8-bit"]
    await hop.submit(recipients, content, "SMTPUTF8")
    if hop.server.kind.smtputf8:
        got = await arrivals(hop, 2, eventually)
        assert got == {(recipient, digest(content)): 1 for recipient in recipients}
        assert all(b" SMTPUTF8" in received.sender for received in hop.sink.received)
    else:
        await eventually(hop.notifications)
        await hop.relay.emptied()
        (told,) = hop.notifications()
        assert told.count("Status: 5.6.7") == 2
        assert all(recipient in told for recipient in recipients)
        assert not hop.delivered()


async def test_more_recipients_than_it_takes_at_once(hop: Hop, eventually: Eventually) -> None:
    recipients = [f"n{number}@{DOMAIN}" for number in range(3 * RECIPIENTS + 1)]
    await hop.submit(recipients, MESSAGES["plain"])
    got = await arrivals(hop, len(recipients), eventually)
    assert got == {(recipient, digest(MESSAGES["plain"])): 1 for recipient in recipients}


async def test_unknown_users_are_told_apart(hop: Hop, eventually: Eventually) -> None:
    await hop.submit([f"nobody@{DOMAIN}", f"n1@{DOMAIN}", f"noone@{DOMAIN}"], MESSAGES["dots"])
    assert await arrivals(hop, 1, eventually) == {(f"n1@{DOMAIN}", digest(MESSAGES["dots"])): 1}
    await eventually(hop.notifications)
    (told,) = hop.notifications()
    failed = re.findall(r"^Final-Recipient: rfc822; (\S+)\r$", told, re.MULTILINE)
    assert sorted(failed) == [f"nobody@{DOMAIN}", f"noone@{DOMAIN}"]
    assert re.findall(r"^Status: (\S+)\r$", told, re.MULTILINE) == [hop.server.kind.unknown_user] * 2


async def test_three_hundred_over_few_sessions(hop: Hop, eventually: Eventually) -> None:
    judge = Judge()
    before = hop.server.sessions()
    async with asyncio.timeout(60):
        await Sender(hop.relay.ports["relay"], judge, sessions=4).send(range(300), DOMAIN)
    await arrivals(hop, 300, eventually)
    for received in hop.onward():
        judge.take(received)
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert (verdict.acknowledged, len(verdict.duplicate)) == (300, 0)
    assert before > 0, "sessions are not counted"
    assert hop.server.sessions() - before <= 300 // 5  # twice as many where TLS fails: it is dialled again in clear
    samples = await hop.relay.metrics()
    assert samples["relayd_uncertain_deliveries_total"] == 0
    assert samples["relayd_bugs_total"] == 0


@pytest.mark.parametrize("server", [EXIM], indirect=True, ids=["exim"])
async def test_greylisting_delays_the_one_it_is_about(hop: Hop, eventually: Eventually) -> None:
    before = await hop.relay.metrics()
    recipients = [f"n1-grey@{DOMAIN}", f"n2@{DOMAIN}"]
    await hop.submit(recipients, MESSAGES["8-bit"])
    got = await arrivals(hop, 2, eventually)
    assert got == {(recipient, digest(MESSAGES["8-bit"])): 1 for recipient in recipients}
    deferred = 'relayd_deliveries_total{result="deferred"}'
    assert (await hop.relay.metrics())[deferred] == before[deferred] + 1
