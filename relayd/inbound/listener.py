"""The listeners: sockets, who is let in, the sessions they become, their deadlines and their end.

Owns every inbound session's task. `bind` may need root, `open` serves, `drain` ends. Made by service.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import socket
import termios
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from relayd import log, metrics
from relayd.auth.authenticator import Authenticator
from relayd.config.schema import Listener, ListenerKind, Settings
from relayd.inbound import sockets
from relayd.inbound.acceptor import Acceptor
from relayd.inbound.admission import Admission
from relayd.inbound.headcount import Headcount
from relayd.inbound.policy import Policy, client_address
from relayd.inbound.quotas import Quotas
from relayd.inbound.session import Session
from relayd.inbound.sockets import ListenerError
from relayd.inbound.terms import Terms, Timing
from relayd.smtp import reply
from relayd.smtp.reply import Reply
from relayd.spool.queue import Queue
from relayd.tls import Context

_STANDARD_TIMING = Timing()

_LOOK = 0.005
"""Seconds between looks whether the others that accept here have started."""

_NONE = bytes(4)
"""A C int of 0: so many octets wait to be read."""


class Endpoint(NamedTuple):
    """Where a listener takes mail."""

    kind: str
    host: str
    port: int


class Listeners:
    """All listeners of a process. Invariant: a connection counts from `admit` until its socket is closed."""

    def __init__(
        self,
        settings: Settings,
        tls_context: Context | None,
        queue: Queue,
        authenticator: Authenticator,
        timing: Timing = _STANDARD_TIMING,
    ) -> None:
        self._settings = settings
        self._tls_context = tls_context
        self._queue = queue
        self._authenticator = authenticator
        self._timing = timing
        self._policy = Policy(settings)
        self.quotas = Quotas(settings.quotas)
        self._share(Headcount.alone())
        self._sockets: list[tuple[Listener, socket.socket]] = []
        self._acceptors: list[Acceptor] = []
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._sweep_handle: asyncio.TimerHandle | None = None

    def bind(self) -> list[Endpoint]:
        """Take the addresses, before root is given up; connections are refused until `open`. ListenerError."""
        for listener in self._settings.listeners:
            if listener.kind is not ListenerKind.RELAY and self._tls_context is None:
                raise ListenerError(f"listener {listener.bind}: kind {listener.kind.value} needs [tls]")
        self._take(sockets.bind(self._settings.listeners))
        return self._endpoints()

    def adopt(self, shared: Sequence[sockets.Bound], headcount: Headcount) -> None:
        """Serve on these instead, which other processes accept from too."""
        self._take(shared)
        self._share(headcount)

    def _share(self, headcount: Headcount) -> None:
        self._headcount = headcount
        self._admission = Admission(self._settings.limits, self._policy, headcount)

    def _take(self, bound: Sequence[sockets.Bound]) -> None:
        self._sockets = [(self._settings.listeners[one.listener], one.socket) for one in bound]

    async def open(self) -> list[Endpoint]:
        """Serve; binds first where `bind` was not called. ListenerError."""
        if not self._sockets:
            self.bind()
        self._headcount.open()
        await self._company()
        for listener, sock in self._sockets:
            welcome = functools.partial(self._welcome, self._terms(listener))
            acceptor = Acceptor(sock, welcome, self._timing.accept_pause, self._headcount)
            acceptor.start()
            self._acceptors.append(acceptor)
        self._sweep()
        return self._endpoints()

    async def _company(self) -> None:
        """Wait for the others that start, as the first one there would get all clients that wait; but not for long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timing.company
        while self._headcount.awaits and loop.time() < until:  # noqa: ASYNC110  # it is processes that are waited for
            await asyncio.sleep(_LOOK)

    async def drain(self, seconds: float) -> None:
        """Listen no more; let open transactions end within `seconds`, then cut. A commit in progress completes."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
        self._headcount.shut()
        for session in self._sessions.values():
            session.drain()
        try:
            handshakes = min(seconds, self._timing.linger)
            await self._ended(handshakes)
            # Nothing is begun, and a client that stops there would hold everybody up for all of the time.
            self._cut({task: session for task, session in self._sessions.items() if session.shakes_hands})
            await self._ended(seconds - handshakes)
        finally:
            self._cut(self._sessions)
            await asyncio.gather(*self._sessions, return_exceptions=True)
            if self._sweep_handle:
                self._sweep_handle.cancel()
            self.quotas.tell()

    async def _ended(self, seconds: float) -> None:
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=seconds)

    @staticmethod
    def _cut(sessions: Mapping[asyncio.Task[None], Session]) -> None:
        for task, session in sessions.items():
            session.cut()
            task.cancel()

    # --- a connection's way -------------------------------------------------------------------------------------------

    def _welcome(self, terms: Terms, sock: socket.socket, peer: object) -> None:
        client = client_address(peer)
        encrypted = terms.implicit_tls
        refusal = self._admission.admit(client)
        if refusal:
            _turn_away(sock, None if encrypted else refusal)
            log.session_refused(client, refusal.text)
            return
        if not encrypted and _talks_already(sock):
            self._admission.release(client)
            _turn_away(sock, reply.TALKED_TOO_EARLY)
            log.session_refused(client, "talked before the greeting")
            return
        session = Session(terms, client)
        task = asyncio.get_running_loop().create_task(self._serve(session, sock, encrypted=encrypted))
        self._sessions[task] = session
        task.add_done_callback(self._gone)

    async def _serve(self, session: Session, sock: socket.socket, *, encrypted: bool) -> None:
        handshake = self._timing.handshake if encrypted else None
        context = self._tls_context if encrypted else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session, sock, ssl=context, ssl_handshake_timeout=handshake
            )
        except OSError as error:
            log.session_refused(session.client, f"TLS handshake: {reply.printable(str(error).encode())}")
            sock.close()
            return
        try:
            await session.run()
        except Exception:  # noqa: BLE001  # a session that breaks takes nobody with it
            log.bug("inbound session", client=session.client)
            metrics.bugs.inc()
            session.cut()

    def _gone(self, task: asyncio.Task[None]) -> None:
        session = self._sessions.pop(task)
        self._admission.release(session.client)
        for acceptor in self._acceptors:
            acceptor.look()

    def _sweep(self) -> None:
        """Expire sessions, tell of quotas. One timer for all of them: O(sessions) a tick, nothing for a command."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for session in self._sessions.values():
            session.expire(now)
        self.quotas.tell()
        self._sweep_handle = loop.call_later(self._timing.tick, self._sweep)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _terms(self, listener: Listener) -> Terms:
        return Terms(
            submission=listener.kind is not ListenerKind.RELAY,
            implicit_tls=listener.kind is ListenerKind.SUBMISSIONS,
            normalize_lf=listener.bare_lf == "normalize",
            hostname=self._settings.hostname,
            limits=self._settings.limits,
            timing=self._timing,
            tls_context=self._tls_context,
            policy=self._policy,
            quotas=self.quotas,
            queue=self._queue,
            authenticator=self._authenticator,
        )

    def _endpoints(self) -> list[Endpoint]:
        return [Endpoint(listener.kind.value, *sock.getsockname()[:2]) for listener, sock in self._sockets]


def _talks_already(sock: socket.socket) -> bool:
    """Whether the client sent something before the greeting (RFC 5321 §4.3.1). A read would raise for most."""
    return fcntl.ioctl(sock, termios.FIONREAD, _NONE) != _NONE


def _turn_away(sock: socket.socket, refusal: Reply | None) -> None:
    """Close, with a word where the client can read it. A full socket buffer is no reason to wait."""
    with contextlib.suppress(OSError):
        if refusal:
            sock.send(refusal.encode())
        sock.shutdown(socket.SHUT_WR)
    sock.close()
