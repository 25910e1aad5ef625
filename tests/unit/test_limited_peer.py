"""The peer that limits: each limit is kept, refuses no more than it says, and is counted."""

import asyncio
import contextlib

import pytest

from tests.fakes.limited_peer import (
    TOO_FAST,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_MESSAGES,
    LimitedPeer,
    SlidingWindow,
    TokenBucket,
)
from tests.fakes.virtual_clock import VirtualLoop

MESSAGE = b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n"
REFUSED = b"503 5.5.1 No recipients\r\n"


def run(test):
    """A test at its own time: what takes 0.05 s takes exactly that."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


@contextlib.asynccontextmanager
async def session(peer):
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def send(reader, writer):
    """A message, pipelined as far as that goes; the answers to MAIL and to what decides."""
    writer.write(MESSAGE)
    mail = await reader.readline()
    if mail.startswith(b"421"):
        return mail, await reader.read()
    await reader.readline()
    data = await reader.readline()
    if not data.startswith(b"354"):
        return mail, data
    writer.write(b"Subject: x\r\n\r\n.\r\n")
    return mail, await reader.readline()


def test_a_connection_above_the_limit_is_greeted_421_and_closed_until_another_goes():
    async def connect():
        async with LimitedPeer(connections=2) as peer, contextlib.AsyncExitStack() as stack:
            first, _ = [await stack.enter_async_context(session(peer)) for _ in range(2)]
            assert await first[0].readline() == b"220 sink.example ESMTP\r\n"
            async with session(peer) as (reader, _):
                assert await reader.read() == TOO_MANY_CONNECTIONS
            first[1].write(b"QUIT\r\n")
            assert (await first[0].read()).startswith(b"221")
            async with session(peer) as (reader, _):
                assert (await reader.readline()).startswith(b"220")
            assert (peer.most, peer.turned_away) == (2, 1)

    run(connect)


def test_a_session_ends_after_its_messages_and_what_was_pipelined_behind_is_not_read():
    async def send_three():
        async with LimitedPeer(session=2) as peer, session(peer) as (reader, writer):
            await reader.readline()
            for _ in range(2):
                assert (await send(reader, writer))[1].startswith(b"250")
            assert await send(reader, writer) == (TOO_MANY_MESSAGES, b"")
            assert (len(peer.received), peer.refused) == (2, 1)

    run(send_three)


@pytest.mark.parametrize("law", [SlidingWindow, TokenBucket])
def test_above_the_rate_mail_is_refused_and_the_session_goes_on(law):
    async def send_four():
        async with LimitedPeer(law=law(3)) as peer, session(peer) as (reader, writer):
            await reader.readline()
            for _ in range(3):
                assert (await send(reader, writer))[1].startswith(b"250")
            assert await send(reader, writer) == (TOO_FAST, REFUSED)
            await asyncio.sleep(1)
            assert (await send(reader, writer))[1].startswith(b"250")
            assert (len(peer.received), peer.refused) == (4, 1)
            assert [(second.accepted, second.refused) for second in peer.seconds.values()] == [(3, 1), (1, 0)]

    run(send_four)


def test_the_answer_to_a_message_takes_its_time():
    async def send_one():
        loop = asyncio.get_running_loop()
        async with LimitedPeer(service=0.05) as peer, session(peer) as (reader, writer):
            await reader.readline()
            began = loop.time()
            assert (await send(reader, writer))[1].startswith(b"250")
            assert loop.time() - began == pytest.approx(0.05)

    run(send_one)


def test_a_sliding_window_counts_any_second_and_only_what_it_admitted():
    law = SlidingWindow(2)
    assert [law.admits(now) for now in (0.0, 0.75, 0.875, 1.0, 1.5, 1.75, 1.875)] == [
        True, True, False, True, False, True, False
    ]  # fmt: skip


def test_a_token_bucket_fills_steadily_and_holds_a_second():
    law = TokenBucket(2)
    assert [law.admits(now) for now in (100.0, 100.0, 100.0, 100.5, 100.5, 200.0, 200.0, 200.0)] == [
        True, True, False, True, False, True, True, False
    ]  # fmt: skip
