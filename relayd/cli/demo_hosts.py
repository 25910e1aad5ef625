"""The demo's destination hosts: small SMTP servers on loopback, each with a temper of its own.

Owns what a destination answers and what it received; knows nothing of relayd. Called by `demo`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from aiosmtpd.smtp import SMTP, Envelope, Session

OK = "250 2.1.5 OK"

Temper = Callable[[str], str]
"""The reply to RCPT TO with this recipient."""


def accept(_recipient: str) -> str:
    """Take everybody's mail."""
    return OK


def refuse(recipient: str) -> str:
    """Know nobody."""
    return f"550 5.1.1 <{recipient}>: no such user here"


def greylist() -> Temper:
    """Refuse each recipient for the moment once, and accept afterwards."""
    seen: set[str] = set()

    def temper(recipient: str) -> str:
        if recipient in seen:
            return OK
        seen.add(recipient)
        return "451 4.7.1 Greylisted, try again later"

    return temper


class Host:
    """A destination. received: (recipient, content) in order; codes: replies to RCPT by their first three digits."""

    def __init__(self, name: str, temper: Temper) -> None:
        self.name = name
        self.port = 0
        self.received: list[tuple[str, bytes]] = []
        self.codes: collections.Counter[str] = collections.Counter()
        self._temper = temper

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Host]:
        """Serve on a free loopback port while the context lasts."""
        server = await asyncio.get_running_loop().create_server(self._session, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def _session(self) -> SMTP:
        return SMTP(self, hostname=self.name, data_size_limit=None, enable_SMTPUTF8=True)

    async def handle_RCPT(  # noqa: N802  # aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """aiosmtpd's hook: the host's temper decides."""
        reply = self._temper(address)
        self.codes[reply[:3]] += 1
        if reply == OK:
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """aiosmtpd's hook: keep what came."""
        content = envelope.original_content or b""
        self.received.extend((recipient, content) for recipient in envelope.rcpt_tos)
        return "250 2.0.0 OK"


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
