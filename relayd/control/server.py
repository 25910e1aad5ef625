"""The control socket's server: answers requests of local commands while the service runs.

Owns the socket file in the spool directory (mode 0600, made anew at start: the caller holds the spool's lock, so what
is there is stale) and its connections. Errors are answers; a hostile line costs one answer. Knows a `Backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from relayd.control import protocol
from relayd.control.answers import sent
from relayd.control.protocol import Answer, Answered, Request, socket_address

_SECONDS = 30
"""For a request to arrive, and for its answer to be read."""

_MAX_CONNECTIONS = 32

T = TypeVar("T")

_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


class Backend(Protocol):
    """Who answers: one process, or the supervisor of several."""

    async def answer(self, request: Request) -> Answered:
        """What was asked for. RefusedError, StoreError."""


class Control:
    """The server. Each answer costs what its request does: `queue list` reads the whole queue, a page at a time."""

    def __init__(self, spool: Path, backend: Backend) -> None:
        self._spool = spool
        self._backend = backend
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. OSError when the socket cannot be made."""
        self._server = await asyncio.start_unix_server(
            self._converse, sock=_bind(self._spool), limit=protocol.MAX_REQUEST
        )

    async def close(self) -> None:
        """Stop listening, remove the file, end the conversations."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):  # on a failed disk it stays, and is no server to whoever tries it
            (self._spool / protocol.SOCKET).unlink()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > _MAX_CONNECTIONS:
                return
            while line := await _within(reader.readline()):
                writer.write(_encode(await self._answer(line)) + b"\n")
                await _within(writer.drain())
        except ValueError:  # readline's word for a line above its limit
            writer.write(_encode(Answer(ok=False, error="request too long")) + b"\n")
        except OSError:  # the command went away, or time is up: nobody is left to tell
            writer.transport.abort()
        except asyncio.CancelledError:
            # By `close`, and this was all there was to end: streams report a cancelled conversation as an error.
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = _decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            return Answer(ok=False, error=f"malformed request: {error}")
        return await sent(self._backend.answer(request), _encode)


async def _within(waited: Awaitable[T]) -> T:
    # Not wait_for: before Python 3.12 it loses a cancellation that meets the result.
    async with asyncio.timeout(_SECONDS):
        return await waited


def _bind(spool: Path) -> socket.socket:
    path = spool / protocol.SOCKET
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(spool) as address:
            bound.bind(address)
        path.chmod(0o600)
    except OSError:
        bound.close()
        raise
    return bound
