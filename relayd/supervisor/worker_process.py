"""One worker process as its supervisor sees it, from start to end: what it is told and asked, what it reported last.

Owns the process and the channel. Knows nothing of its predecessors or of other workers. Made by `place`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import TypeVar

import msgspec

from relayd import clock, log
from relayd.control.channel import Channel, ChannelError, Peer
from relayd.control.messages import (
    Cut,
    Drain,
    LeasesGranted,
    Note,
    Question,
    QuotasUsed,
    Report,
    ReportQuery,
    Setup,
    StartFailed,
)
from relayd.control.protocol import RefusedError

STOP_SECONDS = 27.5
"""What a worker gets to drain and to close before it is killed; it cuts what it carries after 25 s."""

CUT_SECONDS = 2.0
"""The same for one that is told to end now, or that has closed its channel."""

POLL_SECONDS = 1.0
ANSWER_SECONDS = 2.0
"""For a report; a worker that takes longer is not answering."""

HUNG_SECONDS = 60.0
"""A worker that has not answered for so long is killed: another one recovers its shards and serves its clients."""

T = TypeVar("T")


class WorkerProcess:
    """Made by `start`; `wait` is to be called once, by its owner. `Peer` of its channel."""

    def __init__(self, process: asyncio.subprocess.Process, owner: Peer) -> None:
        self.pid = process.pid
        self.asked_to_end = False
        self.failure: StartFailed | None = None
        self.report: Report | None = None
        """The last one; None until mail is taken."""
        self.ended = asyncio.Event()
        self._process = process
        self._owner = owner
        self._heard = clock.monotonic()
        self._channel: Channel
        self._killing: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, setup: Setup, owner: Peer) -> WorkerProcess:
        """A process with this setup; `owner` gets its questions and notes. OSError, also where this user may not."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *_command(theirs.fileno()),
                    pass_fds=(theirs.fileno(), setup.headcount, *(descriptor for _, descriptor in setup.sockets)),
                    stdin=asyncio.subprocess.DEVNULL,
                )
        except OSError:
            ours.close()
            raise
        self = cls(process, owner)
        self._channel = await Channel.open(ours, self)
        self._channel.tell(setup)
        return self

    async def wait(self) -> int:
        """Its status, negative for a signal, once it has ended and its last words were taken."""
        watching = asyncio.create_task(self._watch(), name=f"worker {self.pid}")
        try:
            status = await self._process.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_SECONDS):
                    await self._channel.closed.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            if self._killing:
                self._killing.cancel()
            await self._channel.close()
            self.ended.set()
        return status

    async def _watch(self) -> None:
        """Ask for reports; a process that gives none, or closed its channel without an end, can no longer be led."""
        while not self._channel.closed.is_set():
            if self.report:
                await self.refresh()
                if clock.monotonic() - self._heard > HUNG_SECONDS:
                    self._kill("worker killed, as it does not answer")
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._channel.closed.wait()
        self._kill_within(CUT_SECONDS)

    # --- what it is told and asked ------------------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """Tell it to finish and end."""
        self.asked_to_end = True
        self._channel.tell(Drain(reason))
        if self.report is None:  # it may be loading the program still, and then nothing is lost by the signal
            self._signal(signal.SIGTERM)
        self._kill_within(STOP_SECONDS)

    def cut(self) -> None:
        """Tell it to end now."""
        self.asked_to_end = True
        self._channel.tell(Cut())
        self._kill_within(CUT_SECONDS)

    def tell(self, note: Note) -> None:
        """A note, lost on one that is hung: but not what it leases, nor what accounts have used, which are few."""
        self._channel.tell(note, surely=isinstance(note, LeasesGranted | QuotasUsed))

    async def ask(self, question: Question, kind: type[T], seconds: float) -> T:
        """Its answer. ChannelError, RefusedError."""
        return await self._channel.ask(question, kind, seconds)

    async def refresh(self) -> None:
        """A new report, unless it does not answer."""
        with contextlib.suppress(ChannelError, RefusedError):
            self._take(await self._channel.ask(ReportQuery(), Report, ANSWER_SECONDS))

    @property
    def silent(self) -> bool:
        """Whether it has not answered for so long that it must be hung."""
        return clock.monotonic() - self._heard > POLL_SECONDS + ANSWER_SECONDS

    def _take(self, report: Report) -> None:
        self.report = report
        self._heard = clock.monotonic()

    def _kill_within(self, seconds: float) -> None:
        """It may be hung, or its disk: it ends."""
        if self._killing:
            self._killing.cancel()
        self._killing = asyncio.get_running_loop().call_later(seconds, self._kill, "worker killed, as it does not end")

    def _kill(self, why: str) -> None:
        log.alert(why, pid=self.pid)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    # --- what it says -------------------------------------------------------------------------------------------------

    async def answer(self, question: Question) -> msgspec.Struct:
        """The owner's."""
        return await self._owner.answer(question)

    def told(self, note: Note) -> None:
        """Keep what concerns this process; its owner hears of everything."""
        match note:
            case Report():
                self._take(note)
            case StartFailed():
                self.failure = note
        self._owner.told(note)


def _command(channel: int) -> list[str]:
    """As safe as we were started ourselves: `-m` alone would look for the program in the working directory first."""
    started_as_module = sys.modules["__main__"].__spec__ is not None
    safely = [] if started_as_module else ["-P"]
    return [sys.executable, *safely, "-m", "relayd", "worker", "--channel", str(channel)]
