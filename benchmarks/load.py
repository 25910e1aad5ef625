"""A load generator: SMTP by hand on uvloop, for what smtp-source cannot do.

STARTTLS and AUTH PLAIN, several domains in one message, a steady rate, and the time from each final dot to its 250. It
sends over kept connections or a connection for each message, so many at once; MAIL, RCPT and DATA go in one write where
PIPELINING is offered (RFC 2920), as mail servers send them. Anything but success ends it: a load that was partly
refused has measured nothing. Prints JSON: see `Report`.

Knows no relay and nothing of the other files here, so that it can be aimed at anything. The password comes in the
environment as LOAD_PASSWORD, where `ps` does not show it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import os
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

PATIENCE = 900.0
"""Seconds beyond its own length that a run may take."""


class Plan(NamedTuple):
    """What to send.

    messages and seconds: the run ends with whichever is reached first. size: octets of the body. kept: many messages a
    connection, else one. recipients: of a message, at `domains` domains in turn: d0.bench.test and so on; 0 for
    bench.test alone. rate: messages a second, 0 for as many as go. ca: PEM file that proves the server, whose name is
    `name`: its own certificate, or that of who signed it, which costs the load tool a check more; with it, STARTTLS
    and AUTH come before mail.
    """

    host: str
    port: int
    messages: int
    seconds: float
    connections: int = 20
    size: int = 5120
    kept: bool = True
    recipients: int = 1
    domains: int = 0
    rate: float = 0.0
    ca: Path | None = None
    name: str = "relay.bench.test"
    user: str = ""
    password: str = ""


class Report(NamedTuple):
    """What came of it.

    began: monotonic seconds of the machine (CLOCK_MONOTONIC), at the first connection. seconds: until the last 250.
    cpu: seconds of this process, its start among them. accept_ms: from the final dot to its 250; late_ms: behind the
    moment a message was due, where there is a rate: both as p50, p99 and max.
    """

    messages: int
    began: float
    seconds: float
    cpu: float
    accept_ms: dict[str, float]
    late_ms: dict[str, float]


class RefusedError(Exception):
    """The server answered something but success, or went away."""


class Client(asyncio.Protocol):
    """One SMTP connection. One caller at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._lines: list[bytes] = []
        self._replies: list[bytes] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._pipelining = False
        self._lost = False

    async def open(self, plan: Plan, context: ssl.SSLContext | None) -> None:
        """Connect and make ready for mail: greeted, and where the plan says so under TLS and authenticated."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, plan.host, plan.port)
        await self.ask(b"", expected=b"220")
        await self._ehlo()
        if context is not None and self._transport is not None:
            await self.ask(b"STARTTLS\r\n", expected=b"220")
            # Python resumes no TLS session unless it is handed one: each handshake is a whole one.
            secure = await loop.start_tls(self._transport, self, context, server_hostname=plan.name)
            self._transport = cast("asyncio.Transport", secure)
            await self._ehlo()
        if plan.user:
            response = base64.b64encode(f"\0{plan.user}\0{plan.password}".encode())
            await self.ask(b"AUTH PLAIN %s\r\n" % response, expected=b"235")

    async def send(self, recipients: list[bytes], body: bytes) -> float:
        """A message: its time is put in front of the body. Seconds from the final dot to its 250."""
        envelope = [b"MAIL FROM:<source@bench.test>\r\n", *(b"RCPT TO:<%s>\r\n" % one for one in recipients)]
        if self._pipelining:
            replies = await self._exchange(b"".join(envelope) + b"DATA\r\n", len(envelope) + 1)
            _check(replies[:-1], b"250")
            _check(replies[-1:], b"354")
        else:
            for command in envelope:
                await self.ask(command)
            await self.ask(b"DATA\r\n", expected=b"354")
        began = time.monotonic_ns()
        _check(await self._exchange(b"X-Sent: %d\r\n%s" % (began, body), 1), b"250")
        return (time.monotonic_ns() - began) / 1e9

    async def quit(self) -> None:
        """Part as one should, and wait for the answer."""
        await self.ask(b"QUIT\r\n", expected=b"221")
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    async def ask(self, command: bytes, expected: bytes = b"250") -> bytes:
        """The reply to one command, "" for none sent; RefusedError when its code is another."""
        replies = await self._exchange(command, 1)
        _check(replies, expected)
        return replies[0]

    async def _ehlo(self) -> None:
        self._pipelining = b"PIPELINING" in await self.ask(b"EHLO load.bench.test\r\n")

    async def _exchange(self, data: bytes, replies: int) -> list[bytes]:
        """So many replies, the first to what is sent now."""
        if self._lost or self._transport is None:
            raise RefusedError("the connection was lost")
        self._wanted = replies
        self._waiter = asyncio.get_running_loop().create_future()
        if data:
            self._transport.write(data)
        self._wake()
        await self._waiter
        answered, self._replies = self._replies[:replies], self._replies[replies:]
        return answered

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done() and len(self._replies) >= self._wanted:
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio. Lines of one reply stay together (RFC 5321 §4.2.1)."""
        self._unread += data
        while (end := self._unread.find(b"\n") + 1) > 0:
            line = bytes(self._unread[:end])
            del self._unread[:end]
            self._lines.append(line)
            if line[3:4] != b"-":
                self._replies.append(b"".join(self._lines))
                self._lines.clear()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio."""
        self._lost = True
        if self._waiter is not None and not self._waiter.done():
            said = f" behind {self._replies[-1]!r}" if self._replies else ""
            reason = error or "closed by the server"
            self._waiter.set_exception(RefusedError(f"the connection was lost{said}: {reason}"))


def _check(replies: list[bytes], expected: bytes) -> None:
    for reply in replies:
        if not reply.startswith(expected):
            raise RefusedError(f"{expected.decode()} was expected: {reply!r}")


class Load:
    """A plan being carried out: its connections take the next message from one line."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._context: ssl.SSLContext | None = None
        if plan.ca is not None:
            self._context = ssl.create_default_context(cafile=plan.ca)
            self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._body = body(plan.size)
        self._accepted: list[float] = []
        self._late: list[float] = []
        self._began = 0.0

    async def run(self) -> Report:
        """Send all of it. ExceptionGroup of RefusedError or OSError when a server does not take it."""
        self._began = time.monotonic()
        numbers = self._numbers()
        length = self._plan.seconds if math.isfinite(self._plan.seconds) else 0.0
        async with asyncio.timeout(length + PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(min(self._plan.connections, self._plan.messages)):
                group.create_task(self._connections(numbers))
        seconds = time.monotonic() - self._began
        cpu = time.process_time()
        return Report(len(self._accepted), self._began, seconds, cpu, spread(self._accepted), spread(self._late))

    def _numbers(self) -> Iterator[int]:
        """The messages, until there were enough or the time is over."""
        end = self._began + self._plan.seconds
        for number in range(self._plan.messages):
            if max(time.monotonic(), self._due_at(number)) >= end:
                return
            yield number

    async def _connections(self, numbers: Iterator[int]) -> None:
        """Messages over one connection, or one connection after the other."""
        client = None
        try:
            for number in numbers:
                await self._due(number)
                if client is None:
                    client = Client()
                    await client.open(self._plan, self._context)
                self._accepted.append(await client.send(self._recipients(number), self._body))
                if not self._plan.kept:
                    await client.quit()
                    client = None
            if client is not None:
                await client.quit()
        finally:
            if client is not None:
                client.close()

    async def _due(self, number: int) -> None:
        """Return when it is this message's turn."""
        if self._plan.rate:
            due = self._due_at(number)
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            self._late.append(max(time.monotonic() - due, 0.0))

    def _due_at(self, number: int) -> float:
        return self._began + number / self._plan.rate if self._plan.rate else self._began

    def _recipients(self, number: int) -> list[bytes]:
        count, domains = self._plan.recipients, self._plan.domains
        if not domains:
            return [b"sink%d@bench.test" % place for place in range(count)]
        return [b"sink@d%d.bench.test" % (place % domains) for place in range(number * count, (number + 1) * count)]


def body(size: int) -> bytes:
    """The rest of a message behind its first field, the final dot too: what a relay would add is there already."""
    fields = (
        b"From: <source@bench.test>\r\nTo: <sink@bench.test>\r\nSubject: load\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <load@bench.test>\r\n\r\n"
    )
    line = b"x" * 76 + b"\r\n"
    whole, rest = divmod(size, len(line))
    last = b"x" * (rest - 2) + b"\r\n" if rest >= 2 else b""
    return fields + line * whole + last + b".\r\n"


def spread(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds; empty for nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    ranks = {"p50": 0.50, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[min(int(rank * len(ordered)), len(ordered) - 1)] for name, rank in ranks.items()}


def main() -> None:
    """Send what the arguments say."""
    try:
        report = uvloop.run(Load(_plan()).run())
    except* (RefusedError, OSError) as troubles:
        sys.exit(f"load: {troubles.exceptions[0]}")
    print(json.dumps(report._asdict()))


def _plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="host:port")
    parser.add_argument("--messages", type=int, default=sys.maxsize, help="at most (until --seconds are over)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="at most (until --messages are sent)")
    parser.add_argument("--connections", type=int, default=20, help="at once (20)")
    parser.add_argument("--size", type=int, default=5120, help="octets of a body (5120)")
    parser.add_argument("--each", action="store_true", help="a connection for each message, instead of kept ones")
    parser.add_argument("--recipients", type=int, default=1, help="of a message (1)")
    parser.add_argument("--domains", type=int, default=0, help="that recipients are at, in turn (bench.test)")
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second (as many as go)")
    parser.add_argument("--ca", type=Path, help="STARTTLS, with a server that this PEM file proves")
    parser.add_argument("--name", default="relay.bench.test", help="the server's name in its certificate")
    parser.add_argument("--user", default="", help="AUTH PLAIN, the password in LOAD_PASSWORD")
    found = parser.parse_args()
    if found.messages == sys.maxsize and found.seconds == math.inf:
        parser.error("--messages or --seconds")
    host, _, port = found.server.rpartition(":")
    return Plan(
        host, int(port), found.messages, found.seconds, found.connections, found.size, not found.each,
        found.recipients, found.domains, found.rate, found.ca, found.name, found.user,
        os.environ.get("LOAD_PASSWORD", ""),
    )  # fmt: skip


if __name__ == "__main__":
    main()
