"""A scripted SMTP next hop on a real socket: says what its script says, and records every byte it was told.

    peer = await SmtpPeer.start({"RCPT": ["250 ok", "550 5.1.1 no such user"], "DOT": DROP})

Keys: GREETING, EHLO, HELO, STARTTLS, AUTH, RESPONSE (what follows 334), MAIL, RCPT, DATA, BODY (in its midst, or a chunk's), DOT,
BDAT (behind its chunk), RSET, NOOP, QUIT. A value is one answer for always, a list whose answers are used up one by one (the default
follows), or a function, async or not, of (session, line). An answer is text (one reply, CRLF is added), bytes (sent as they are), or
one of DROP (FIN), RESET (RST), SILENCE, BROKEN_TLS. CHUNKING is offered where `capabilities` say so; with `knows_bdat=False` it is a
lie: 500, and the chunk is taken for commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field


class Act(enum.Enum):
    DROP = "close the connection"
    RESET = "reset the connection"
    SILENCE = "never answer"
    BROKEN_TLS = "220, then garbage instead of a handshake"


DROP, RESET, SILENCE, BROKEN_TLS = Act
Answer = str | bytes | Act
Script = Mapping[str, "Answer | list[Answer] | Callable[[Session, str], Answer | Awaitable[Answer]]"]

CAPABILITIES = ("PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
CHUNKING = (*CAPABILITIES, "CHUNKING")


@dataclass
class Received:
    """A message the peer took (it answered 2xx to the dot, or to BDAT). body: as it was before stuffing."""

    mail: str
    recipients: list[str]
    body: bytes
    tls: bool


@dataclass
class Session:
    """One connection. lines: commands without CRLF. ahead: commands that came before the answer to the one before.

    client: the address it came from.
    """

    lines: list[str] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    ahead: int = 0
    tls: bool = False
    client: str = ""
    challenged: bool = False
    mail: str = ""
    recipients: list[str] = field(default_factory=list)
    chunks: bytearray = field(default_factory=bytearray)
    closed: bool = False

    def verbs(self) -> list[str]:
        return [line.split(" ")[0].split(":")[0] for line in self.lines]


class SmtpPeer:
    """Use `async with await SmtpPeer.start(script)`, or `close` it."""

    def __init__(
        self,
        script: Script,
        capabilities: Sequence[str],
        tls: ssl.SSLContext | None,
        ahead_of_tls: bytes,
        knows_bdat: bool = True,
    ) -> None:
        self.script = {verb: list(answer) if isinstance(answer, list) else answer for verb, answer in script.items()}
        self.capabilities = tuple(capabilities) + (("STARTTLS",) if tls else ())
        self.tls = tls
        self.ahead_of_tls = ahead_of_tls
        self.knows_bdat = knows_bdat
        self.sessions: list[Session] = []
        self.messages: list[Received] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    @classmethod
    async def start(
        cls,
        script: Script | None = None,
        *,
        capabilities: Sequence[str] = CAPABILITIES,
        tls: ssl.SSLContext | None = None,
        ahead_of_tls: bytes = b"",
        implicit_tls: bool = False,
        knows_bdat: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> SmtpPeer:
        peer = cls(script or {}, capabilities, tls, ahead_of_tls, knows_bdat)
        peer._server = await asyncio.start_server(peer._connected, host, port, ssl=tls if implicit_tls else None)
        return peer

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    @property
    def recipients(self) -> list[str]:
        """Of all messages taken, in order."""
        return [recipient for message in self.messages for recipient in message.recipients]

    def speak(self, data: bytes) -> None:
        """Say something unasked on every open connection."""
        for writer in self._writers:
            writer.write(data)

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> SmtpPeer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        session = Session(tls=writer.get_extra_info("sslcontext") is not None, client=writer.get_extra_info("peername")[0])
        self.sessions.append(session)
        conversation = _Conversation(self, session, reader, writer)
        try:
            await conversation.run()
        except (OSError, EOFError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            session.closed = True
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)

    def answer(self, verb: str, session: Session, line: str) -> Answer | Awaitable[Answer]:
        scripted = self.script.get(verb)
        if isinstance(scripted, list):
            scripted = scripted.pop(0) if scripted else None
        if callable(scripted):
            return scripted(session, line)
        if scripted is not None:
            return scripted
        return _welcome(session, line) if verb in {"AUTH", "RESPONSE"} else self._usual(verb, session)

    def _usual(self, verb: str, session: Session) -> Answer:
        match verb:
            case "GREETING":
                return "220 peer.example ESMTP"
            case "EHLO":
                lines = ["peer.example", *self.capabilities]
                return b"".join(
                    f"250{' ' if at == len(lines) - 1 else '-'}{line}\r\n".encode() for at, line in enumerate(lines)
                )
            case "STARTTLS":
                return "220 2.0.0 go ahead"
            case "RCPT" | "DATA" if not session.mail:
                return "503 5.5.1 MAIL first"
            case "DATA" | "DOT" | "BDAT" if not session.recipients:
                return "554 5.5.1 no recipients"
            case "DATA":
                return "354 go ahead"
            case "QUIT":
                return "221 2.0.0 bye"
            case "DOT" | "BDAT":
                return "250 2.0.0 queued as 12345"
            case "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP":
                return "250 ok"
        return "500 5.5.1 what?"


def _welcome(session: Session, line: str) -> Answer:
    """Anybody, after what the mechanism asks for: LOGIN wants two responses, the others one, perhaps at once."""
    started = next(at for at, said in enumerate(session.lines) if said.startswith("AUTH "))
    _, mechanism, *initial = session.lines[started].split(" ")
    responses = len(initial) + len(session.lines) - started - 1
    return "334 " if responses < (2 if mechanism == "LOGIN" else 1) else "235 2.7.0 welcome"


class _Conversation:
    def __init__(
        self, peer: SmtpPeer, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._peer = peer
        self._session = session
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    async def run(self) -> None:
        await self._say("GREETING", "")
        while True:
            line = (await self._until(b"\r\n")).decode("utf-8", "replace")
            self._session.lines.append(line)
            verb = "RESPONSE" if self._session.challenged else line[:8].split(" ")[0].split(":")[0].upper()
            self._session.ahead += bool(self._buffer) and verb != "BDAT"
            if verb == "BDAT":
                if self._peer.knows_bdat:
                    await self._chunk(line)
                    continue
                verb = "unknown"
            said = await self._say(verb, line)
            self._session.challenged = said.startswith("334")
            if verb == "QUIT":
                return
            await self._follow(verb, line, said)

    async def _follow(self, verb: str, line: str, said: str) -> None:
        session = self._session
        match verb:
            case "EHLO" | "HELO" | "RSET":
                self._forget()
            case "MAIL" if said.startswith("2"):
                session.mail, session.recipients = line, []
            case "RCPT" if said.startswith("2"):
                session.recipients.append(line)
            case "STARTTLS" if said.startswith("220"):
                await self._upgrade()
            case "DATA" if said.startswith("354"):
                await self._data()

    async def _data(self) -> None:
        session = self._session
        self._buffer[:0] = b"\r\n"
        if "BODY" in self._peer.script:
            await self._until(b"")
            await self._say("BODY", "")
        content = await self._until(b"\r\n.\r\n")
        body = (content + b"\r\n").replace(b"\r\n.", b"\r\n")[2:]
        message = Received(session.mail, session.recipients, body, session.tls)
        await self._say("DOT", ".", before=message)
        self._forget()

    async def _chunk(self, line: str) -> None:
        """RFC 3030 §2: the octets are taken whatever is answered."""
        session = self._session
        _, octets, *last = line.split(" ")
        if "BODY" in self._peer.script:
            await self._until(b"")
            await self._say("BODY", "")
        session.chunks += await self._octets(int(octets))
        if last != ["LAST"]:
            await self._say("BDAT", line)
            return
        message = Received(session.mail, session.recipients, bytes(session.chunks), session.tls)
        await self._say("BDAT", line, before=message)
        self._forget()

    def _forget(self) -> None:
        session = self._session
        session.mail, session.recipients, session.chunks = "", [], bytearray()

    async def _upgrade(self) -> None:
        assert self._peer.tls is not None
        await self._writer.start_tls(self._peer.tls)
        self._session.tls = True
        self._buffer.clear()

    async def _say(self, verb: str, line: str, before: Received | None = None) -> str:
        """Answer as the script says; what the reply began with. A message counts as taken before the 2xx leaves."""
        answer = self._peer.answer(verb, self._session, line)
        if inspect.isawaitable(answer):
            answer = await answer
        match answer:
            case Act.DROP:
                raise EOFError
            case Act.RESET:
                self._reset()
                raise EOFError
            case Act.SILENCE:
                await asyncio.Event().wait()
            case Act.BROKEN_TLS:
                self._writer.write(b"220 2.0.0 go ahead\r\n")
                await self._until(b"")
                self._writer.write(b"this is not TLS\r\n" * 10)
                await self._writer.drain()
                raise EOFError
            case str() | bytes():
                data = answer if isinstance(answer, bytes) else answer.encode() + b"\r\n"
                if verb == "STARTTLS":
                    data += self._peer.ahead_of_tls
                if before is not None and data.startswith(b"2"):
                    self._peer.messages.append(before)
                self._writer.write(data)
                await self._writer.drain()
                return data.decode("latin-1")
        return ""

    def _reset(self) -> None:
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _octets(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def _until(self, end: bytes) -> bytes:
        """What comes before `end`; with an empty `end`, whatever comes next."""
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0 or (not end and len(self._buffer) <= 2):
            searched = max(0, len(self._buffer) - len(end))
            await self._more()
        taken = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return taken

    async def _more(self) -> None:
        data = await self._reader.read(65536)
        if not data:
            raise EOFError
        self._session.raw += data
        self._buffer += data
