"""An event loop whose time jumps to the next timer when nothing else is left to do: five days pass in seconds.

Sockets are real. Between jumps no time passes at all, however long the machine takes, so what happens in a test happens
at the same instants everywhere. Time stands still while a thread works for the loop, and as long as data may be on its
way through the kernel. Knows of relayd its two clocks, which `drive` makes follow, and the threads of its spool.

    loop = asyncio.Runner(loop_factory=VirtualLoop)
    async def test(clock): await clock.until(lambda: relay.empty, 600)
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from relayd import clock
from relayd.spool.threads import Threads

T = TypeVar("T")

PATIENCE = 0.0001
"""Real seconds in which nothing must arrive before time jumps; what is sent over loopback is there at once, but for a
machine that is busy."""

START = 1000.0
EPOCH = 1_800_000_000.0
"""Where the two clocks start, seconds: far enough from zero and from today to show who reads another clock."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` moves by jumps alone. A jump costs PATIENCE; everything else what it costs on asyncio's own loop."""

    def __init__(self) -> None:
        self._now = START
        self._awaited: dict[asyncio.Future[object], float] = {}
        super().__init__(_Selector(self))
        self._clock_resolution = 1e-6  # a nanosecond, as is usual, is lost in the sum with a year

    def time(self) -> float:
        """Virtual seconds, as `call_at` takes them."""
        return self._now

    def wall(self) -> float:
        """The same moment as seconds since the epoch."""
        return EPOCH + self._now - START

    def jump(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._now += seconds

    def patience(self) -> float | None:
        """Real seconds for which a thread may need the present; None: until it has ended."""
        left = max(self._awaited.values(), default=0.0) - time.monotonic()
        return None if left == math.inf else max(left, 0.0)

    def stand_still(self, future: asyncio.Future[T], seconds: float = math.inf) -> asyncio.Future[T]:
        """No jump before a thread has ended this future, or so many real seconds have gone by."""
        self._awaited[future] = time.monotonic() + seconds
        future.add_done_callback(self._awaited.pop)
        return future

    def run_in_executor(self, executor, func, *args):
        return self.stand_still(super().run_in_executor(executor, func, *args))

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # asyncio's signature
        """Without asyncio's limit, which Python 3.12 brought: time would jump to it."""
        await super().shutdown_default_executor()


class VirtualClock:
    """What a test does with the time. Made by `drive`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._loop.time() - START

    async def forward(self, seconds: float) -> None:
        """Let the time pass, with all that happens in it."""
        await asyncio.sleep(seconds)

    async def until(self, condition: Callable[[], T], seconds: float, step: float = 1.0) -> T:
        """The condition's first true value, looked at every `step`; a failed test `seconds` from now."""
        deadline = self._loop.time() + seconds
        while not (value := condition()):
            assert self._loop.time() < deadline, f"not within {seconds} virtual seconds: {condition}"
            await asyncio.sleep(step)
        return value


def drive(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """relayd's clocks follow the running loop, which is virtual."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    monkeypatch.setattr(clock, "monotonic", loop.time)
    monkeypatch.setattr(clock, "wall", loop.wall)
    call = Threads.call
    monkeypatch.setattr(Threads, "call", lambda self, work: loop.stand_still(call(self, work)))
    return VirtualClock(loop)


class _Selector(selectors.DefaultSelector):
    """Where the loop waits for the next timer, and here does not."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(self._loop.patience())
        if not events:
            time.sleep(PATIENCE)  # epoll counts in milliseconds
            events = super().select(0)
        if not events:
            self._loop.jump(timeout)
        return events
