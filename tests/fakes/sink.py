"""A next hop that takes everything and remembers it byte for byte: fast, and independent of relayd's own framing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple, Self, cast

OK = b"250 2.0.0 OK\r\n"


def bare(path: bytes) -> str:
    """The address in an argument of MAIL or RCPT."""
    return path.decode().partition("<")[2].rpartition(">")[0]


class Received(NamedTuple):
    """One transaction. sender and recipients: the arguments of MAIL FROM and RCPT TO behind the colon, as they came."""

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients' bare addresses."""
        return tuple(map(bare, self.recipients))

    def behind_trace(self) -> bytes:
        """The content less its first header field, when that is Received; the whole of it otherwise."""
        return re.sub(rb"\AReceived:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", b"", self.content)


class Sink:
    """Listens on a free loopback port. received: what came, in order, unless `on_message` was given to take it."""

    def __init__(self, on_message: Callable[[Received], object] | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.port = 0
        self.delay = 0.0
        """Seconds until a message is answered."""
        self._take = on_message or self.received.append
        self._sessions: set[Session] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: Session(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for session in tuple(self._sessions):
            session.transport.abort()
        await self._server.wait_closed()

    async def abandoned(self, seconds: float = 10.0) -> None:
        """Return when a client that is dead has no connection left: whatever it had sent is read by then."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._sessions:
            assert asyncio.get_running_loop().time() < deadline, f"{len(self._sessions)} connections after {seconds} s"
            await asyncio.sleep(0.001)

    def greeting(self, session: Session) -> bytes:
        """The reply to a connection, which 421 ends."""
        return b"220 sink.example ESMTP\r\n"

    def sender(self, session: Session) -> bytes:
        """The reply to MAIL, for a next hop that limits; 421 ends the session."""
        return OK

    def recipient(self, address: str) -> bytes:
        """The reply to RCPT, for a next hop that refuses some."""
        return OK

    def message(self, received: Received) -> bytes:
        """The reply to a message that came whole; what is answered otherwise than 2xx was not taken."""
        self._take(received)
        return b"250 2.0.0 Taken\r\n"

    def opened(self, session: Session) -> None:
        self.connections += 1
        self._sessions.add(session)

    def closed(self, session: Session) -> None:
        self._sessions.discard(session)


class Session(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._in_data = False
        self._searched = 0
        self.messages = 0
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._sink.opened(self)
        self._say(self._sink.greeting(self))

    def connection_lost(self, error: Exception | None) -> None:
        self._sink.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # ended by us, with commands still on their way
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
        return self._say(self._reply(verb.upper(), argument))

    def _say(self, reply: bytes) -> bool:
        """Whether the session goes on: not after 221 and 421, and what else was pipelined is not read."""
        self.transport.write(reply)
        ends = reply.startswith((b"221", b"421"))
        if ends:
            self.transport.close()
        return not ends

    def _reply(self, verb: bytes, argument: bytes) -> bytes:
        match verb:
            case b"EHLO":
                return b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n"
            case b"MAIL":
                return self._mail(argument.partition(b":")[2])
            case b"RCPT":
                return self._rcpt(argument.partition(b":")[2])
            case b"DATA" if not self._recipients:
                return b"503 5.5.1 No recipients\r\n"
            case b"DATA":
                self._in_data, self._searched = True, 0
                self._buffer[:0] = b"\r\n"  # so that every line, the first too, begins behind CRLF
                return b"354 Go ahead\r\n"
            case b"QUIT":
                return b"221 2.0.0 Bye\r\n"
            case b"RSET":
                self._reset()
        return OK

    def _mail(self, sender: bytes) -> bytes:
        self._reset()
        reply = self._sink.sender(self)
        if reply == OK:
            self._sender = sender
        return reply

    def _rcpt(self, recipient: bytes) -> bytes:
        if not self._sender:
            return b"503 5.5.1 MAIL first\r\n"
        reply = self._sink.recipient(bare(recipient))
        if reply == OK:
            self._recipients.append(recipient)
        return reply

    def _message(self) -> bool:
        end = self._buffer.find(b"\r\n.\r\n", max(self._searched - 4, 0))
        if end < 0:
            self._searched = len(self._buffer)
            return False
        content = bytes(self._buffer[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self._buffer[: end + 5]
        self._in_data = False
        self.messages += 1
        reply = self._sink.message(Received(self._sender, tuple(self._recipients), content))
        self._reset()
        if self._sink.delay:
            asyncio.get_running_loop().call_later(self._sink.delay, self._late, reply)
        else:
            self.transport.write(reply)
        return True

    def _late(self, reply: bytes) -> None:
        if not self.transport.is_closing():
            self._say(reply)
