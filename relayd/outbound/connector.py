"""Opens sessions with hosts: dials an address, checks it, greets, upgrades to TLS and logs in, as the site's terms say.

Owns every connection from its dialling until its transport is gone, and the memory of where TLS was broken. Which host
is asked is `delivery`'s, what is said in a session `connection`'s, how to log in `login`'s and `credentials`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Callable, Mapping

import msgspec
from aiosmtplib.protocol import SMTPProtocol

from relayd import clock, log, metrics
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site, Source, Tls
from relayd.outbound.classify import GREETING, ruling
from relayd.outbound.connection import Connection, Timeouts, label
from relayd.outbound.credentials import Credentials, CredentialsError, Secret
from relayd.outbound.login import choose, login, login_missing
from relayd.outbound.places import Places
from relayd.outbound.protocol import PipeliningProtocol
from relayd.outbound.recent import Recent
from relayd.smtp import reply
from relayd.tls import NextHopContexts

LOCAL_TROUBLE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EADDRINUSE}
)
"""Errors of connecting that say nothing about the peer; the last two: no port is left."""

SOURCE_TROUBLE = frozenset({errno.EADDRNOTAVAIL, errno.EINVAL})
"""Errors of connecting from a configured address: it is none of this machine's, or nothing is reached from it."""

BROKEN_SECONDS = 3600.0
"""How long a host whose STARTTLS did not work is spoken to in clear, where that is allowed."""

ALERT_SECONDS = 3600.0
"""From one alert to the next about the same."""

MAX_REMEMBERED = 10_000
"""Hosts, and alerts, that are remembered."""


class _Call(msgspec.Struct, frozen=True):
    """Whom to call, on which terms. permitted: whether the address really connected to is one that may be."""

    host: Host
    address: str
    site: Site
    permitted: Callable[[str], bool]

    @property
    def label(self) -> str:
        return label(self.host, self.address)

    @property
    def peer(self) -> tuple[Host, str, Source]:
        """Who refuses a handshake. Some do for a name, and whoever owns a domain chooses how its hosts are called."""
        return self.host, self.address, self.site.source


class Connector:
    """Opens connections, and knows every one that is open until its transport is gone.

    credentials: by `Terms.name`. Invariants: on a site whose terms want TLS, and on one with credentials unless its
    terms say NONE, nothing is said in clear behind EHLO but STARTTLS; no site has more connections than there are
    `places` for it, those that wait for the answer to QUIT included. Memory is bounded by what is open, and by
    MAX_REMEMBERED.
    """

    def __init__(
        self,
        hostname: str,
        contexts: NextHopContexts,
        timeouts: Timeouts,
        credentials: Mapping[str, Credentials] | None = None,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._hostname = hostname
        self._contexts = contexts
        self._timeouts = timeouts
        self._credentials = credentials or {}
        self._broken = Recent(BROKEN_SECONDS, MAX_REMEMBERED, now)
        self._alerted = Recent(ALERT_SECONDS, MAX_REMEMBERED, now)
        self.places = Places()
        """Of all sites; by their terms, unless somebody else says how many each has."""
        self._live: dict[PipeliningProtocol, Site] = {}
        self._none_left = asyncio.Event()

    async def open(
        self, host: Host, address: str, site: Site, permitted: Callable[[str], bool]
    ) -> Connection | Outcome:
        """A session ready for MAIL, or what its failing means; a `final` outcome ends the attempt.

        OSError when the trouble is local (LOCAL_TROUBLE). With OPPORTUNISTIC terms, and no credentials, a host whose
        STARTTLS fails is dialled once more and spoken to in clear, and at once in clear for BROKEN_SECONDS.
        """
        call = _Call(host, address, site, permitted)
        credentials = self._credentials.get(site.terms.name)
        if credentials is None:
            return await self._session(call, required=site.terms.tls in {Tls.ENCRYPT, Tls.VERIFY})
        try:
            return await self._authenticated(call, credentials)
        except CredentialsError as error:
            self._alert("credentials unusable", call, error=str(error))
            return Outcome(Verdict.DEFERRED, Scope.SITE, reply.NO_CREDENTIALS, final=True)

    def renew(self, contexts: NextHopContexts, credentials: Mapping[str, Credentials] | None = None) -> None:
        """From now on open with these; None: the same credentials, their tokens forgotten, as is all that was learnt.

        Connections that are open stay as they are.
        """
        self._contexts = contexts
        self._credentials = self._credentials if credentials is None else credentials
        self._broken.clear()
        self._alerted.clear()
        for each in self._credentials.values():
            each.forget()

    async def close(self, seconds: float) -> None:
        """Wait until the last connection is gone; what is left after `seconds` is cut. No token is fetched on."""
        for each in self._credentials.values():
            await each.close()
        for last in (seconds, 1.0):
            self._none_left.clear()
            if self._live:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(last):
                        await self._none_left.wait()
            for protocol in self._live:
                protocol.cut()

    # --- logging in -----------------------------------------------------------------------------------------------

    async def _authenticated(self, call: _Call, credentials: Credentials) -> Connection | Outcome:
        """A session logged in to, with a fresh token on a second one where the first was refused. CredentialsError."""
        secret = await credentials.secret()
        opened = await self._log_in(call, credentials, secret)
        if secret.token and isinstance(opened, Outcome) and opened.final and opened.reply.code == 535:
            credentials.drop(secret)
            if (fresh := await credentials.secret()) != secret:
                opened = await self._log_in(call, credentials, fresh)
        if isinstance(opened, Outcome) and opened.final:
            self._alert("login refused", call, reply=str(opened.reply))
        return opened

    async def _log_in(self, call: _Call, credentials: Credentials, secret: Secret) -> Connection | Outcome:
        connection = await self._session(call, required=call.site.terms.tls is not Tls.NONE)
        if isinstance(connection, Outcome):
            return connection
        mechanism = choose(connection.extensions.get("auth", ""), credentials.mechanism, secret)
        if mechanism is None:
            trouble: Outcome | None = login_missing(connection)
        else:
            trouble = await login(connection, mechanism, credentials.username, secret, self._timeouts.login)
        if trouble is None:
            return connection
        connection.close()
        return trouble

    # --- TLS ------------------------------------------------------------------------------------------------------

    async def _session(self, call: _Call, *, required: bool) -> Connection | Outcome:
        """A session that has been greeted, under TLS as the terms say and in clear only where it is not `required`."""
        connection = await self._greeted(call)
        if isinstance(connection, Outcome) or call.host.implicit_tls or call.site.terms.tls is Tls.NONE:
            return connection
        if "starttls" not in connection.extensions:
            return self._unencrypted(call, connection) if required else connection
        if not required and call.peer in self._broken:
            return connection
        trouble = await connection.secure(self._context(call.site), self._name(call.site))
        if trouble is None:
            return connection
        connection.abort("not secured")
        if required:
            return self._told(call, trouble)
        again = await self._greeted(call)
        if isinstance(again, Connection):
            # Only now it is known that TLS was the trouble, and not the host.
            self._broken.add(call.peer)
        return again

    def _unencrypted(self, call: _Call, connection: Connection) -> Outcome:
        connection.close()
        return self._told(call, connection.insecure(reply.tls_missing(call.label, "STARTTLS is not offered")))

    def _told(self, call: _Call, trouble: Outcome) -> Outcome:
        """The operator is told where it is the TLS that failed (4.7.4, 4.7.5), not the connection."""
        if trouble.reply.enhanced in {"4.7.4", "4.7.5"}:
            self._alert("TLS required and not to be had", call, reply=str(trouble.reply))
        return trouble

    def _context(self, site: Site) -> ssl.SSLContext:
        verify = site.terms.tls is Tls.VERIFY
        return self._contexts.verified if verify else self._contexts.any_certificate

    def _name(self, site: Site) -> str:
        """Said in EHLO."""
        return site.source.hostname or self._hostname

    # --- connecting -----------------------------------------------------------------------------------------------

    async def _greeted(self, call: _Call) -> Connection | Outcome:
        connection = await self._dial(call)
        if isinstance(connection, Outcome):
            return connection
        trouble = None
        if call.host.implicit_tls and (trouble := await connection.handshake(self._context(call.site))) is not None:
            trouble = self._told(call, trouble)
        trouble = trouble or await connection.greet(self._name(call.site))
        if trouble is None:
            return connection
        connection.abort("refused")
        return trouble

    async def _dial(self, call: _Call) -> Connection | Outcome:
        loop = asyncio.get_running_loop()
        source = _source(call.site, call.address)
        try:
            async with asyncio.timeout(self._timeouts.connect):
                # Whoever dials has a slot of the site: there is a place once those that were closed are gone.
                await self.places.take(call.site)
                protocol = None
                try:
                    transport, protocol = await loop.create_connection(
                        lambda: PipeliningProtocol(loop, self._gone),
                        call.address,
                        call.host.port,
                        local_addr=(source, 0) if source else None,
                    )
                finally:
                    if protocol is None or protocol.failure:
                        self.places.give_back(call.site)
        except OSError as error:
            return self._not_connected(call, source, error)
        if not protocol.failure:
            self._live[protocol] = call.site
            metrics.outbound_connections.inc()
        peer = transport.get_extra_info("peername")
        if peer is None or not call.permitted(peer[0]):
            protocol.fail("not permitted")
            return _unreachable(call, "lost, or not a permitted address")
        return Connection(protocol, call.host, call.address, self._timeouts, loop.time())

    def _not_connected(self, call: _Call, source: str, error: OSError) -> Outcome:
        """What an error of connecting means, unless it is local trouble: then it is raised again."""
        if source and error.errno in SOURCE_TROUBLE:
            self._alert("source address unusable", call, source=source, error=os.strerror(error.errno or 0))
            return Outcome(Verdict.DEFERRED, Scope.SITE, reply.SOURCE_UNUSABLE, final=True)
        if error.errno in LOCAL_TROUBLE and not _lacks_ipv6(error, call.address):
            raise error
        return _unreachable(call, os.strerror(error.errno) if error.errno else "no connection in time")

    def _alert(self, what: str, call: _Call, **facts: str) -> None:
        """Tell the operator, but not for each message: once in ALERT_SECONDS for a host of a route, else for the terms.

        Hosts of an MX set are strangers: they must not fill the log.
        """
        terms = call.site.terms
        key = (what, terms.name, str(call.host) if terms.trusted else "")
        if key not in self._alerted:
            self._alerted.add(key)
            log.alert(what, terms=terms.name, host=call.label, **facts)

    def _gone(self, protocol: SMTPProtocol) -> None:
        if isinstance(protocol, PipeliningProtocol) and protocol in self._live:
            self.places.give_back(self._live.pop(protocol))
            metrics.outbound_connections.dec()
        if not self._live:
            self._none_left.set()


def _source(site: Site, address: str) -> str:
    """Our address towards an address; empty: whichever the system takes."""
    return site.source.ipv6 if ":" in address else site.source.ipv4


def _unreachable(call: _Call, why: str) -> Outcome:
    verdict = ruling(GREETING, None)
    answer = reply.unreachable(call.label, why)
    return Outcome(verdict.verdict, verdict.scope, answer)


def _lacks_ipv6(error: OSError, address: str) -> bool:
    """Where IPv6 is switched off, no IPv6 address is reachable from here, but the host's next one may be."""
    return error.errno == errno.EADDRNOTAVAIL and ":" in address
