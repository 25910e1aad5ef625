"""A client that keeps a ledger: every message it got a 250 for, and every one whose answer never came.

Speaks SMTP by hand over kept connections, reconnects when one is lost, and never sends the same message twice: what
arrives twice was doubled by the relay.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import time

from tests.fakes.sink import Received


class Arrivals:
    """What a sink received, by the ledger's number: the times, and whether the bytes were those sent."""

    def __init__(self) -> None:
        self.times: dict[int, list[float]] = collections.defaultdict(list)
        self.altered: set[int] = set()

    def take(self, received: Received) -> None:
        """For `Sink(on_message=...)`."""
        number = int(received.addresses[0].partition("@")[0].removeprefix("n"))
        self.times[number].append(time.monotonic())
        if received.behind_trace() != message(number):
            self.altered.add(number)


def message(number: int, size: int = 5120) -> bytes:
    """The message of this number: always the same bytes, dots at line starts among them."""
    digest = hashlib.sha256(str(number).encode()).hexdigest().encode()
    line = b"." + digest + b"\r\n"
    header = b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <%d@ledger.test>\r\n\r\n" % number
    return header + line * (size // len(line))


class Ledger:
    """answered: numbers that got 250 to the final dot. unanswered: sent, in part or whole, and no reply ever came."""

    def __init__(self, port: int, *, sessions: int = 20) -> None:
        self.answered: set[int] = set()
        self.unanswered: set[int] = set()
        self.refused: collections.Counter[bytes] = collections.Counter()
        self._port = port
        self._sessions = sessions
        self._pending: collections.deque[int] = collections.deque()

    async def send(self, count: int) -> None:
        """Send `count` messages, however often the relay goes away in between. The caller bounds the time."""
        self._pending.extend(range(count))
        async with asyncio.TaskGroup() as group:
            for _ in range(self._sessions):
                group.create_task(self._session())

    async def _session(self) -> None:
        while self._pending:
            try:
                await self._connection()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.02)  # the relay is down; the caller starts it again

    async def _connection(self) -> None:
        """Send until all are sent, or the connection is lost."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            talk = _Talk(reader, writer)
            await talk.reply()
            await talk.ask(b"EHLO client.ledger.test\r\n")
            while self._pending:
                number = self._pending.popleft()
                try:
                    await self._message(talk, number)
                except BaseException:
                    if number not in self.unanswered:
                        self._pending.appendleft(number)
                    raise

    async def _message(self, talk: _Talk, number: int) -> None:
        envelope = (b"MAIL FROM:<ledger@ledger.test>\r\n", b"RCPT TO:<n%d@sink.test>\r\n" % number, b"DATA\r\n")
        if not (await talk.ask(*envelope)).startswith(b"354"):
            raise ConnectionAbortedError("not now")
        self.unanswered.add(number)
        reply = await talk.ask(message(number).replace(b"\r\n.", b"\r\n..") + b".\r\n")
        self.unanswered.discard(number)
        if reply.startswith(b"250"):
            self.answered.add(number)
        else:
            self.refused[reply[:3]] += 1


class _Talk:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, *commands: bytes) -> bytes:
        """Send the commands one after the other; the last one's reply."""
        reply = b""
        for command in commands:
            self._writer.write(command)
            reply = await self.reply()
        return reply

    async def reply(self) -> bytes:
        """The last line of the next reply."""
        while True:
            line = await self._reader.readuntil(b"\r\n")
            if line[3:4] != b"-":
                return line
