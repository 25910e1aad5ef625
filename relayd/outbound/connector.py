"""Opens sessions with hosts: dials an address, checks it, greets, and upgrades to TLS where that is offered.

Owns every connection from its dialling until its transport is gone. Which host is asked is `delivery`'s, what is said
in a session `connection`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Callable

from aiosmtplib.protocol import SMTPProtocol

from relayd import metrics
from relayd.message.outcome import Outcome
from relayd.message.site import Host
from relayd.outbound.classify import GREETING, ruling
from relayd.outbound.connection import Connection, Timeouts, label
from relayd.outbound.protocol import PipeliningProtocol
from relayd.smtp import reply

LOCAL_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Errors of connecting that say nothing about the peer."""


class Connector:
    """Opens connections, and knows every one that is open until its transport is gone."""

    def __init__(self, hostname: str, tls_context: ssl.SSLContext, timeouts: Timeouts) -> None:
        self._hostname = hostname
        self._context = tls_context
        self._timeouts = timeouts
        self._live: set[PipeliningProtocol] = set()
        self._none_left = asyncio.Event()

    async def open(self, host: Host, address: str, permitted: Callable[[str], bool]) -> Connection | Outcome:
        """A session ready for MAIL, or what its failing means. OSError when the trouble is local (LOCAL_TROUBLE).

        TLS is opportunistic: where STARTTLS is offered and fails, the host is dialled once more and spoken to in clear.
        """
        connection = await self._session(host, address, permitted)
        if isinstance(connection, Outcome) or "starttls" not in connection.extensions:
            return connection
        if await connection.secure(self._context, self._hostname):
            return connection
        return await self._session(host, address, permitted)

    async def close(self, seconds: float) -> None:
        """Wait until the last connection is gone; those that are left after `seconds` are cut."""
        for last in (seconds, 1.0):
            self._none_left.clear()
            if self._live:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(last):
                        await self._none_left.wait()
            for protocol in self._live:
                protocol.cut()

    async def _session(self, host: Host, address: str, permitted: Callable[[str], bool]) -> Connection | Outcome:
        connection = await self._dial(host, address, permitted)
        if isinstance(connection, Outcome):
            return connection
        trouble = await connection.greet(self._hostname)
        if trouble is None:
            return connection
        connection.abort("refused")
        return trouble

    async def _dial(self, host: Host, address: str, permitted: Callable[[str], bool]) -> Connection | Outcome:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                transport, protocol = await loop.create_connection(
                    lambda: PipeliningProtocol(loop, self._gone), address, host.port
                )
        except OSError as error:
            if error.errno in LOCAL_TROUBLE and not _lacks_ipv6(error, address):
                raise
            return _unreachable(host, address, os.strerror(error.errno) if error.errno else "no connection in time")
        if not protocol.failure:
            self._live.add(protocol)
            metrics.outbound_connections.inc()
        peer = transport.get_extra_info("peername")
        if peer is None or not permitted(peer[0]):
            protocol.fail("not permitted")
            return _unreachable(host, address, "lost, or not a permitted address")
        return Connection(protocol, host, address, self._timeouts, loop.time())

    def _gone(self, protocol: SMTPProtocol) -> None:
        if isinstance(protocol, PipeliningProtocol) and protocol in self._live:
            self._live.remove(protocol)
            metrics.outbound_connections.dec()
        if not self._live:
            self._none_left.set()


def _unreachable(host: Host, address: str, why: str) -> Outcome:
    verdict = ruling(GREETING, None)
    answer = reply.unreachable(label(host, address), why)
    return Outcome(verdict.verdict, verdict.scope, answer)


def _lacks_ipv6(error: OSError, address: str) -> bool:
    """Where IPv6 is switched off, no IPv6 address is reachable from here, but the host's next one may be."""
    return error.errno == errno.EADDRNOTAVAIL and ":" in address
