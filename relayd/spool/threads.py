"""Threads for what blocks: work in, futures out, in order, and little between them.

Knows nothing of what they do. Made by whoever has such work: a shard's journal, its index, its bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """So many threads, begun with the first piece of work, which is taken up in the order of `call`.

    A third of what ThreadPoolExecutor costs behind run_in_executor (14 instead of 39 µs, 18,000 instead of 113,000
    instructions), and each group of commits pays it. Daemons: a disk that does not answer keeps no process alive.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: SimpleQueue[tuple[Callable[[], object], asyncio.Future[object]] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._closed = False

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have a thread do it: what it returns or raises. A caller that is cancelled changes nothing of that.

        RuntimeError when closed, or when the system starts no thread.
        """
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        if not self._threads:
            self._start()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work.put((work, done))  # type: ignore[arg-type]  # its result is what `work` returns
        return done

    def close(self) -> None:
        """Take no more; the threads end behind what they were given."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._work.put(None)

    def join(self) -> None:
        """Close, and wait for that end. Blocking."""
        self.close()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for _ in range(self._count):
            thread = Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            work, done = given
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001  # whoever called sees it
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                done.get_loop().call_soon_threadsafe(_conclude, done, result, error)
            # Until there is more to do, nothing of it stays in memory.
            del given, work, done, result, error


def _conclude(done: asyncio.Future[object], result: object, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
