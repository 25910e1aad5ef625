"""The admin port: GET /metrics, /healthz, /readyz, on starlette and uvicorn inside the relay's own event loop.

Owns the HTTP server and the check of the Host header, which keeps web pages (DNS rebinding) away from a port bound to
loopback. Knows a `Backend` that says whether mail is taken and has the metrics. Started and stopped by service, or by
the supervisor of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Protocol

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_STOP_SECONDS = 2
_BACKLOG = 128


class Backend(Protocol):
    """What the admin port asks of the service."""

    def unready(self) -> str:
        """Why mail is not taken now; empty when it is."""

    async def metrics(self) -> CollectorRegistry:
        """The metrics as they are now."""


class Admin:
    """One HTTP server on one bound socket.

    Bound before it is started, so that a privileged port or one in use is known early. Each request costs O(metrics +
    messages in memory). Handlers are coroutines: starlette runs plain functions on threads, where the queue changes
    under them.
    """

    def __init__(self, bound: socket.socket, host: str, backend: Backend) -> None:
        """`host` is the address that was configured: it decides which Host headers are answered."""
        self._backend = backend
        self._socket = bound
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application(host),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
                limit_concurrency=64,
                backlog=_BACKLOG,
            )
        )
        # The process's signals are the commands' own.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that were bound."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Serve from now on; the port is open when this returns."""
        self._socket.listen(_BACKLOG)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="admin")

    async def close(self) -> None:
        """Stop; requests in flight get two seconds."""
        self._server.should_exit = True
        if self._task:
            await self._task
        self._socket.close()

    def _application(self, host: str) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self._metrics),
                Route("/healthz", _healthz),
                Route("/readyz", self._readyz),
            ],
            middleware=[Middleware(_KnownHost, bound_to=host)],
        )

    async def _readyz(self, _request: Request) -> Response:
        reason = self._backend.unready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def _metrics(self, request: Request) -> Response:
        """Prometheus text, or OpenMetrics where it is asked for."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await self._backend.metrics()), headers={"content-type": content_type})


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet, SO_REUSEADDR; OSError when it cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


async def _healthz(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


class _KnownHost:
    """Answers requests whose Host header names the address bound to, 421 to all others (RFC 9110 §15.5.20)."""

    def __init__(self, app: ASGIApp, bound_to: str) -> None:
        self._app = app
        self._bound_to = bound_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if scope["type"] == "http" and len(hosts) == 1 and answers_to(self._bound_to, hosts[0]):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("unknown host\n", status_code=421)(scope, receive, send)


def answers_to(bound_to: str, header: str) -> bool:
    """Whether a server bound to the address or name answers a Host header. A wildcard answers any address, no name."""
    host = _host_of(header)
    try:
        address = ipaddress.ip_address(bound_to)
    except ValueError:
        return host == bound_to.lower() or (bound_to.lower() == "localhost" and host in _LOOPBACK_NAMES)
    if address.is_loopback:
        return host in _LOOPBACK_NAMES or host == str(address)
    return _is_address(host) if address.is_unspecified else host == str(address)


def _host_of(header: str) -> str:
    """The name or address in `name`, `name:port`, `[address]:port`; lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
