"""Attacks on the protocol: each test carries the number and the name of its row in the catalogue of attacks."""

import asyncio
import contextlib
import re
import socket
import time

import pytest

from relayd.inbound.wire import HIGH_WATER, MAX_LINE
from relayd.smtp.framing import END, stuffed
from tests.fakes.inbound import PLAIN, QUICK, Inbound

HEADER = b"Subject: t\r\n\r\n"
SMUGGLED = b"MAIL FROM:<evil@sender.test>\r\nRCPT TO:<evil@example.test>\r\nDATA\r\nSubject: evil\r\n\r\n"
ENDS = [
    b"\n.\n", b"\n.\r", b"\n.\r\n", b"\r.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
]  # fmt: skip


@pytest.fixture
async def inbound(tmp_path, certificate):
    async with Inbound(tmp_path, certificate) as started:
        yield started


async def alive(client) -> None:
    """The session goes on, and no reply was left over from what came before."""
    await client.expect(250, "NOOP")


# --- 1: variants of the end of data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["behind text", "at the start"])
@pytest.mark.parametrize(("kind", "segments"), [("relay", "one"), ("relay", "octets"), ("submissions", "octets")])
async def test_attack_01_end_of_data_variants(inbound, kind, segments, where):
    client = await inbound.connect(kind)
    before = b"" if where == "at the start" else HEADER + b"text"
    for end in ENDS:
        await client.begin()
        data = before + end + SMUGGLED + b"text\r\n.\r\n"
        await (client.drip if segments == "octets" else client.send)(data)
        assert (await client.reply()).startswith("554 5.6.0"), end
        await alive(client)
        assert (await client.mail(HEADER)).startswith("250"), end
    assert len(inbound.messages) == len(ENDS)
    assert {message.envelope.sender for message in inbound.messages} == {"a@sender.test"}


async def test_attack_01_end_of_data_variants_normalized(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, bare_lf="normalize") as inbound:
        for end in ENDS:
            client = await inbound.connect()
            await client.begin()
            await client.send(HEADER + b"text" + end + SMUGGLED + b"text\r\n.\r\n")
            assert await client.code() == (554 if re.search(rb"\r(?!\n)|\0", end) else 250), end
            await alive(client)
        assert {message.envelope.sender for message in inbound.messages} == {"a@sender.test"}


async def test_attack_01_end_of_data_variants_behind_the_size_limit(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"message_size": 1000}}) as inbound:
        for end in ENDS:
            client = await inbound.connect()
            await client.begin()
            await client.send(HEADER + b"x" * 1200 + end + SMUGGLED + b"text\r\n.\r\n")
            assert (await client.reply()).startswith("552 5.3.4"), end
            await alive(client)
        assert not inbound.messages


# --- 2: smuggling outwards --------------------------------------------------------------------------------------------


async def test_attack_02_nothing_stored_can_smuggle_outwards(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, bare_lf="normalize") as inbound:
        for end in ENDS:
            client = await inbound.connect()
            await client.begin()
            await client.send(HEADER + b"text" + end + b"text\r\n..\r\n.\r\n")
            await client.code()
        assert inbound.messages
        for message in inbound.messages:
            assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", message.body)
            assert END not in b"\r\n" + stuffed(message.body)


# --- 3: what only Python takes for line ends --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relay", "submissions"])
async def test_attack_03_python_only_separators_are_untouched(inbound, kind):
    separators = [b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", "\x85".encode(), "\u2028".encode(), "\u2029".encode()]
    body = HEADER + b"".join(mark + b"." + mark + b"QUIT" + mark for mark in separators) + b"\r\n"
    client = await inbound.connect(kind)
    assert (await client.mail(body)).startswith("250")
    assert inbound.messages[0].body.endswith(body)
    await alive(client)


# --- 4: commands behind STARTTLS --------------------------------------------------------------------------------------


async def test_attack_04_commands_pipelined_behind_starttls(inbound):
    client = await inbound.dial("submission")
    await client.reply()
    await client.expect(250, "EHLO client.test")
    await client.send("STARTTLS\r\nEHLO evil.test\r\nNOOP\r\n")
    assert (await client.reply()).startswith("554 5.5.1")
    assert await client.ended()


async def test_attack_04_clear_text_behind_220_breaks_the_handshake(inbound):
    client = await inbound.dial("submission")
    await client.reply()
    await client.expect(250, "EHLO client.test")
    await client.expect(220, "STARTTLS")
    await client.send("EHLO evil.test\r\n")
    assert b"250" not in await client.reader.read()


# --- 5: talking before it is one's turn -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relay", "submission"])
async def test_attack_05_bytes_before_the_banner(inbound, kind):
    # Blocking calls: the loop cannot accept before the bytes are there.
    early = socket.create_connection(("127.0.0.1", inbound.ports[kind]), timeout=10)
    early.sendall(b"EHLO evil.test\r\nMAIL FROM:<evil@sender.test>\r\n")
    early.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=early)
    assert (await reader.readline()).startswith(b"554 5.5.1")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_attack_05_data_pipelined_with_its_body(inbound):
    client = await inbound.connect()
    await client.expect(250, "MAIL FROM:<a@sender.test>")
    await client.expect(250, "RCPT TO:<b@example.test>")
    await client.send(b"DATA\r\n" + HEADER + b"text\r\n.\r\n")
    assert (await client.reply()).startswith("554 5.5.1")
    assert await client.ended()
    assert not inbound.messages


async def test_attack_05_commands_in_one_segment_with_ehlo(inbound):
    client = await inbound.dial("relay")
    await client.reply()
    await client.send("EHLO client.test\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.test>\r\n")
    assert (await client.reply()).startswith("554 5.5.1")
    assert await client.ended()


async def test_attack_05_bdat_and_what_looks_like_its_chunk(inbound):
    client = await inbound.connect()
    await client.send(b"BDAT 30 LAST\r\nMAIL FROM:<evil@sender.test>\r\n")
    assert (await client.reply()).startswith("554 5.5.1")
    assert await client.ended()


# --- 6: HTTP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["GET", "POST", "CONNECT", "put"])
async def test_attack_06_http_verbs(inbound, verb):
    client = await inbound.dial("relay")
    await client.reply()
    await client.send(f"{verb} / HTTP/1.1\r\nHost: x\r\n\r\nEHLO evil.test\r\n")
    assert (await client.reply()).startswith("554 5.5.1")
    assert await client.ended()


# --- 7: long lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2100, MAX_LINE, MAX_LINE + 1, 10**7])
async def test_attack_07_long_command_lines(inbound, length):
    client = await inbound.connect()
    await client.send(b"x" * length)
    session = next(iter(inbound.listeners._sessions.values()))
    assert len(session._input) <= HIGH_WATER * 5
    assert (await client.ask("")).startswith("500 5.5.2")
    await alive(client)


async def test_attack_07_long_authentication_lines(inbound):
    client = await inbound.dial("submissions")
    await client.reply()
    await client.expect(250, "EHLO client.test")
    assert (await client.ask("AUTH PLAIN " + "A" * 20_000)).startswith("500 5.5.2")
    await client.expect(334, "AUTH PLAIN")
    assert (await client.ask("A" * 20_000)).startswith("500 5.5.6")
    assert (await client.ask("AUTH PLAIN " + "A" * 12_000)).startswith("501 5.5.2")
    await client.expect(235, f"AUTH PLAIN {PLAIN}")


@pytest.mark.parametrize("length", [998, 1000, 10**7])
async def test_attack_07_long_body_lines_pass_unchanged(inbound, length):
    client = await inbound.connect()
    body = HEADER + b"x" * length + b"\r\n"
    assert (await client.mail(body)).startswith("250")
    assert inbound.body().endswith(b"\r\n" + body)


# --- 8: octets that are no text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"\0", b"\xff\xfe", b"\xc3", b"a\rb"])
async def test_attack_08_odd_octets_in_commands(inbound, junk):
    client = await inbound.dial("submissions")
    await client.reply()
    await client.expect(250, "EHLO client.test")
    for command in (b"HELO %b", b"EHLO %b", b"AUTH PLAIN %b"):
        assert (await client.ask(command % junk)).startswith("501"), command
    await client.expect(235, f"AUTH PLAIN {PLAIN}")
    assert (await client.ask(b"MAIL FROM:<%b@x.test>" % junk)).startswith("501")
    await client.expect(250, "MAIL FROM:<a@sender.test>")
    assert (await client.ask(b"RCPT TO:<%b@x.test>" % junk)).startswith("501")
    assert (await client.ask(junk)).startswith(("500", "501"))
    await client.expect(250, "RCPT TO:<b@example.test>")


# --- 9: loops of commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["NOOP", "RSET", "HELP", "VRFY x", "EHLO x"])
async def test_attack_09_endless_cheap_commands(inbound, command):
    client = await inbound.connect()
    codes = [await client.code() for _ in range(120) if not await client.send(f"{command}\r\n")]
    assert 421 in codes
    assert codes.index(421) <= 100
    assert await client.ended()


# --- 10: slowness -----------------------------------------------------------------------------------------------------

IMPATIENT = QUICK.__class__(idle=0.6, data_grace=0.6, handshake=0.6, linger=0.2, tick=0.02)


@pytest.fixture
async def impatient(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, timing=IMPATIENT) as started:
        yield started


@pytest.mark.parametrize("said", ["", "EH"])
async def test_attack_10_slow_commands(impatient, said):
    client = await impatient.dial("relay")
    await client.reply()
    await client.send(said)
    assert (await client.reply()).startswith("421 4.4.2")
    assert await client.ended()


async def test_attack_10_a_dripping_command_does_not_move_its_deadline(impatient):
    client = await impatient.dial("relay")
    await client.reply()
    started = time.monotonic()
    ended = asyncio.create_task(client.reply())
    while not ended.done():
        await client.send("x")
        await asyncio.sleep(0.02)
        assert time.monotonic() - started < 5
    assert (await ended).startswith("421 4.4.2")


async def test_attack_10_silence_after_354(impatient):
    client = await impatient.connect()
    await client.begin()
    assert (await client.reply()).startswith("421 4.4.2")
    assert await client.ended()


async def test_attack_10_message_below_the_minimum_rate(tmp_path, certificate):
    timing = QUICK.__class__(idle=30.0, data_grace=0.3, linger=0.2, tick=0.02)
    limits = {"limits": {"minimum_data_rate": 1_000_000}}
    async with Inbound(tmp_path, certificate, timing=timing, settings=limits) as inbound:
        client = await inbound.connect()
        await client.begin()
        ended = asyncio.create_task(client.reply())
        while not ended.done():
            await client.send("slow\r\n")
            await asyncio.sleep(0.02)
        assert (await ended).startswith("421 4.4.2")
        assert inbound.memory.used == 0


@pytest.mark.parametrize("kind", ["submissions", "submission"])
async def test_attack_10_stalled_handshake(impatient, kind):
    if kind == "submissions":
        reader, writer = await asyncio.open_connection("127.0.0.1", impatient.ports[kind])
    else:
        client = await impatient.dial(kind)
        await client.reply()
        await client.expect(250, "EHLO client.test")
        await client.expect(220, "STARTTLS")
        reader, writer = client.reader, client.writer
    writer.write(b"\x16")
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()


async def test_attack_10_a_client_that_does_not_read(impatient, eventually):
    """Its replies wait in bounded memory, and then it is cut."""
    client = await impatient.connect()
    client.writer.transport.pause_reading()
    for _ in range(2000):
        client.writer.write(b"RCPT TO:<" + b"x" * 1900 + b"@b.test>\r\n")
    await eventually(lambda: not impatient.listeners._sessions)


# --- 11: many recipients ----------------------------------------------------------------------------------------------


async def test_attack_11_too_many_recipients(inbound):
    client = await inbound.connect()
    await client.expect(250, "MAIL FROM:<a@sender.test>")
    codes: dict[int, int] = {}
    sending = asyncio.create_task(_send_recipients(client, 100_000))
    while (code := await client.code()) in (250, 452):
        codes[code] = codes.get(code, 0) + 1
    assert code == 421
    assert codes == {250: 1000, 452: 1000}
    await asyncio.wait([sending])
    sending.exception()


async def _send_recipients(client, count: int) -> None:
    for start in range(0, count, 1000):
        batch = "".join(f"RCPT TO:<u{n}@d{n}.test>\r\n" for n in range(start, start + 1000))
        await client.send(batch)


async def test_attack_11_the_recipients_up_to_the_limit_are_served(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"recipients": 50}}) as inbound:
        client = await inbound.connect()
        await client.expect(250, "MAIL FROM:<a@sender.test>")
        await client.send("".join(f"RCPT TO:<u{n}@example.test>\r\n" for n in range(80)))
        assert [await client.code() for _ in range(80)] == [250] * 50 + [452] * 30
        await client.expect(354, "DATA")
        await client.send(HEADER + b".\r\n")
        assert await client.code() == 250
        assert len(inbound.messages[0].envelope.recipients) == 50


async def test_attack_11_the_same_recipient_for_ever(inbound):
    client = await inbound.connect()
    await client.expect(250, "MAIL FROM:<a@sender.test>")
    await client.send("RCPT TO:<b@example.test>\r\n" * 1001)
    assert [await client.code() for _ in range(1001)] == [250] * 1000 + [452]
    await client.expect(354, "DATA")
    await client.send(HEADER + b".\r\n")
    assert await client.code() == 250
    assert inbound.messages[0].envelope.recipients == ("b@example.test",)


# --- 12: sizes --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def small(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"message_size": 10_000}}) as started:
        yield started


@pytest.mark.parametrize(
    ("size", "code"),
    [("0", 250), ("10000", 250), ("10001", 552), ("9" * 20, 552), ("9" * 21, 501), ("-1", 501), ("1e30", 501),
     ("1_0", 501), ("+1", 501), ("0x10", 501)],
)  # fmt: skip
async def test_attack_12_declared_sizes(small, size, code):
    client = await small.connect()
    await client.expect(code, f"MAIL FROM:<a@sender.test> SIZE={size}")


@pytest.mark.parametrize(("length", "code"), [(9_999, 250), (10_000, 250), (10_001, 552)])
@pytest.mark.parametrize("declared", [1, 10_000])
async def test_attack_12_sizes_that_lie(small, length, code, declared):
    client = await small.connect()
    await client.expect(250, f"MAIL FROM:<a@sender.test> SIZE={declared}")
    await client.expect(250, "RCPT TO:<b@example.test>")
    await client.expect(354, "DATA")
    await client.send(HEADER + b"x" * (length - len(HEADER) - 2) + b"\r\n.\r\n")
    assert await client.code() == code
    await alive(client)
    assert small.memory.used == sum(len(message.body) for message in small.messages)


async def test_attack_12_a_message_without_end(small):
    client = await small.connect()
    await client.begin()
    await client.send(b"x" * 100_000)
    assert (await client.reply()).startswith("552 5.3.4")
    assert await client.ended()
    assert small.memory.used == 0


async def test_attack_12_no_memory_is_452(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"memory": 100_000}}) as inbound:
        client = await inbound.connect()
        assert (await client.ask("MAIL FROM:<a@sender.test> SIZE=100001")).startswith("452 4.3.1")
        await client.begin()
        await client.send(b"x" * 150_000 + b"\r\n.\r\n")
        assert (await client.reply()).startswith("452 4.3.1")
        assert inbound.memory.used == 0
        assert (await client.mail(HEADER)).startswith("250")
        inbound.memory.force(100_000)
        assert (await client.ask("MAIL FROM:<a@sender.test>")).startswith("452 4.3.1")


async def test_attack_12_no_disk_space_is_452(inbound):
    client = await inbound.connect()
    inbound.queue.space.enough = lambda: False
    assert (await client.ask("MAIL FROM:<a@sender.test>")).startswith("452 4.3.1")


# --- 14: hops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hops", "code"), [(99, 250), (100, 250), (101, 554), (200, 554)])
async def test_attack_14_hop_count(inbound, hops, code):
    client = await inbound.connect()
    received = b"".join(b"RECEIVED: from relay.test by relay.test; %d\r\n\tfolded\r\n" % n for n in range(hops))
    answer = await client.mail(received + HEADER + b"Received: not a field\r\n")
    assert answer.startswith("554 5.4.6" if code == 554 else "250")


# --- 15: our own header -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a(comment)b", "a-comment-b"),
        ("x;by=evil<a@b>", "x-by-evil-a-b-"),
        ('"quoted"\\', "-quoted--"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("%0d%0aBcc:x", "-0d-0aBcc:x"),
    ],
)
async def test_attack_15_header_injection_through_helo(inbound, name, written):
    client = await inbound.dial("relay")
    await client.reply()
    await client.expect(250, f"EHLO {name}")
    assert (await client.mail(HEADER)).startswith("250")
    assert inbound.messages[0].body.split(b"\r\n")[0] == f"Received: from {written} ([127.0.0.1])".encode()


@pytest.mark.parametrize("name", ["a\rX-Evil: 1", "a\nX-Evil: 1", "ü", "x" * 256, "a b"])
async def test_attack_15_names_that_are_none_are_refused(inbound, name):
    client = await inbound.dial("relay")
    await client.reply()
    assert (await client.ask(f"EHLO {name}")).startswith(("500", "501"))


# --- 16: header bombs -------------------------------------------------------------------------------------------------


async def test_attack_16_header_bombs(inbound):
    client = await inbound.connect("submissions")
    for bomb in (b"A:b\r\n" * 10**6, b"Subject: " + b"x" * 300_000 + b"\r\n", b"Bcc:" + b" \t" * 200_000 + b"\r\n"):
        started = time.process_time()
        assert (await client.mail(bomb + b"\r\n")).startswith("552 5.3.4")
        assert time.process_time() - started < 2
    duplicates = b"From: a@b.test\r\nBcc: c@d.test\r\nMessage-ID: <1@b.test>\r\n" * 1000
    assert (await client.mail(duplicates + b"\r\n")).startswith("250")
    assert b"Bcc" not in inbound.messages[0].body
