"""The ordinary course of sessions: what a well-behaved client sees."""

import pytest

from tests.fakes.inbound import PLAIN, Inbound

MESSAGE = b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@sender.test>\r\nSubject: t\r\n\r\nText\r\n"


@pytest.fixture
async def inbound(tmp_path, certificate):
    async with Inbound(tmp_path, certificate) as started:
        yield started


@pytest.mark.parametrize("kind", ["relay", "submission", "submissions"])
async def test_a_message_arrives_whole_behind_its_trace_field(inbound, kind):
    client = await inbound.connect(kind)
    answer = await client.mail(MESSAGE + b"..dot\r\n", "b@example.test")
    message = inbound.messages[0]
    assert answer == f"250 2.0.0 Ok: queued as {message.envelope.id}"
    trace, _, rest = message.body.partition(b"\r\nDate:")
    assert rest == (MESSAGE + b".dot\r\n").removeprefix(b"Date:")
    assert trace.startswith(b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP")
    assert message.envelope.account == ("net:127.0.0.0/8" if kind == "relay" else "user:alice")
    assert message.envelope.size == len(message.body)
    assert await client.ask("QUIT") == "221 2.0.0 Bye"
    assert await client.ended()


@pytest.mark.parametrize("kind", ["relay", "submissions"])
async def test_pipelined_transactions_on_one_connection(inbound, kind):
    client = await inbound.connect(kind)
    for _ in range(3):
        await client.send("MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n")
        assert [await client.code() for _ in range(3)] == [250, 250, 354]
        # RFC 2920 §3.1: the next transaction may stand in one group with the end of a message.
        await client.send(MESSAGE + b".\r\nMAIL FROM:<c@sender.test>\r\nRSET\r\n")
        assert [await client.code() for _ in range(3)] == [250, 250, 250]
    assert len(inbound.messages) == 3
    assert inbound.memory.used == sum(len(message.body) for message in inbound.messages)


async def test_half_closed_client_still_gets_its_answer(inbound):
    client = await inbound.connect("relay")
    await client.begin()
    await client.send(MESSAGE + b".\r\n")
    client.writer.write_eof()
    assert await client.code() == 250
    assert await client.ended()


async def test_commit_survives_the_client(inbound, eventually):
    """I6: neither the commit nor its memory is lost when the client resets in the middle of it."""
    inbound.store.held = True
    client = await inbound.connect("relay")
    await client.begin()
    await client.send(MESSAGE + b".\r\n")
    await eventually(lambda: inbound.store.attempts)
    client.reset()
    inbound.store.release()
    await eventually(lambda: inbound.messages)
    assert inbound.memory.used == len(inbound.messages[0].body)


async def test_store_error_is_451_and_the_session_lives(inbound):
    client = await inbound.connect("relay")
    await client.begin()
    inbound.store.failing = True
    await client.send(MESSAGE + b".\r\n")
    assert await client.reply() == "451 4.3.0 The message cannot be stored now, try again later"
    assert (await client.ask("MAIL FROM:<a@sender.test>")).startswith("451 4.3.0")
    assert inbound.memory.used == 0
    assert not inbound.messages


async def test_bug_is_451_and_the_session_lives(inbound, capfd):
    client = await inbound.connect("relay")
    await client.begin()
    inbound.queue.new_id = None
    await client.send(MESSAGE + b".\r\n")
    assert (await client.reply()).startswith("451 4.3.0")
    del inbound.queue.new_id
    assert (await client.mail(MESSAGE)).startswith("250")
    assert inbound.memory.used == len(inbound.messages[0].body)
    inbound.bugs += 1


async def test_starttls_resets_what_was_said(inbound):
    client = await inbound.dial("submission")
    assert await client.code() == 220
    assert "STARTTLS" in await client.ask("EHLO client.test")
    await client.start_tls()
    assert (await client.ask(f"AUTH PLAIN {PLAIN}")).startswith("503")
    answer = await client.ask("EHLO client.test")
    assert "STARTTLS" not in answer
    assert "AUTH PLAIN LOGIN" in answer


async def test_greeting_of_ehlo_comes_in_one_segment(inbound):
    client = await inbound.dial("relay")
    await client.reply()
    await client.send("EHLO client.test\r\n")
    answer = await client.reader.read(65536)
    assert answer.decode().split("\r\n") == [
        "250-relay.test",
        "250-PIPELINING",
        "250-SIZE 52428800",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES",
        "250-MT-PRIORITY",
        "250 STARTTLS",
        "",
    ]
