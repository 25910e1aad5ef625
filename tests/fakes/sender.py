"""A client that sends numbered messages and tells the judge what it was answered, however often the relay goes away.

Speaks SMTP by hand over kept connections and reconnects when one is lost. What was sent and never answered it does not
send again: what arrives twice was doubled by the relay. What is answered 4xx it sends again when told to be patient.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Iterable

from tests.fakes.judge import Judge, address, delivery

PAUSE = 0.05
"""Seconds before a connection is tried again, and before what was put off is."""


class Sender:
    """refused: replies that kept a message from being taken, by their first line. patient: 4xx is tried again."""

    def __init__(self, port: int, judge: Judge, *, sessions: int = 20, patient: bool = False) -> None:
        self.refused: collections.Counter[str] = collections.Counter()
        self._port = port
        self._judge = judge
        self._sessions = sessions
        self._patient = patient
        self._pending: collections.deque[int] = collections.deque()

    async def send(self, numbers: Iterable[int], domain: str = "sink.test") -> None:
        """Send the messages of these numbers, one recipient each. The caller bounds the time."""
        self._pending.extend(numbers)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._sessions, len(self._pending))):
                group.create_task(self._session(domain))

    async def _session(self, domain: str) -> None:
        while self._pending:
            try:
                await self._connection(domain)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(PAUSE)  # the relay is down, or wants no mail just now

    async def _connection(self, domain: str) -> None:
        """Send until all are sent, or the connection is lost."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.closing(writer):
            talk = _Talk(reader, writer)
            await talk.reply()
            await talk.ask(b"EHLO client.ledger.test\r\n")
            while self._pending:
                number = self._pending.popleft()
                await self._message(talk, number, address(number, domain))

    async def _message(self, talk: _Talk, number: int, recipient: str) -> None:
        one = delivery(recipient)
        try:
            await self._envelope(talk, recipient)
        except BaseException:
            self._pending.appendleft(number)
            raise
        self._judge.sending([one])
        reply = await talk.ask(self._judge.content(number).replace(b"\r\n.", b"\r\n..") + b".\r\n")
        self._judge.answered([one], reply)
        if not reply.startswith(b"250"):
            self._refused(reply)
            if self._patient and reply.startswith(b"4"):
                self._pending.append(number)

    async def _envelope(self, talk: _Talk, recipient: str) -> None:
        """Up to 354; ConnectionAbortedError when the answer is another."""
        for command in (b"MAIL FROM:<ledger@ledger.test>\r\n", b"RCPT TO:<%s>\r\n" % recipient.encode(), b"DATA\r\n"):
            reply = await talk.ask(command)
            if not reply.startswith((b"250", b"354")):
                self._refused(reply)
                raise ConnectionAbortedError(reply)

    def _refused(self, reply: bytes) -> None:
        self.refused[reply.decode().strip()] += 1


class _Talk:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, text: bytes) -> bytes:
        self._writer.write(text)
        return await self.reply()

    async def reply(self) -> bytes:
        """The last line of the next reply."""
        while True:
            line = await self._reader.readuntil(b"\r\n")
            if line[3:4] != b"-":
                return line
