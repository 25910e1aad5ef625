"""The place of one worker: the process that is in it now, and those that follow it.

Owns the succession, the waits in it, and the totals of processes that have ended. Knows nothing of other places. Made
by supervisor, which is the `Desk`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Protocol, TypeVar

import msgspec

from relayd import clock, log, metrics
from relayd.control.channel import ChannelError
from relayd.control.messages import Note, Question, Report, Setup
from relayd.control.protocol import RefusedError, Status
from relayd.control.snapshot import Family
from relayd.supervisor import merging
from relayd.supervisor.failure import WorkerFailedError
from relayd.supervisor.worker_process import WorkerProcess

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a worker that has died again is started again: doubled each time. The first time there are none."""

STEADY_SECONDS = 60.0
"""A worker that lived as long is a first one again."""

T = TypeVar("T")


class Desk(Protocol):
    """Where all places come together."""

    def setup(self, number: int) -> Setup:
        """What the next process of a place is to be told."""

    def begun(self, sender: Place) -> None:
        """A process is in the place."""

    def ended(self, sender: Place) -> None:
        """It is there no more."""

    def told(self, sender: Place, note: Note) -> None:
        """A worker's note."""


class Place:
    """Filled by `keep`, which is one task, until `stop`.

    first: done when the first process takes mail; WorkerFailedError or OSError when it cannot. Invariant: at most one
    process at a time, as it owns the shards of the place.
    """

    def __init__(self, number: int, desk: Desk) -> None:
        self.number = number
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk = desk
        self._process: WorkerProcess | None = None
        self._totals: list[Family] = []
        self._filled = False
        """Whether a process ever took mail: a relay that has served is not ended by one that cannot be started."""
        self._stopping = ""
        self._ready = asyncio.Event()
        self._hurry = asyncio.Event()

    # --- one process after the other ----------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Start a process, and another whenever one ends, until told to stop, or when the very first one fails."""
        pause = 0.0
        while not self._stopping:
            began = clock.monotonic()
            try:
                unasked = await self._fill()
            except (OSError, WorkerFailedError) as error:
                if self._stopping:
                    return
                if not self._filled:
                    self._give_up(error)
                    return
                log.alert("worker not started", worker=self.number, error=str(error))
                unasked = True
            if clock.monotonic() - began >= STEADY_SECONDS or not unasked:
                pause = 0.0
            if unasked and not self._stopping:
                metrics.worker_restarts.inc()
                await self._rest(pause)
                pause = min(max(FIRST_PAUSE, pause * 2), LONGEST_PAUSE)

    async def _fill(self) -> bool:
        """One process, from start to end; whether it ended unasked. OSError, WorkerFailedError: it never took mail."""
        process = await WorkerProcess.start(self._desk.setup(self.number), self)
        self._process = process
        self._desk.begun(self)
        if self._stopping:
            process.drain(self._stopping)
        try:
            status = await process.wait()
        finally:
            self._desk.ended(self)
        self._process = None
        self._ready.clear()
        if process.report:
            self._totals = merging.added([self._totals, merging.lasting(process.report.families)])
        if process.asked_to_end:
            return False
        if process.report is None:
            raise _failure(self.number, process, status)
        log.worker_died(self.number, process.pid, status)
        return True

    def _give_up(self, error: Exception) -> None:
        if not self.first.done():
            self.first.set_exception(error)

    async def _rest(self, seconds: float) -> None:
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def roll(self, reason: str) -> None:
        """Replace the process; returns when the next one takes mail."""
        if process := self._process:
            process.drain(reason)
            await process.ended.wait()
        await self._ready.wait()

    def stop(self, reason: str) -> None:
        """Let the process drain; `keep` ends with it."""
        self._stopping = reason
        self.hurry()
        if self._process:
            self._process.drain(reason)

    def hurry(self) -> None:
        """Wait no longer to start a process, where one is waited to be started."""
        self._hurry.set()

    def cut(self) -> None:
        """Let the process end now."""
        if self._process:
            self._process.cut()

    # --- the process in it --------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status | None:
        """As it was a second ago; None while no process takes mail."""
        return self._process.report.status if self._process and self._process.report else None

    @property
    def silent(self) -> bool:
        """Whether there is a process that does not answer."""
        return self.status is not None and self._process is not None and self._process.silent

    def families(self) -> list[Family]:
        """Totals of all processes there were, and all metrics of the one there is, as it last reported."""
        report = self._process.report if self._process else None
        return merging.added([merging.labelled(report.families, str(self.number)) if report else [], self._totals])

    async def refresh(self) -> None:
        """Have the process report now, if there is one that takes mail and answers; within two seconds."""
        if self._process and self.status and not self.silent:
            await self._process.refresh()

    async def ask(self, question: Question, kind: type[T], seconds: float) -> T:
        """The answer of its process; RefusedError says why there is none."""
        if self._process is None or self.status is None:
            raise RefusedError(f"worker {self.number} is restarting; try again")
        try:
            return await self._process.ask(question, kind, seconds)
        except ChannelError as error:
            raise RefusedError(f"worker {self.number}: {error}") from None

    def tell(self, note: Note) -> None:
        """A note for its process, if there is one."""
        if self._process:
            self._process.tell(note)

    # --- what its process says ----------------------------------------------------------------------------------------

    async def answer(self, question: Question) -> msgspec.Struct:
        """Workers have nothing to ask. RefusedError."""
        raise RefusedError(f"worker {self.number}: not for a supervisor: {type(question).__name__}")

    def told(self, note: Note) -> None:
        """The first report of a process says that it takes mail."""
        if isinstance(note, Report):
            self._filled = True
            self._ready.set()
            if not self.first.done():
                self.first.set_result(None)
        self._desk.told(self, note)


def _failure(number: int, process: WorkerProcess, status: int) -> WorkerFailedError:
    if process.failure:
        return WorkerFailedError(process.failure.reason, process.failure.code)
    return WorkerFailedError(f"worker {number} ended with status {status} before it took mail", os.EX_SOFTWARE)
