"""A channel: one end of a socket pair between the supervisor and a worker, for questions and notes either way.

Owns frames, the numbers that join an answer to its question, and the bounds: of a frame, of what waits for a peer that
does not read, of questions at once. Knows nothing of what is asked. Never waits for the peer but in `ask` and `close`,
with a deadline.

A frame is its length in four octets, big-endian, and a message of msgpack.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from typing import Protocol, TypeVar

import msgspec

from relayd import log, metrics
from relayd.control.answers import sent
from relayd.control.messages import Note, Question
from relayd.control.protocol import Answer, RefusedError

MAX_FRAME = 64 << 20
"""Octets of a frame: a listing of 10,000 messages has two to ten million."""

MAX_WAITING = 1 << 20
"""Octets that wait for a peer that does not read; beyond, notes are dropped and questions fail at once."""

MAX_QUESTIONS = 64
"""Questions of a peer that are being answered at once."""

_LENGTH = struct.Struct(">I")
_ENVELOPE = 64
"""Octets around an answer, at most."""

_NIL = msgspec.Raw(b"\xc0")
"""Nothing, in msgpack."""

T = TypeVar("T")


class ChannelError(Exception):
    """The peer did not answer: it is gone, it does not read, or it took too long."""


class _Told(msgspec.Struct, frozen=True, array_like=True, tag="note"):
    note: Note


class _Asked(msgspec.Struct, frozen=True, array_like=True, tag="question"):
    number: int
    question: Question


class _Answered(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    number: int
    answer: Answer


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Told | _Asked | _Answered).decode


class Peer(Protocol):
    """What is done with what comes in. Called on the event loop."""

    async def answer(self, question: Question) -> msgspec.Struct:
        """The answer; RefusedError says why there is none."""

    def told(self, note: Note) -> None:
        """Take a note."""


class Channel:
    """Open from `open` until either side closes it or goes away; then `closed` is set. Questions cost O(frame)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read(), name="channel")

    @classmethod
    async def open(cls, sock: socket.socket, peer: Peer) -> Channel:
        """A channel over a connected socket, which is the channel's from here on."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, peer)

    def tell(self, note: Note, *, surely: bool = False) -> bool:
        """Send a note; False when the peer is gone or does not read. surely: who does not read gets it all the same.

        For notes that are few of themselves, and of which none may be missing.
        """
        return self._send(_Told(note), at_any_length=surely)

    async def ask(self, question: Question, kind: type[T], seconds: float) -> T:
        """The peer's answer within that time. ChannelError, RefusedError."""
        number = next(self._numbers)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        try:
            if not self._send(_Asked(number, question)):
                raise ChannelError("not answering")
            async with asyncio.timeout(seconds):
                answer = await answered
        except TimeoutError:
            raise ChannelError("not answering") from None
        finally:
            del self._asked[number]
        if not answer.ok:
            raise RefusedError(answer.error)
        return msgspec.msgpack.decode(answer.result, type=kind)

    async def close(self, seconds: float = 1.0) -> None:
        """Let go of the peer, which sees the end of the stream; what waits to be sent is, if it reads it in time."""
        self._reading.cancel()
        await asyncio.gather(self._reading, *self._answering, return_exceptions=True)
        self._end()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._writer.wait_closed())  # the future in it is the stream's, not ours to cancel
        except OSError:  # TimeoutError is one
            self._writer.transport.abort()

    # --- coming in ----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} octets")  # noqa: TRY301  # as what cannot be decoded
                self._take(_decode(await self._reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the peer has ended: `closed` says so
        except Exception:  # noqa: BLE001  # what it reads next would mean nothing
            metrics.bugs.inc()
            log.bug("channel")
        finally:
            self._end()

    def _take(self, frame: _Told | _Asked | _Answered) -> None:
        match frame:
            case _Told(note):
                self._peer.told(note)
            case _Answered(number, answer):
                waiting = self._asked.get(number)
                if waiting and not waiting.done():  # it may have given up
                    waiting.set_result(answer)
            case _Asked(number, question):
                if len(self._answering) >= MAX_QUESTIONS:
                    self._refuse(number, "too many questions at once")
                    return
                task = asyncio.create_task(self._answer(number, question))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, question: Question) -> None:
        answer = await sent(self._peer.answer(question), _encode)
        if answer.ok and len(answer.result) < MAX_FRAME - _ENVELOPE:
            self._send(_Answered(number, answer), at_any_length=True)
        else:
            self._refuse(number, answer.error or "the answer is too long; ask for less")

    def _refuse(self, number: int, error: str) -> None:
        self._send(_Answered(number, Answer(ok=False, result=_NIL, error=error)), at_any_length=True)

    def _end(self) -> None:
        if self.closed.is_set():
            return
        self._writer.close()
        for task in self._answering:
            task.cancel()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(ChannelError("gone"))
        self.closed.set()

    # --- going out ----------------------------------------------------------------------------------------------------

    def _send(self, frame: _Told | _Asked | _Answered, *, at_any_length: bool = False) -> bool:
        """Answers go at any length: who asks bounds them, by asking."""
        transport = self._writer.transport
        if transport.is_closing() or (transport.get_write_buffer_size() > MAX_WAITING and not at_any_length):
            return False
        octets = _encode(frame)
        self._writer.write(_LENGTH.pack(len(octets)) + octets)
        return True
