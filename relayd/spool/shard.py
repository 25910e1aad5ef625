"""The embedded engine: one shard of the spool as a journal with group commit, and behind it an index for what waits.

Owns the shard's directory, its lock and its writer thread, and when a segment is sealed and gives its survivors to the
index (`cold`); all but reading and writing happens on the event loop. Knows nothing of delivery, budgets or retries:
`queue`, its only caller, decides what follows a StoreError.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from relayd import clock, log, metrics
from relayd.spool import journal, recovery, renewal
from relayd.spool.bodies import Bodies
from relayd.spool.cold import Cold
from relayd.spool.index import IndexDamagedError
from relayd.spool.journal import Item
from relayd.spool.keeper import Keeper
from relayd.spool.ledger import Ledger, Segment
from relayd.spool.lock import OwnerLock
from relayd.spool.records import Message, Record
from relayd.spool.recovery import Replay
from relayd.spool.store import Recovered, StoreError
from relayd.spool.threads import Threads
from relayd.spool.writer import Position, Writer, make_directories

T = TypeVar("T")

SEGMENT_OCTETS = 64 * 1024**2

GROUP_OCTETS = 16 * 1024**2
"""A group takes no further batch above this, so that a burst of large bodies does not delay everybody's answer."""

TIDY_OCTETS = 1024**2
"""Size above which the open segment is replaced when nothing is live."""

TIDY_INTERVAL = 60.0
"""Seconds before unlinking is tried again after the disk refused it."""

REMOVAL_PAUSE = 0.01
"""Seconds between two steps of removing a segment; none when the next one waits for the same."""

CLOSE_SECONDS = 10.0


class _Batch(msgspec.Struct, eq=False):
    records: Sequence[Record]
    items: Sequence[Item]
    done: asyncio.Future[None]
    handed_over: float


class JournalStore:
    """A shard on a local disk; fulfils `store.Store`.

    Invariants: at most one job is with the writer thread, so groups are durable in the order of their hand-over.
    `messages` follows the disk and never runs ahead of it. Nothing is written behind a failed write: the next group
    begins a segment (I5). Whatever waits is handed over together, with no artificial delay: a lone batch costs one
    fdatasync, n concurrent ones share it. Costs O(records) per group. A message is in memory at most until the segment
    of its last change has settled in the index, unless somebody holds it.
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
        self._thread = Threads(1, directory.name)
        self.ledger = Ledger()
        self.rest = Cold(directory, shard)
        self.bodies = Bodies(directory / "bodies", directory / "quarantine")
        self._keeper = Keeper(self)
        self.idle: Callable[[str], bool] = _nobody_holds
        self._waiting: deque[_Batch] = deque()
        self._flight: list[_Batch] = []
        self._open = False
        self._busy = False
        self._removing = False
        self._quiet = asyncio.Event()
        self._sound = True
        """Whether the last write succeeded: after a failure nothing is written but what is asked for."""
        self._tidy_after = 0.0
        self._rotation_due = False

    @property
    def messages(self) -> Mapping[str, Message]:
        """Live messages by id, as far as they are durable."""
        return self.ledger.messages

    @property
    def load(self) -> int:
        """Batches handed over and not yet durable."""
        return len(self._waiting) + len(self._flight)

    @property
    def behind(self) -> float:
        """Seconds for which the oldest of these has waited; 0.0 when idle."""
        oldest = self._flight or self._waiting
        return clock.monotonic() - oldest[0].handed_over if oldest else 0.0

    # --- opening and closing ------------------------------------------------------------------------------------

    async def open(self) -> Recovered:
        """Become the owner and recover: StoreLockedError, FormatError or OSError, and the mail is left alone."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._thread.call(partial(make_directories, self._directory))
            await self._lock.acquire(self._lock_seconds)
            taken, replay = await self._recovered()
            self.epoch = await self._thread.call(self._lock.advance)
            segments = replay.ledger.segments
            self._writer = Writer(
                self._directory,
                number=max(taken, segments[-1].number if segments else 0),
                sequence=replay.sequence,
                epoch=self.epoch,
                limit=self._segment_octets,
            )
            await self.bodies.sweep(self.rest, doubt=replay.doubt or renewal.was_renewed(self._directory))
        except BaseException:
            # The thread may still be reading: the lock is not let go under it.
            self._thread.join()
            self.rest.abandon()
            self._lock.release()
            raise
        self.ledger = replay.ledger
        for segment in self.ledger.segments:
            segment.since = clock.monotonic()
        self._open = True
        self._keeper.start()
        self._job(self._writer.rotate, self._rotated)
        damage = [loss for loss in replay.losses if not loss.torn]
        for loss in damage:
            file = journal.segment_path(self._directory / "journal", loss.segment)
            log.quarantined(self.shard, str(file), loss.offset, loss.octets, loss.reason)
        torn = len(replay.losses) - len(damage)
        return Recovered(list(self.messages.values()), quarantined=len(damage), torn=torn)

    async def _recovered(self) -> tuple[int, Replay]:
        """The newest segment the index has taken, and what the journal behind it says, with the index as adopted."""
        for opened in (self.rest.open, self.rest.renew):
            taken = await opened()
            recover = partial(recovery.recover, self._directory, self.shard, taken=taken, known=self.rest.known)
            try:
                replay = await self._thread.call(recover)
                await self.rest.adopt(replay.ledger)
            except IndexDamagedError as error:
                # A damaged page may be met only where it is needed.
                log.alert("index damaged", shard=self.shard, error=str(error))
            else:
                return taken, replay
        raise StoreError(f"{self._directory}: the index is damaged again as soon as it is made anew")

    async def close(self) -> None:
        """Finish what was handed over, seal, release the lock; StoreError when the disk does not answer any more."""
        if not self._open:
            return
        self._open = False
        await self._keeper.stop()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._quiet.wait()
                try:
                    await self._thread.call(self._writer.close)
                finally:
                    await self.rest.close()
        except TimeoutError as error:
            self._fail([*self._flight, *self._waiting], error)
            raise StoreError(f"{self._directory}: no answer from the disk") from error
        except (OSError, StoreError):
            # Without its footer the segment reads as after a crash: nothing is lost by that.
            pass
        finally:
            self._thread.close()
            self.bodies.close()
            self._lock.release()

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
            self._busy = True
            self._quiet.clear()
            self._soon()
        return done

    def _soon(self) -> None:
        """Begin the next group behind this turn of the loop: what else is handed over in it shares the group.

        And behind what is written at its end: the thread wants the interpreter as soon as it is woken (decision 0016).
        """
        self._loop.call_soon(self._loop.call_soon, self._next)

    def _next(self) -> None:
        """Give the writer thread its next job: what waits, and what keeps the directory small."""
        self._remove()
        if group := _taken(self._waiting):
            self._flight = group
            items = [item for batch in group for item in batch.items]
            self._job(partial(self._writer.append, items), self._written)
        elif self._sound and (self._rotation_due or _is_idle(self.ledger)):
            self._rotation_due = False
            self._job(self._writer.rotate, self._rotated)
        else:
            self._busy = False
            if not self._removing:
                self._quiet.set()

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
        self._soon()

    def _apply(self, group: list[_Batch], position: Position) -> None:
        self._sound = True
        now = clock.monotonic()
        metrics.commit_seconds.observe(now - group[0].handed_over)
        segment = self.ledger.grow(position.segment, position.octets, now)
        items = [item for batch in group for item in batch.items]
        places = journal.places(items, position.segment, position.offset)
        for batch in group:
            for record, place in zip(batch.records, places, strict=False):  # the places go on in the next batch
                self.ledger.apply(record, segment, place)
            if not batch.done.done():
                batch.done.set_result(None)

    def _fail(self, group: list[_Batch], error: Exception) -> None:
        self._sound = False
        metrics.spool_errors.inc()
        for batch in group:
            if not batch.done.done():
                batch.done.set_exception(StoreError(f"{self._directory}: {error}"))

    # --- housekeeping -------------------------------------------------------------------------------------------

    def _remove(self) -> None:
        """Remove the oldest segment, if nothing needs it: beside the commits, and giving way to them if it may."""
        removable = self.ledger.removable()
        if self._removing or not removable or clock.monotonic() < self._tidy_after:
            return
        self._removing = True
        self._quiet.clear()
        oldest, pause = removable[0], REMOVAL_PAUSE if len(removable) == 1 else 0.0
        remove = partial(self._writer.remove, oldest.number, keep=oldest.kept, pause=pause)
        self.bodies.call(remove).add_done_callback(partial(self._removed, oldest))

    def _removed(self, segment: Segment, job: asyncio.Future[None]) -> None:
        self._removing = False
        try:
            job.result()
        except OSError as error:
            log.alert("segment not removed", shard=self.shard, error=str(error))
            self._tidy_after = clock.monotonic() + TIDY_INTERVAL
        else:
            self.ledger.remove(segment)
        self.wake()

    def _rotated(self, job: asyncio.Future[Position]) -> None:
        try:
            position = job.result()
        except OSError:
            # Nobody waits for it; the next commit begins a segment, or tells why not.
            self._sound = False
        else:
            self.ledger.grow(position.segment, position.octets, clock.monotonic())
        self._next()

    def rotate(self) -> None:
        """Seal the newest segment soon, and begin another."""
        self._rotation_due = True
        self.wake()

    def wake(self) -> None:
        """Look for something to do, unless that happens anyway."""
        if not self._busy:
            self._next()

    async def seal(self) -> None:
        """Let everything go to rest that may; see `Store.seal`."""
        self.rotate()
        await self._quiet.wait()
        await self._keeper.move_all()
        await self._quiet.wait()

    # --- the writer thread --------------------------------------------------------------------------------------

    def _job(self, work: Callable[[], T], then: Callable[[asyncio.Future[T]], None]) -> None:
        self._busy = True
        self._quiet.clear()
        self._thread.call(work).add_done_callback(then)


def _nobody_holds(_name: str) -> bool:
    return True


def _taken(waiting: deque[_Batch]) -> list[_Batch]:
    """What waits, up to GROUP_OCTETS, taken from it."""
    group: list[_Batch] = []
    octets = 0
    while waiting and octets < GROUP_OCTETS:
        batch = waiting.popleft()
        group.append(batch)
        for item in batch.items:
            octets += len(item.body)
    return group


def _is_idle(ledger: Ledger) -> bool:
    """Whether the journal answers for nothing, and takes more than it needs for that."""
    return ledger.segments[-1].octets > TIDY_OCTETS and not any(segment.live for segment in ledger.segments)
