"""Answers to questions about the queue and the service, from the process that holds them.

Owns what each request means; the control socket asks where one process serves, the supervisor over its channel where
several do. Knows a `Source`, never the service behind it, and nothing of how answers travel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec

from relayd import clock, log, metrics
from relayd.control import protocol
from relayd.control.protocol import (
    Answer,
    Answered,
    Done,
    QueueHold,
    QueueList,
    QueueShow,
    RefusedError,
    Request,
    Status,
    StatusQuery,
)
from relayd.message import queue_id
from relayd.spool.records import Message
from relayd.spool.store import StoreError

NO_SUCH_MESSAGE = "no such message"


class Source(Protocol):
    """What answers are made from."""

    def pages(self) -> AsyncIterator[list[Message]]:
        """All live messages, a page at a time. StoreError."""

    async def message(self, queue_id: str) -> Message | None:
        """One live message. StoreError."""

    async def hold(self, queue_id: str, *, held: bool) -> bool:
        """Hold a message, or release it; False when there is none. StoreError."""

    def status(self) -> Status:
        """How the service is."""


class Answers:
    """Each costs what its request does: `queue list` reads the whole queue, a page at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def answer(self, request: Request) -> Answered:
        """What was asked for. RefusedError, StoreError."""
        match request:
            case QueueList():
                matches = protocol.Matches(request, clock.wall())
                async for page in self._source.pages():
                    matches.look(page)
                return matches.listing()
            case QueueShow(id=wanted):
                message = await self._source.message(wanted) if queue_id.is_valid(wanted) else None
                if message is None:
                    raise RefusedError(NO_SUCH_MESSAGE)
                return protocol.view(message, clock.wall())
            case QueueHold(id=wanted, held=held):
                if not (queue_id.is_valid(wanted) and await self._source.hold(wanted, held=held)):
                    raise RefusedError(NO_SUCH_MESSAGE)
                return Done()
            case StatusQuery():
                return self._source.status()


async def sent(result: Awaitable[msgspec.Struct], encode: Callable[[object], bytes]) -> Answer:
    """The result as it is sent, or why there is none. A bug is logged and counted, and ends nothing."""
    try:
        return Answer(ok=True, result=msgspec.Raw(encode(await result)))
    except (RefusedError, StoreError) as error:
        return Answer(ok=False, error=str(error))
    except Exception:  # noqa: BLE001  # a bug in an answer must not end the service
        metrics.bugs.inc()
        log.bug("control")
        return Answer(ok=False, error="internal error; the log has it")
