"""The control socket's server: answers requests of local commands while the service runs.

Owns the socket file in the spool directory (mode 0600, made anew at start: the caller holds the spool's lock, so what
is there is stale) and its connections. Errors are answers; a hostile line costs one answer. Knows a `Backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from relayd import clock, log, metrics
from relayd.control import protocol
from relayd.control.protocol import (
    Answer,
    Done,
    QueueHold,
    QueueList,
    QueueShow,
    Request,
    Status,
    StatusQuery,
    socket_address,
)
from relayd.message import queue_id
from relayd.spool.records import Message
from relayd.spool.store import StoreError

_SECONDS = 30
"""For a request to arrive, and for its answer to be read."""

_MAX_CONNECTIONS = 32

T = TypeVar("T")

_decode = msgspec.json.Decoder(Request).decode
_encode = msgspec.json.Encoder().encode


class Backend(Protocol):
    """What the control socket asks of the service."""

    def pages(self) -> AsyncIterator[list[Message]]:
        """All live messages, a page at a time. StoreError."""

    async def message(self, queue_id: str) -> Message | None:
        """One live message. StoreError."""

    async def hold(self, queue_id: str, *, held: bool) -> bool:
        """Hold a message, or release it; False when there is none. StoreError."""

    def status(self) -> Status:
        """How the service is."""


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
            return await self._perform(_decode(line))
        except (msgspec.DecodeError, RecursionError) as error:
            return Answer(ok=False, error=f"malformed request: {error}")
        except StoreError as error:
            return Answer(ok=False, error=str(error))
        except Exception:  # noqa: BLE001  # a bug in an answer must not end the service
            metrics.bugs.inc()
            log.bug("control")
            return Answer(ok=False, error="internal error; the log has it")

    async def _perform(self, request: Request) -> Answer:
        match request:
            case QueueList():
                matches = protocol.Matches(request, clock.wall())
                async for page in self._backend.pages():
                    matches.look(page)
                return _result(matches.listing())
            case QueueShow(id=wanted):
                message = await self._backend.message(wanted) if queue_id.is_valid(wanted) else None
                if message is None:
                    return Answer(ok=False, error="no such message")
                return _result(protocol.view(message, clock.wall()))
            case QueueHold(id=wanted, held=held):
                if not (queue_id.is_valid(wanted) and await self._backend.hold(wanted, held=held)):
                    return Answer(ok=False, error="no such message")
                return _result(Done())
            case StatusQuery():
                return _result(self._backend.status())


def _result(value: msgspec.Struct) -> Answer:
    return Answer(ok=True, result=msgspec.Raw(_encode(value)))


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
