"""When a segment is sealed, and when what it still answers for goes to rest in the index.

Owns the task that looks after a shard's segments as long as the shard is open. Knows ages and numbers, not files:
`shard` writes and unlinks, `cold` moves. A failure here stops nothing: the segment stays, and all it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from relayd import clock, log, metrics
from relayd.spool.cold import Cold
from relayd.spool.ledger import Ledger, Segment
from relayd.spool.mover import Mover
from relayd.spool.store import StoreError

SEGMENT_MESSAGES = 10_000
"""Live messages for which a segment answers before it is sealed: they are in memory until then."""

SEGMENT_SECONDS = 60.0
"""Age at which a segment with live messages is sealed."""

SETTLE_SECONDS = 30.0
"""How long a sealed segment waits for its messages to be done before the rest goes into the index."""

SEGMENTS = 4
"""Segments above which the oldest does not wait for that."""

TICK = 1.0
"""Seconds between two looks at the segments."""

RETRY_SECONDS = 60.0
"""Seconds before a move is tried again after it failed."""


class _Shard(Protocol):
    """What the keeper sees of a shard."""

    shard: int
    idle: Callable[[str], bool]
    rest: Cold
    ledger: Ledger

    def rotate(self) -> None: ...

    def wake(self) -> None: ...


class Keeper:
    """Seals by age and number of messages, and moves the survivors of sealed segments, oldest first, one at a time."""

    def __init__(self, shard: _Shard) -> None:
        self._shard = shard
        self._mover = Mover(shard.rest, shard.shard)
        self._task: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()

    def start(self) -> None:
        """Begin to look after the shard."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop; a transaction under way ends by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def move_all(self) -> None:
        """Move every sealed segment now. StoreError."""
        while self._oldest() is not None:
            await self._move_oldest()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                await self._look()
            except StoreError as error:
                log.alert("segment not moved into the index", shard=self._shard.shard, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # noqa: BLE001  # whatever it is, the next look may do better
                metrics.bugs.inc()
                log.bug("spool.keeper", shard=self._shard.shard)
                await asyncio.sleep(RETRY_SECONDS)

    async def _look(self) -> None:
        if not self._shard.ledger.segments:
            return  # the first is being made
        newest = self._shard.ledger.segments[-1]
        aged = clock.monotonic() - newest.since >= SEGMENT_SECONDS
        if newest.live and (aged or len(newest.live) >= SEGMENT_MESSAGES):
            self._shard.rotate()
        while self._oldest_settled():
            await self._move_oldest()
        # A few freed megabytes go back to the file system.
        await self._shard.rest.call(lambda index: index.tidy(), writing=True)

    def _oldest(self) -> Segment | None:
        """The oldest sealed segment that still answers for something."""
        segments = self._shard.ledger.segments
        return next((segment for segment in segments if segment.live and segment is not segments[-1]), None)

    def _oldest_settled(self) -> bool:
        oldest, segments = self._oldest(), self._shard.ledger.segments
        if oldest is None:
            return False
        return len(segments) > SEGMENTS or clock.monotonic() - segments[-1].since >= SETTLE_SECONDS

    async def _move_oldest(self) -> None:
        async with self._moving:
            if (oldest := self._oldest()) is not None:
                await self._mover.move(oldest, self._shard.idle)
        self._shard.wake()
