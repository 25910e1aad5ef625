"""A next hop that takes everything and remembers it byte for byte: fast, and independent of relayd's own framing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Self, cast


class Received(NamedTuple):
    """One transaction. sender and recipients: the arguments of MAIL FROM and RCPT TO behind the colon, as they came."""

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients' bare addresses."""
        return tuple(recipient.decode().partition("<")[2].rpartition(">")[0] for recipient in self.recipients)

    def behind_trace(self) -> bytes:
        """The content less its first header field, which must be Received."""
        lines = self.content.split(b"\r\n")
        assert lines[0].startswith(b"Received:"), lines[0]
        end = next(place for place, line in enumerate(lines) if place and not line.startswith((b" ", b"\t")))
        return b"\r\n".join(lines[end:])


class Sink:
    """Listens on a free loopback port. received: what came, in order, unless `on_message` was given to take it."""

    def __init__(self, on_message: Callable[[Received], None] | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.port = 0
        self.take = on_message or self.received.append
        self._sessions: set[_Session] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Session(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for session in tuple(self._sessions):
            session.transport.abort()
        await self._server.wait_closed()

    def opened(self, session: _Session) -> None:
        self.connections += 1
        self._sessions.add(session)

    def closed(self, session: _Session) -> None:
        self._sessions.discard(session)


class _Session(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._in_data = False
        self._searched = 0
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._sink.opened(self)
        self.transport.write(b"220 sink.example ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._sink.closed(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._message() if self._in_data else self._command():
            pass

    def _reset(self) -> None:
        self._sender = b""
        self._recipients: list[bytes] = []

    def _command(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        verb, _, argument = bytes(line).partition(b" ")
        self.transport.write(self._reply(verb.upper(), argument))
        if verb.upper() == b"QUIT":
            self.transport.close()
        return True

    def _reply(self, verb: bytes, argument: bytes) -> bytes:
        match verb:
            case b"EHLO":
                return b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n"
            case b"MAIL":
                self._sender = argument.partition(b":")[2]
            case b"RCPT":
                self._recipients.append(argument.partition(b":")[2])
            case b"DATA":
                self._in_data, self._searched = True, 0
                self._buffer[:0] = b"\r\n"  # so that every line, the first too, begins behind CRLF
                return b"354 Go ahead\r\n"
            case b"QUIT":
                return b"221 2.0.0 Bye\r\n"
            case b"RSET":
                self._reset()
        return b"250 2.0.0 OK\r\n"

    def _message(self) -> bool:
        end = self._buffer.find(b"\r\n.\r\n", max(self._searched - 4, 0))
        if end < 0:
            self._searched = len(self._buffer)
            return False
        content = bytes(self._buffer[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self._buffer[: end + 5]
        self._in_data = False
        self._sink.take(Received(self._sender, tuple(self._recipients), content))
        self._reset()
        self.transport.write(b"250 2.0.0 Taken\r\n")
        return True
