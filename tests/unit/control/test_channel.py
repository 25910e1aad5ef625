"""The channel over a real socket pair: questions and notes either way, and peers that hang, go away or talk nonsense."""

from __future__ import annotations

import asyncio
import socket
import struct

import msgspec
import pytest

from relayd.control import channel
from relayd.control.channel import Channel, ChannelError
from relayd.control.messages import Cut, Drain, LoginFailed, ReportQuery, StartFailed
from relayd.control.protocol import Done, QueueHold, QueueList, QueueShow, RefusedError, Status, StatusQuery

STATUS = Status("0.1.0", 1, "relay.example", "", 1.0, {"ready": 3}, 2.0)


def framed(frame: object) -> bytes:
    text = msgspec.msgpack.encode(frame)
    return struct.pack(">I", len(text)) + text


class Peer:
    """Answers what the test wants, keeps notes. blocked: answers wait until it is set."""

    def __init__(self) -> None:
        self.notes = []
        self.asked = 0
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.result = STATUS

    async def answer(self, question):
        self.asked += 1
        await self.blocked.wait()
        match question:
            case QueueShow():
                raise RefusedError("no such message")
            case QueueList():
                raise ZeroDivisionError
            case QueueHold():
                return Done()
        return self.result

    def told(self, note):
        self.notes.append(note)


@pytest.fixture
async def ends():
    one, other = socket.socketpair()
    peers = Peer(), Peer()
    channels = await Channel.open(one, peers[0]), await Channel.open(other, peers[1])
    yield *channels, *peers
    for end in channels:
        await end.close()


@pytest.fixture
async def raw():
    """A channel, its peer's notes, and the bare socket at the other end."""
    one, other = socket.socketpair()
    other.setblocking(False)
    peer = Peer()
    end = await Channel.open(one, peer)
    yield end, peer, other
    other.close()
    await end.close()


async def test_questions_and_notes_go_both_ways(ends, eventually):
    one, other, first, second = ends
    assert await one.ask(StatusQuery(), Status, 5) == STATUS
    assert await other.ask(QueueHold("0" * 23, held=True), Done, 5) == Done()
    assert one.tell(Drain("test"))
    assert other.tell(LoginFailed(["client:192.0.2.1", "account:é"], 1.5))
    await eventually(lambda: first.notes and second.notes)
    assert first.notes == [LoginFailed(["client:192.0.2.1", "account:é"], 1.5)]
    assert second.notes == [Drain("test")]


async def test_answers_find_their_questions_whatever_their_order(ends):
    one, _, _, peer = ends
    peer.blocked.clear()
    slow = asyncio.create_task(one.ask(StatusQuery(), Status, 5))
    refused = asyncio.create_task(one.ask(QueueShow("x"), Done, 5))
    while peer.asked < 2:
        await asyncio.sleep(0)
    peer.blocked.set()
    assert await slow == STATUS
    with pytest.raises(RefusedError, match="no such message"):
        await refused


async def test_a_refusal_and_a_bug_are_answers_and_the_channel_stays(ends):
    one = ends[0]
    with pytest.raises(RefusedError, match="no such message"):
        await one.ask(QueueShow("x"), Done, 5)
    with pytest.raises(RefusedError, match="internal error"):
        await one.ask(QueueList(), Done, 5)
    assert await one.ask(StatusQuery(), Status, 5) == STATUS


async def test_an_answer_that_comes_late_belongs_to_nobody(ends):
    one, _, _, peer = ends
    peer.blocked.clear()
    with pytest.raises(ChannelError, match="not answering"):
        await one.ask(ReportQuery(), Status, 0.01)
    peer.blocked.set()
    assert await one.ask(StatusQuery(), Status, 5) == STATUS


async def test_an_answer_too_long_is_a_refusal(ends, monkeypatch):
    one, _, _, peer = ends
    monkeypatch.setattr(channel, "MAX_FRAME", 1000)
    peer.result = msgspec.structs.replace(STATUS, unready="x" * 1000)
    with pytest.raises(RefusedError, match="too long"):
        await one.ask(StatusQuery(), Status, 5)
    peer.result = STATUS
    assert await one.ask(StatusQuery(), Status, 5) == STATUS


async def test_questions_at_once_are_bounded(ends):
    one, _, _, peer = ends
    peer.blocked.clear()
    asking = [asyncio.create_task(one.ask(StatusQuery(), Status, 5)) for _ in range(channel.MAX_QUESTIONS + 1)]
    with pytest.raises(RefusedError, match="too many"):
        await asking[-1]
    assert peer.asked == channel.MAX_QUESTIONS
    peer.blocked.set()
    assert await asyncio.gather(*asking[:-1]) == [STATUS] * channel.MAX_QUESTIONS


async def test_a_peer_that_goes_away_ends_what_waits(ends):
    one, other, _, peer = ends
    peer.blocked.clear()
    waiting = asyncio.create_task(one.ask(StatusQuery(), Status, 30))
    while not peer.asked:
        await asyncio.sleep(0)
    await other.close()
    with pytest.raises(ChannelError, match="gone"):
        await waiting
    assert one.closed.is_set()
    assert not one.tell(Cut())
    with pytest.raises(ChannelError):
        await one.ask(StatusQuery(), Status, 5)


async def test_what_was_said_before_the_end_is_heard(ends, eventually):
    one, other, _, peer = ends
    for _ in range(100):
        one.tell(StartFailed("x" * 1000, 75))
    await one.close()
    await asyncio.wait_for(other.closed.wait(), 5)
    assert len(peer.notes) == 100


async def test_a_peer_that_does_not_read_holds_nothing_up_and_costs_a_bounded_amount(raw):
    end, _, _ = raw
    note = StartFailed("x" * 50_000, 75)
    assert sum(end.tell(note) for _ in range(1000)) < 100
    with pytest.raises(ChannelError):
        await asyncio.wait_for(end.ask(StatusQuery(), Status, 30), 5)
    assert end._writer.transport.get_write_buffer_size() < 2 * channel.MAX_WAITING
    await asyncio.wait_for(end.close(0.1), 5)


async def test_frames_arrive_octet_by_octet(raw, eventually):
    _, peer, other = raw
    loop = asyncio.get_running_loop()
    for octet in framed(["note", Drain("slowly")]):
        await loop.sock_sendall(other, bytes([octet]))
        await asyncio.sleep(0)
    await eventually(lambda: peer.notes)
    assert peer.notes == [Drain("slowly")]


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xff\xff\xff", struct.pack(">I", channel.MAX_FRAME + 1), b"\0\0\0\0", b"\0\0\0\1\xc1",
        b"\0\0\0\1\x01", struct.pack(">I", 4) + b"\x91\x91\x91\x91",
        framed(["note", {"command": "halt"}]), framed(["answer", "x", None]), framed({"note": 1}),
    ],
)  # fmt: skip
async def test_nonsense_ends_the_channel_and_nothing_else(raw, octets):
    end, peer, other = raw
    await asyncio.get_running_loop().sock_sendall(other, octets)
    await asyncio.wait_for(end.closed.wait(), 5)
    assert peer.notes == []


async def test_answers_to_what_was_not_asked_are_nothing(raw, eventually):
    end, peer, other = raw
    for frame in (["answer", 99, {"ok": True, "result": None}], ["note", Cut()]):
        await asyncio.get_running_loop().sock_sendall(other, framed(frame))
    await eventually(lambda: peer.notes)
    assert not end.closed.is_set()
