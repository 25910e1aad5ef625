"""Large messages go to their files while they arrive: whole, in bounded memory, or not at all and without a trace."""

import asyncio
import errno
import os
import random
import resource
import time
import zlib
from functools import lru_cache
from pathlib import Path

import pytest

from relayd.message.header import scanned
from relayd.smtp.framing import stuffed
from relayd.spool import bodies, bodyfile
from relayd.spool.bodyfile import HEADER, path_of
from relayd.spool.records import Filed
from tests.fakes.inbound import QUICK, Inbound

LIMITS = {"inline_body": "64KB", "header_size": "32KB", "message_size": "20MB", "memory": "32MB"}
HEAD = b"From: a@sender.test\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <x@y>\r\n\r\n"


@lru_cache(maxsize=4)
def text(octets: int) -> bytes:
    """A message with dots and empty lines at odd places."""
    chance = random.Random(1)
    lines = [
        b"." * chance.randrange(3) + bytes(chance.choices(b"abc.\xe4 ", k=chance.randrange(200))) + b"\r\n"
        for _ in range(997)
    ]
    several = b"".join(lines)
    return (
        HEAD
        + b"".join(b"%d\r\n" % number + several for number in range(octets // len(several) + 1))[:octets].rpartition(
            b"\r\n"
        )[0]
        + b"\r\n"
    )


def settings(**limits) -> dict:
    return {"limits": LIMITS | limits}


def files(inbound: Inbound) -> list[str]:
    return [name for _, _, names in os.walk(inbound.spool / "bodies") for name in names]


def open_files(inbound: Inbound) -> int:
    """Descriptors below the spool."""
    return sum(os.path.realpath(link).startswith(str(inbound.spool)) for link in Path("/proc/self/fd").iterdir())


def stored(inbound: Inbound, number: int = -1) -> bytes:
    message = inbound.messages[number]
    body = message.body
    if isinstance(body, bytes):
        return body
    assert isinstance(body, Filed)
    path = path_of(inbound.spool / "bodies", message.envelope.id)
    assert path.read_bytes()[:HEADER] == bodyfile.header(message.envelope.id, body.octets, body.crc)
    raw = inbound.body(number)
    assert (len(raw), zlib.crc32(raw), message.envelope.size) == (body.octets, body.crc, body.octets)
    return raw


def without_trace(body: bytes) -> bytes:
    trace = scanned(body, 10**6)
    assert trace is not None and body.startswith(b"Received: from client.test")
    end = body.index(b"\r\n", body.index(b"\r\n\t", body.index(b"\tby")) + 3) + 2
    return body[end:]


@pytest.fixture
async def inbound(tmp_path, certificate, eventually):
    async with Inbound(tmp_path, certificate, settings=settings()) as started:
        yield started
        await eventually(
            lambda: started.memory.used == sum(len(m.body) for m in started.messages if isinstance(m.body, bytes))
        )


@pytest.mark.parametrize("kind", ["relay", "submissions"])
@pytest.mark.parametrize("octets", [30_000, 65_000, 65_536, 70_000, 3_000_000])
async def test_arrives_octet_for_octet(inbound, kind, octets):
    client = await inbound.connect(kind)
    body = text(octets)
    assert (await client.mail(stuffed(body))).startswith("250 2.0.0")
    assert without_trace(stored(inbound)) == body
    if not 60_000 < octets < 500_000:  # around the limit it depends on how the octets arrive
        assert isinstance(inbound.messages[-1].body, Filed) is (octets > 500_000)
    await client.expect(250, "NOOP")


async def test_files_are_private(inbound):
    client = await inbound.connect()
    await client.mail(stuffed(text(500_000)))
    path = path_of(inbound.spool / "bodies", inbound.messages[0].envelope.id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_the_end_in_every_pair_of_segments(inbound):
    client = await inbound.connect()
    body = text(200_000)
    end = b"\r\n.\r\n"
    for cut in range(1, len(end)):
        await client.begin()
        await client.send(stuffed(body)[:-2] + end[:cut])
        await asyncio.sleep(0.02)
        await client.send(end[cut:] + b"NOOP\r\n")
        assert (await client.reply()).startswith("250 2.0.0 Ok: queued")
        assert await client.reply() == "250 2.0.0 Ok"
        assert without_trace(stored(inbound)) == body


async def test_dripped_line_by_line(inbound):
    client = await inbound.connect()
    body = text(90_000)
    await client.begin()
    wire = stuffed(body)
    await client.send(wire[:80_000])
    for octet in range(80_000, len(wire), 500):
        await client.send(wire[octet : octet + 500])
        await asyncio.sleep(0)
    await client.drip(b".\r\n")
    assert (await client.reply()).startswith("250")
    assert without_trace(stored(inbound)) == body


async def test_one_huge_line(inbound):
    client = await inbound.connect()
    body = HEAD + b"." + b"x" * 5_000_000 + b"\r\n"
    assert (await client.mail(stuffed(body))).startswith("250")
    assert without_trace(stored(inbound)) == body


async def test_a_submission_is_completed(inbound):
    client = await inbound.connect("submission")
    body = b"From: a@b\r\nBcc: secret@x\r\nSubject: s\r\n\r\n" + text(1_000_000)
    assert (await client.mail(stuffed(body))).startswith("250")
    got = stored(inbound)
    assert b"secret" not in got
    head = got[: got.index(b"\r\n\r\n")]
    assert b"\r\nDate: " in head and b"\r\nMessage-ID: " in head
    assert got.endswith(text(1_000_000))


@pytest.mark.parametrize("mode", ["reject", "normalize"])
async def test_bare_lf(tmp_path, certificate, mode):
    async with Inbound(tmp_path, certificate, settings=settings(), bare_lf=mode) as inbound:
        client = await inbound.connect()
        body = text(300_000) + b"a\n.\nb\n\n.x\r\n" * 9000
        answer = await client.mail(stuffed(body))
        if mode == "reject":
            assert answer.startswith("554 5.6.0")
            assert not files(inbound) or await client.expect(250, "NOOP")
        else:
            assert without_trace(stored(inbound)) == body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    "sequence", [b"\n.\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\r\r\n", b"\r\n\0.\r\n", b"\n.\r\n"]
)
async def test_attack_01_no_other_end_in_a_large_body(inbound, sequence, eventually):
    client = await inbound.connect()
    await client.begin()
    for octets in (b"a" * 70_000, b"b" * 200_000):
        await client.send(HEAD + octets + sequence[:2])
        await asyncio.sleep(0.01)
        await client.send(sequence[2:] + b"RSET\r\nMAIL FROM:<evil@x.test>\r\n")
    await client.send(b"\r\n.\r\n")
    assert (await client.reply()).startswith("554 5.6.0")
    await client.expect(250, "NOOP")
    assert not inbound.messages
    await eventually(lambda: not files(inbound))


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"X: " + b"y" * 40_000 + b"\r\n" * 2 + text(200_000), "552 5.3.4"),
        (b"Received: x\r\n" * 101 + text(200_000), "554 5.4.6"),
        (text(21 * 2**20), "552 5.3.4"),
    ],
)
async def test_refusals(inbound, body, answer, eventually):
    client = await inbound.connect()
    assert (await client.mail(stuffed(body))).startswith(answer)
    assert not inbound.messages
    await eventually(lambda: not files(inbound))
    assert (await client.mail(stuffed(text(200_000)))).startswith("250")


async def test_a_client_that_goes_away(inbound, eventually):
    for leave in ("reset", "close"):
        clients = [await inbound.connect() for _ in range(3)]
        for client in clients:
            await client.begin()
            await client.send(stuffed(text(400_000)))
        await eventually(lambda: len(files(inbound)) == 3)
        assert open_files(inbound) >= 3
        for client in clients:
            getattr(client, leave)()
        await eventually(lambda: not files(inbound))
        await eventually(lambda: not inbound.listeners._sessions)
    assert inbound.memory.used == 0
    await eventually(lambda: open_files(inbound) == 0)
    assert not inbound.messages


async def test_gone_while_the_file_is_finished(inbound, eventually, monkeypatch):
    """I6: what had arrived whole is committed."""
    monkeypatch.setattr(bodyfile.NewFile, "seal", slowly(bodyfile.NewFile.seal, 0.2))
    client = await inbound.connect()
    await client.begin()
    await client.send(stuffed(text(400_000)) + b".\r\n")
    await asyncio.sleep(0.1)
    client.reset()
    await eventually(lambda: inbound.messages)
    assert without_trace(stored(inbound)) == text(400_000)


async def test_drain_cuts_a_large_message(inbound, eventually):
    client = await inbound.connect()
    await client.begin()
    await client.send(stuffed(text(400_000)))
    await eventually(lambda: files(inbound))
    await inbound.listeners.drain(0.05)
    assert await client.ended()
    await eventually(lambda: not files(inbound))
    assert inbound.memory.used == 0


async def test_drain_lets_a_large_message_complete(inbound, monkeypatch):
    monkeypatch.setattr(bodyfile.NewFile, "seal", slowly(bodyfile.NewFile.seal, 0.2))
    client = await inbound.connect()
    await client.begin()
    await client.send(stuffed(text(400_000)))
    draining = asyncio.create_task(inbound.listeners.drain(20.0))
    await client.send(b".\r\n")
    assert (await client.reply()).startswith("250")
    await draining


async def test_a_commit_that_fails_leaves_no_file(inbound, eventually):
    inbound.store.failing = True
    client = await inbound.connect()
    assert (await client.mail(stuffed(text(400_000)))).startswith("451 4.3.0")
    await eventually(lambda: not files(inbound))
    inbound.store.failing = False
    await eventually(lambda: inbound.queue.healthy)


def slowly(call, seconds):
    def slow(*args):
        time.sleep(seconds)
        return call(*args)

    return slow


async def test_a_slow_disk_slows_the_client(inbound, monkeypatch):
    """Not more than MAX_WAITING and what is under way stands in memory; the wait is not the client's fault."""
    monkeypatch.setattr(bodyfile.NewFile, "append", slowly(bodyfile.NewFile.append, 0.1))
    client = await inbound.connect()
    body = text(15 * 2**20)
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, inbound.memory.used)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    assert (await client.mail(stuffed(body))).startswith("250")
    watching.cancel()
    assert 2**20 < most < 4 * 2**20
    assert without_trace(stored(inbound)) == body


async def test_waiting_for_the_disk_is_no_slow_client(tmp_path, certificate, monkeypatch):
    monkeypatch.setattr(bodyfile.NewFile, "append", slowly(bodyfile.NewFile.append, 0.5))
    timing = QUICK.__class__(idle=0.3, data_grace=0.4, handshake=5, linger=0.5, tick=0.02, accept_pause=0.05)
    limits = settings(minimum_data_rate="8MB", memory="3MB")
    async with Inbound(tmp_path, certificate, settings=limits, timing=timing) as inbound:
        client = await inbound.connect()
        assert (await client.mail(stuffed(text(6 * 2**20)))).startswith("250")


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.ENOSPC, "452 4.3.1"), (errno.EIO, "451 4.3.0"), (errno.EDQUOT, "452 4.3.1")]
)
@pytest.mark.parametrize("step", ["_create", "append", "seal"])
async def test_a_disk_that_fails(inbound, monkeypatch, number, answer, step, eventually):
    client = await inbound.connect()
    whole = getattr(bodyfile.NewFile, step)
    calls = 0

    def failing(self, *args):
        nonlocal calls
        calls += 1
        if step != "append" or calls > 1:
            raise OSError(number, os.strerror(number))
        return whole(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(bodyfile.NewFile, step, failing)
        assert (await client.mail(stuffed(text(5 * 2**20)))).startswith(answer)
    await eventually(lambda: not files(inbound))
    assert inbound.memory.used == 0
    await eventually(lambda: open_files(inbound) == 0)
    assert (await client.mail(stuffed(text(200_000)))).startswith("250")


async def test_a_file_that_may_not_grow(inbound, eventually):
    """The kernel's own refusal, in the middle of a write."""
    client = await inbound.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        assert (await client.mail(stuffed(text(2**20)))).startswith("451 4.3.0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await eventually(lambda: not files(inbound))


async def test_no_room_on_the_disk(inbound, monkeypatch, eventually):
    client = await inbound.connect()
    await client.begin()
    await client.send(stuffed(text(300_000)))
    await eventually(lambda: files(inbound))
    monkeypatch.setattr(inbound.queue.space, "enough", lambda: False)
    await client.send(stuffed(text(300_000)) + b".\r\n")
    assert (await client.reply()).startswith("452 4.3.1")
    assert (await client.ask("MAIL FROM:<a@b.test>")).startswith("452 4.3.1")
    await eventually(lambda: not files(inbound))


async def test_no_memory(tmp_path, certificate, eventually):
    async with Inbound(tmp_path, certificate, settings=settings(memory="1MB")) as inbound:
        client = await inbound.connect()
        await client.begin()
        await client.send(stuffed(text(300_000)))
        await eventually(lambda: files(inbound))
        inbound.memory.force(2**20)
        await client.send(stuffed(text(300_000)) + b".\r\n")
        assert (await client.reply()).startswith("452 4.3.1")
        assert (await client.ask("MAIL FROM:<a@b.test> SIZE=5000000")).startswith("452 4.3.1")
        inbound.memory.give(2**20)
        await eventually(lambda: not files(inbound))
        await client.expect(250, "MAIL FROM:<a@b.test> SIZE=5000000")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_many_at_once_in_bounded_memory(tmp_path, certificate):
    """30 clients of 8 MB under a budget of 32 MB: all arrive, and the process does not grow by what they send."""
    async with Inbound(
        tmp_path, certificate, settings={"limits": LIMITS | {"inline_body": "512KB", "header_size": "256KB"}}
    ) as inbound:
        wire = stuffed(text(8 * 2**20))
        clients = [await inbound.connect() for _ in range(30)]
        before, most, used = resident(), 0, 0

        async def watch():
            nonlocal most, used
            while True:
                most, used = max(most, resident() - before), max(used, inbound.memory.used)
                await asyncio.sleep(0.01)

        async def send(client):
            await client.begin()
            for start in range(0, len(wire), 65536):
                client.writer.write(wire[start : start + 65536])
                await client.writer.drain()
            client.writer.write(b".\r\n")
            async with asyncio.timeout(60):
                return (await client.reader.readline()).decode()

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*map(send, clients))
        watching.cancel()
        assert all(answer.startswith("250") for answer in answers), answers
        assert used <= 32 * 2**20
        assert most < 64 * 2**20, f"{most >> 20} MB"
        assert inbound.memory.used == 0
        for number in range(30):
            assert (
                without_trace(stored(inbound, number)) == text(8 * 2**20)
                if number < 2
                else stored(inbound, number).endswith(b"\r\n")
            )


async def test_more_lines_than_the_buffer_holds_before_a_message(inbound):
    """Reading paused for the lines goes on for the message behind them."""
    client = await inbound.connect()
    many = b"".join(b"RCPT TO:<%080d@example.test>\r\n" % number for number in range(900))
    await client.send(b"MAIL FROM:<a@b.test>\r\n" + many + b"DATA\r\n")
    for _ in range(901):
        assert await client.code() == 250
    assert await client.code() == 354
    await client.send(HEAD + b".\r\n")
    assert await client.code() == 250


def test_the_pool_is_small():
    assert bodies.THREADS == 2
