"""What outbound reads of queued messages: the body for an attempt, the header for a notification.

Owns what becomes of a body that cannot be read: an outcome, never an exception, as the message is kept. The dispatcher
calls it.
"""

from __future__ import annotations

import asyncio

from relayd import log, metrics
from relayd.message import dsn
from relayd.spool.bodies import Reading
from relayd.spool.bodyfile import BodyError
from relayd.spool.queue import Queue
from relayd.spool.records import Message
from relayd.spool.store import StoreError

_TROUBLE = (BodyError, StoreError, OSError)


class Contents:
    """Bodies of live messages, from memory or disk. O(1) where they are in memory."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def body(self, message: Message) -> bytes | Reading | None:
        """The body, to be closed where it is a Reading; None, and an alert, when it cannot be read."""
        if isinstance(message.body, bytes):
            return message.body
        try:
            return await self._queue.body(message)
        except _TROUBLE as error:
            log.alert("body not read", id=message.envelope.id, error=str(error))
        except Exception:  # noqa: BLE001  # one message's trouble: it waits, and is not forgotten (I9)
            log.bug("reading a body", id=message.envelope.id)
            metrics.bugs.inc()
        return None

    async def header(self, message: Message) -> bytes:
        """What a notification returns of a message.

        Whatever happens here, the outcomes are still to be recorded: it does not raise, cancelled or not.
        """
        try:
            body = await self._queue.body(message)
            if isinstance(body, bytes):
                return dsn.header_of(body)
            try:
                return await body.header()
            finally:
                body.close()
        except (*_TROUBLE, asyncio.CancelledError) as error:
            log.alert("header not read", id=message.envelope.id, error=str(error))
        except Exception:  # noqa: BLE001  # as above
            log.bug("reading a header", id=message.envelope.id)
            metrics.bugs.inc()
        return b""
