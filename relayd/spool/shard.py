"""The embedded engine: one shard of the spool as a journal, with group commit on a thread of its own.

Owns the shard's directory, its lock and its writer thread; all but reading and writing happens on the event loop.
Knows nothing of delivery, memory or retries: `queue`, its only caller, decides what follows a StoreError.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from relayd import clock, log, metrics
from relayd.spool import journal, recovery
from relayd.spool.journal import Item
from relayd.spool.ledger import Ledger
from relayd.spool.lock import OwnerLock
from relayd.spool.records import Accepted, Message, Record
from relayd.spool.recovery import Replay
from relayd.spool.store import Recovered, StoreError
from relayd.spool.writer import Position, Writer, sync_directory

T = TypeVar("T")

SEGMENT_OCTETS = 64 * 1024**2
GROUP_OCTETS = 16 * 1024**2
"""A group takes no further batch above this, so that a burst of large bodies does not delay everybody's answer."""

CARRY_OCTETS = 1024**2
"""Octets of survivors carried forward with one group."""

TIDY_OCTETS = 1024**2
"""Size above which the open segment is replaced when nothing is live."""

SPARE_SEGMENTS = 4
"""Segments a journal may hold beyond twice its live octets before survivors are carried forward."""

TIDY_INTERVAL = 60.0
"""Seconds before unlinking is tried again after the disk refused it."""

CLOSE_SECONDS = 10.0


class _Batch(msgspec.Struct, eq=False):
    records: Sequence[Record]
    items: Sequence[Item]
    done: asyncio.Future[None] | None
    handed_over: float


class JournalStore:
    """A shard on a local disk; fulfils `store.Store`.

    Invariants: at most one job is with the writer thread, so groups are durable in the order of their hand-over, and
    what is carried forward is as of the journal's end. `messages` follows the disk and never runs ahead of it. Nothing
    is written behind a failed write: the next group begins a segment (I5). Whatever waits is handed over together, with
    no artificial delay: a lone batch costs one fdatasync, n concurrent ones share it. Costs O(records) per group.
    """

    def __init__(
        self,
        directory: Path,
        shard: int,
        *,
        segment_octets: int = SEGMENT_OCTETS,
        lock_seconds: float = 10.0,
    ) -> None:
        self.shard = shard
        self.epoch = 0
        self._directory = directory
        self._segment_octets = segment_octets
        self._lock_seconds = lock_seconds
        self._lock = OwnerLock(directory / "lock")
        self._ledger = Ledger()
        self._waiting: deque[_Batch] = deque()
        self._flight: list[_Batch] = []
        self._open = False
        self._busy = False
        self._quiet = asyncio.Event()
        self._sound = True
        """Whether the last write succeeded: after a failure nothing is written but what is asked for."""
        self._tidy_after = 0.0

    @property
    def messages(self) -> Mapping[str, Message]:
        """Live messages by id, as far as they are durable."""
        return self._ledger.messages

    @property
    def load(self) -> int:
        """Batches handed over and not yet durable."""
        return len(self._waiting) + len(self._flight)

    # --- opening and closing ------------------------------------------------------------------------------------

    async def open(self) -> Recovered:
        """Become the owner and recover: StoreLockedError, FormatError or OSError, and the mail is left alone."""
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._directory.name)
        try:
            await self._call(self._make_directories)
            await self._lock.acquire(self._lock_seconds)
            replay = await self._call(partial(recovery.recover, self._directory, self.shard))
            self._writer = await self._call(partial(self._begin, replay))
        except BaseException:
            # The thread may still be reading: the lock is not let go under it.
            self._executor.shutdown()
            self._lock.release()
            raise
        self._ledger = replay.ledger
        self._open = True
        self._job(self._writer.rotate, self._rotated)
        damage = [loss for loss in replay.losses if not loss.torn]
        for loss in damage:
            file = journal.segment_path(self._directory / "journal", loss.segment)
            log.quarantined(self.shard, str(file), loss.offset, loss.octets, loss.reason)
        torn = len(replay.losses) - len(damage)
        return Recovered(list(self.messages.values()), quarantined=len(damage), torn=torn)

    async def close(self) -> None:
        """Finish what was handed over, seal, release the lock; StoreError when the disk does not answer any more."""
        if not self._open:
            return
        self._open = False
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._quiet.wait()
                await self._call(self._writer.close)
        except TimeoutError as error:
            self._fail([*self._flight, *self._waiting], error)
            raise StoreError(f"{self._directory}: no answer from the disk") from error
        except OSError:
            # Without its footer the segment reads as after a crash: nothing is lost by that.
            pass
        finally:
            self._executor.shutdown(wait=False)
            self._lock.release()

    def _make_directories(self) -> None:
        self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._directory, self._directory / "journal", self._directory / "quarantine"):
            directory.mkdir(mode=0o700, exist_ok=True)
        # Also where they exist: a crash may have come between making and syncing.
        for directory in (self._directory, self._directory.parent):
            sync_directory(directory)

    def _begin(self, replay: Replay) -> Writer:
        self.epoch = self._lock.advance()
        segments = replay.ledger.segments
        return Writer(
            self._directory,
            number=segments[-1].number if segments else 0,
            sequence=replay.sequence,
            epoch=self.epoch,
            limit=self._segment_octets,
        )

    # --- commits ------------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Record]) -> asyncio.Future[None]:
        """Hand over at once; see `Store.commit`. O(1) and no copy of a body."""
        items = list(map(journal.encode, batch))
        done: asyncio.Future[None] = self._loop.create_future()
        if not self._open:
            done.set_exception(StoreError(f"{self._directory} is closed"))
            return done
        self._waiting.append(_Batch(batch, items, done, clock.monotonic()))
        if not self._busy:
            # At the end of this turn of the loop: what else is handed over in it shares the group.
            self._busy = True
            self._quiet.clear()
            self._loop.call_soon(self._next)
        return done

    def _next(self) -> None:
        """Give the writer thread its next job: what waits, and what keeps the directory small."""
        numbers = self._ledger.removable()
        if numbers and clock.monotonic() >= self._tidy_after:
            self._job(partial(self._writer.remove, numbers), partial(self._removed, numbers))
        elif group := [*self._carried(), *self._taken()]:
            self._flight = group
            items = [item for batch in group for item in batch.items]
            self._job(partial(self._writer.append, items), self._written)
        elif self._sound and not self.messages and self._ledger.segments[-1].octets > TIDY_OCTETS:
            self._job(self._writer.rotate, self._rotated)
        else:
            self._busy = False
            self._quiet.set()

    def _taken(self) -> list[_Batch]:
        """What waits, up to GROUP_OCTETS."""
        group: list[_Batch] = []
        octets = 0
        while self._waiting and octets < GROUP_OCTETS:
            batch = self._waiting.popleft()
            group.append(batch)
            for item in batch.items:
                octets += len(item.body)
        return group

    def _carried(self) -> list[_Batch]:
        """Survivors of the oldest segment when the journal is too large for what lives in it.

        They go first in a group, while nothing is in flight: the outcomes in their results are all that stand before.
        """
        ledger = self._ledger
        bound = 2 * ledger.live_octets + SPARE_SEGMENTS * self._segment_octets
        if not self._sound or ledger.octets <= bound or len(ledger.segments) < 2:
            return []
        records: Sequence[Accepted] = ledger.survivors(CARRY_OCTETS)
        items = [journal.encode(record) for record in records]
        return [_Batch(records, items, None, clock.monotonic())] if records else []

    def _written(self, job: asyncio.Future[Position]) -> None:
        group, self._flight = self._flight, []
        try:
            position = job.result()
        except OSError as error:
            self._fail(group, error)
        except Exception as error:  # noqa: BLE001  # whatever it is, nobody may wait for ever
            metrics.bugs.inc()
            log.bug("spool.writer", shard=self.shard)
            self._fail(group, error)
        else:
            self._apply(group, position)
        self._next()

    def _apply(self, group: list[_Batch], position: Position) -> None:
        self._sound = True
        metrics.commit_seconds.observe(clock.monotonic() - group[0].handed_over)
        segment = self._ledger.grow(position.segment, position.octets)
        for batch in group:
            for record, item in zip(batch.records, batch.items, strict=True):
                self._ledger.apply(record, item.octets, segment)
            if batch.done is not None and not batch.done.done():
                batch.done.set_result(None)

    def _fail(self, group: list[_Batch], error: Exception) -> None:
        self._sound = False
        metrics.spool_errors.inc()
        for batch in group:
            if batch.done is not None and not batch.done.done():
                batch.done.set_exception(StoreError(f"{self._directory}: {error}"))

    # --- housekeeping -------------------------------------------------------------------------------------------

    def _removed(self, numbers: list[int], job: asyncio.Future[None]) -> None:
        try:
            job.result()
        except OSError as error:
            log.alert("segment not removed", shard=self.shard, error=str(error))
            self._tidy_after = clock.monotonic() + TIDY_INTERVAL
        else:
            for number in numbers:
                self._ledger.remove(number)
        self._next()

    def _rotated(self, job: asyncio.Future[Position]) -> None:
        try:
            position = job.result()
        except OSError:
            # Nobody waits for it; the next commit begins a segment, or tells why not.
            self._sound = False
        else:
            self._ledger.grow(position.segment, position.octets)
        self._next()

    def _job(self, work: Callable[[], T], then: Callable[[asyncio.Future[T]], None]) -> None:
        self._busy = True
        self._quiet.clear()
        self._call(work).add_done_callback(then)

    def _call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._executor, work)
