"""Connections: how many, what a shutdown does to them, and what happens when descriptors run out."""

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from relayd import clock, metrics
from relayd.config.schema import ListenerKind
from relayd.inbound.headcount import Headcount, table
from relayd.spool.queue import STALLED_SECONDS
from tests.fakes.inbound import HOSTNAME, QUICK, Inbound

MESSAGE = b"Subject: t\r\n\r\nText\r\n"


@pytest.fixture
async def inbound(tmp_path, certificate):
    async with Inbound(tmp_path, certificate) as started:
        yield started


@pytest.fixture
def two_processes():
    descriptor = table(2)
    yield [Headcount(descriptor, number) for number in range(2)]
    os.close(descriptor)


async def test_who_has_started_waits_for_the_others(tmp_path, certificate, two_processes, eventually):
    """Or all clients that came back after a restart would be the first one's."""
    own, other = two_processes
    timing = msgspec.structs.replace(QUICK, company=1000.0)
    inbound = Inbound(tmp_path, certificate, timing=timing, headcount=own)
    starting = asyncio.create_task(inbound.__aenter__())
    await eventually(lambda: not other.awaits)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*inbound.listeners._endpoints()[0][1:])
    other.open()
    await starting
    await inbound.connect()
    await inbound.__aexit__(None, None, None)


async def test_who_has_started_waits_no_longer_than_it_says(tmp_path, certificate, two_processes):
    timing = msgspec.structs.replace(QUICK, company=0.05)
    async with Inbound(tmp_path, certificate, timing=timing, headcount=two_processes[0]) as inbound:
        await inbound.connect()
    assert two_processes[0].awaits


async def test_connections_in_total(tmp_path, certificate, eventually):
    async with Inbound(tmp_path, certificate, settings={"limits": {"connections": 2}}) as inbound:
        clients = [await inbound.connect() for _ in range(2)]
        refused = await inbound.dial("relay")
        assert (await refused.reply()).startswith("421 4.3.2")
        assert await refused.ended()
        await clients[0].expect(221, "QUIT")
        await clients[0].ended()
        clients[0].close()
        await eventually(lambda: len(inbound.listeners._sessions) == 1)
        await inbound.connect()


async def test_a_client_that_was_just_accepted_is_greeted_before_a_shutdown_says_goodbye(inbound):
    """In the very turn of the loop in which it was taken off the socket: a reload refuses nobody."""
    listeners = inbound.listeners
    [relay] = [listener for listener, _ in listeners._sockets if listener.kind is ListenerKind.RELAY]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, peer = server.accept()
        accepted.setblocking(False)
        listeners._welcome(listeners._terms(relay), accepted, peer)
        await listeners.drain(5)
        said = await asyncio.to_thread(client.makefile("rb").read)
    assert [line[:3] for line in said.splitlines()] == [b"220", b"421"]


async def test_recipients_within_an_hour(tmp_path, certificate):
    """Those of one account, over all of its sessions and messages; mail for the others of a message goes."""
    async with Inbound(tmp_path, certificate, settings={"quotas": [{"recipients_per_hour": 3}]}) as inbound:
        first, second = [await inbound.connect("submission") for _ in range(2)]
        await first.begin("a@example.test", "b@example.test")
        await first.send(MESSAGE + b".\r\n")
        assert await first.code() == 250
        await second.begin("c@example.test")
        await second.send(MESSAGE + b".\r\n")
        assert await second.code() == 250
        await first.expect(250, "MAIL FROM:<a@sender.test>")
        assert (await first.ask("RCPT TO:<d@example.test>")).startswith("450 4.7.1")
        await first.expect(554, "DATA")
        assert [len(message.envelope.recipients) for message in inbound.messages] == [2, 1]
        relayed = await inbound.connect("relay")
        await relayed.begin(*[f"u{number}@example.test" for number in range(20)])


async def test_a_client_without_quota_that_asks_for_ever_is_sent_away(tmp_path, certificate):
    settings = {"quotas": [{"recipients_per_hour": 1}], "limits": {"recipients": 10}}
    async with Inbound(tmp_path, certificate, settings=settings) as inbound:
        client = await inbound.connect("submission")
        await client.expect(250, "MAIL FROM:<a@sender.test>")
        await client.send("RCPT TO:<b@example.test>\r\n" * 1011)
        assert [await client.code() for _ in range(1011)] == [250] + [450] * 1009 + [421]
        assert await client.ended()


async def test_connections_of_one_client(tmp_path, certificate):
    limits = {"limits": {"connections_per_client": 2}, "relay": {"trusted_networks": []}}
    async with Inbound(tmp_path, certificate, settings=limits) as inbound:
        for _ in range(2):
            await inbound.connect()
        refused = await inbound.dial("relay")
        assert (await refused.reply()).startswith("421 4.7.0")
        with pytest.raises(OSError):  # under implicit TLS nothing can be said in clear
            await inbound.dial("submissions")


async def test_trusted_clients_are_exempt(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"connections_per_client": 1}}) as inbound:
        for _ in range(3):
            await inbound.connect()


async def test_no_mail_is_taken_while_the_disk_stalls(inbound, monkeypatch, eventually):
    """Who has sent a message waits for its answer, as it may still be stored."""
    inbound.store.held = True
    waiting, next_one = await inbound.connect(), await inbound.connect()
    await waiting.begin()
    await waiting.send(MESSAGE + b".\r\n")
    await eventually(lambda: inbound.store.attempts)
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + STALLED_SECONDS + 1)
    await next_one.expect(451, "MAIL FROM:<a@b.test>")
    inbound.store.release()
    assert (await waiting.reply()).startswith("250 2.0.0")
    await next_one.expect(250, "MAIL FROM:<a@b.test>")


async def test_connections_are_counted(inbound, eventually):
    before = metrics.inbound_connections._value.get()
    clients = [await inbound.connect(kind) for kind in ("relay", "submission", "submissions")]
    assert metrics.inbound_connections._value.get() == before + 3
    for client in clients:
        client.reset()
    await eventually(lambda: metrics.inbound_connections._value.get() == before)
    assert not inbound.listeners._sessions


async def test_drain_closes_idle_sessions_and_lets_transactions_finish(inbound):
    idle, busy = await inbound.connect("relay"), await inbound.connect("submissions")
    await busy.begin()
    await busy.send(MESSAGE)
    draining = asyncio.create_task(inbound.listeners.drain(20.0))
    assert await idle.reply() == "421 4.3.2 Service is shutting down"
    assert await idle.ended()
    with pytest.raises(OSError):
        await inbound.dial("relay")
    assert not draining.done()
    await busy.send(b".\r\n")
    assert (await busy.reply()).startswith("250 2.0.0")
    assert (await busy.reply()).startswith("421 4.3.2")
    await draining
    assert len(inbound.messages) == 1


async def test_drain_cuts_what_does_not_end(inbound):
    client = await inbound.connect()
    await client.begin()
    await inbound.listeners.drain(0.1)
    assert await client.ended()
    assert not inbound.messages
    assert inbound.memory.used == 0


async def reply(reader: asyncio.StreamReader) -> None:
    while (await reader.readline())[3:4] == b"-":
        pass


async def before_the_handshake(inbound, kind) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that may begin TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", inbound.ports[kind])
    if kind == "submission":
        for said in (b"EHLO x\r\n", b"STARTTLS\r\n"):
            await reply(reader)
            writer.write(said)
        await reply(reader)
    return reader, writer


async def in_the_handshake(inbound, kind) -> asyncio.StreamWriter:
    """A client that has begun TLS and says no more."""
    _, writer = await before_the_handshake(inbound, kind)
    writer.write(b"\x16\x03\x01")
    return writer


@pytest.mark.parametrize("kind", ["submission", "submissions"])
async def test_drain_cuts_handshakes_that_do_not_end(inbound, kind, eventually):
    writer = await in_the_handshake(inbound, kind)
    sessions = inbound.listeners._sessions.values()
    await eventually(lambda: any(session.starting_tls or kind == "submissions" for session in sessions))
    async with asyncio.timeout(QUICK.handshake / 2):
        await inbound.listeners.drain(60)
    assert not inbound.listeners._sessions
    writer.close()


@pytest.mark.parametrize("kind", ["submission", "submissions"])
async def test_drain_lets_a_handshake_end_and_says_goodbye_under_tls(inbound, kind, eventually):
    """A client that is told nothing takes an end there for trouble with TLS, not for a relay that comes back."""
    sessions = inbound.listeners._sessions.values()
    reader, writer = await before_the_handshake(inbound, kind)
    await eventually(lambda: any(session.shakes_hands for session in sessions))
    draining = asyncio.create_task(inbound.listeners.drain(60))
    await eventually(lambda: not inbound.listeners._acceptors)
    await writer.start_tls(inbound.certificate.client_context, server_hostname=HOSTNAME)
    said = await reader.read()
    assert b"421 4.3.2" in said
    await asyncio.wait_for(draining, 10)
    writer.close()


async def test_drain_does_not_wait_for_the_rest_of_an_authentication(inbound):
    client = await inbound.dial("submissions")
    await client.reply()
    await client.ask("EHLO client.test")
    assert (await client.ask("AUTH LOGIN")).startswith("334")
    draining = asyncio.create_task(inbound.listeners.drain(60))
    assert (await client.reply()).startswith("421 4.3.2")
    client.close()
    await asyncio.wait_for(draining, 10)


async def test_drain_lets_a_commit_complete(inbound, eventually):
    inbound.store.held = True
    client = await inbound.connect()
    await client.begin()
    await client.send(MESSAGE + b".\r\n")
    await eventually(lambda: inbound.store.attempts)
    await inbound.listeners.drain(0.05)
    inbound.store.release()
    await eventually(lambda: inbound.messages)


@pytest.mark.parametrize("kind", ["submission", "submissions"])
async def test_client_leaves_in_the_handshake(inbound, kind, eventually):
    writer = await in_the_handshake(inbound, kind)
    await eventually(lambda: inbound.listeners._sessions)
    writer.transport.abort()
    await eventually(lambda: not inbound.listeners._sessions)


async def test_bind_before_open(tmp_path, certificate):
    """Addresses are taken before root is given up; nothing is served until `open`."""
    async with Inbound(tmp_path, certificate) as inbound:
        again = inbound.listeners.__class__(
            inbound.settings, certificate.context, inbound.queue, inbound.authenticator, timing=QUICK
        )
        bound = again.bind()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", bound[0].port)
        assert await again.open() == bound
        _, writer = await asyncio.open_connection("127.0.0.1", bound[0].port)
        writer.close()
        await again.drain(1.0)


async def test_listeners_that_need_tls_refuse_without_it(tmp_path, certificate):
    async with Inbound(tmp_path, certificate) as inbound:
        without = inbound.listeners.__class__(inbound.settings, None, inbound.queue, inbound.authenticator)
        with pytest.raises(OSError, match="needs \\[tls\\]"):
            without.bind()


SPENT = """
    import asyncio, resource, socket, sys, time
    from pathlib import Path
    import uvloop
    from relayd import log
    from tests.fakes.inbound import Certificate, Inbound

    async def main(directory):
        async with Inbound(directory, Certificate(directory)) as inbound:
            resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
            clients = [socket.create_connection(("127.0.0.1", inbound.ports["relay"])) for _ in range(10)]
            spent = []
            try:
                while True:
                    spent.append(open("/dev/null"))
            except OSError:
                pass
            cpu, wall = time.process_time(), time.monotonic()
            while time.monotonic() - wall < 1:
                await asyncio.sleep(0.05)
            print("cpu", time.process_time() - cpu)
            print("served", len(inbound.listeners._sessions))
            for file in spent:
                file.close()
            greeted = 0
            for sock in clients:
                sock.setblocking(False)
                async with asyncio.timeout(10):
                    said = await asyncio.get_running_loop().sock_recv(sock, 100)
                greeted += said.startswith(b"220")
                sock.close()
            print("greeted", greeted)

    log.configure("-", "error")
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_accept_pauses_without_spinning_when_descriptors_run_out(loop, tmp_path):
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SPENT), loop, str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    facts = dict(line.split(" ", 1) for line in lines if not line.startswith("{"))
    assert facts["served"] == "0", ran
    assert float(facts["cpu"]) < 0.5, ran
    assert facts["greeted"] == "10", ran
    assert any("descriptors" in line for line in lines), ran
    assert len(lines) < 20, "an alert for each episode, not for each client"
