"""The machine's broker at work: what workers say goes in, what they are told comes out, in time.

Owns the broker and its timer. Knows no processes: a worker is a number and a callable. Whoever starts workers makes it,
and hands over what arrives on their channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from relayd import clock
from relayd.scheduler.broker import Broker, Replies
from relayd.scheduler.lease_messages import AT_ONCE, Reply, Request

Tell = Callable[[Sequence[Reply]], None]
"""Sends to a worker, or drops what it is given where the worker has ended; returns at once."""


class Brokerage:
    """Workers by number. What one is told is handed over in order, and never within its own call: see `_deliver`."""

    def __init__(self) -> None:
        self._broker = Broker()
        self._workers: dict[int, Tell] = {}
        self._outgoing: dict[int, list[Reply]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Things remembered of sites."""
        return self._broker.size

    def join(self, worker: int, tell: Tell) -> None:
        """A worker has started. ValueError when the last one of that number has not left."""
        if worker in self._workers:
            raise ValueError(f"worker {worker} is here already")
        self._workers[worker] = tell

    def leave(self, worker: int) -> None:
        """It has ended, or its channel has: what it held is free."""
        if self._workers.pop(worker, None) is not None:
            self._outgoing.pop(worker, None)
            self._dispatch(self._broker.gone(worker, clock.monotonic()))

    def receive(self, worker: int, requests: Sequence[Request]) -> None:
        """What a worker says. What comes from one that has left is dropped."""
        if worker in self._workers:
            self._dispatch(self._broker.receive(worker, requests, clock.monotonic()))

    def close(self) -> None:
        """No more timers."""
        self._workers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dispatch(self, replies: Replies) -> None:
        for worker, reply in replies:
            if worker not in self._outgoing:
                self._outgoing[worker] = []
                asyncio.get_running_loop().call_soon(self._deliver, worker)
            self._outgoing[worker].append(reply)
        self._wake_for_next()

    def _deliver(self, worker: int) -> None:
        """Later than the call that caused it: a worker that is told something may have something to say at once."""
        replies = self._outgoing.pop(worker, [])
        for start in range(0, len(replies), AT_ONCE):
            if worker in self._workers:
                self._workers[worker](replies[start : start + AT_ONCE])

    def _wake_for_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._broker.next
        if due is not None and self._workers:
            # uvloop counts in milliseconds and may wake up to one early.
            delay = max(0.0, due - clock.monotonic()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self._advance)

    def _advance(self) -> None:
        self._timer = None
        self._dispatch(self._broker.advance(clock.monotonic()))
