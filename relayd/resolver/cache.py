"""Answers kept while they are valid, and one question at a time for each name.

Knows nothing of the DNS: what is asked for is a function. `client` has one for mail hosts and one for addresses.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """The `size` names asked for last, each with its answer and when that ends.

    Invariants: a name is being asked for at most once at any time; who waits for it may go without the others
    noticing; an answer that is valid for 0 seconds is given to those who wait and not kept. Cost: O(1), and one task
    for a name that is not known.
    """

    def __init__(self, ask: Callable[[str], Awaitable[tuple[T, float]]], size: int, now: Callable[[], float]) -> None:
        """`ask`: the answer and the seconds it is valid; its exceptions reach all who wait."""
        self._ask = ask
        self._size = size
        self._now = now
        self._kept: OrderedDict[str, tuple[T, float]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[tuple[T, float]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, name: str) -> tuple[T, float]:
        """The answer and the seconds it is still valid."""
        kept = self._kept.get(name)
        if kept is not None and (left := kept[1] - self._now()) > 0:
            self._kept.move_to_end(name)
            return kept[0], left
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._fill(name), name=f"resolve {name}")
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Wait for the questions under way; the caller has seen to it that they end."""
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _fill(self, name: str) -> tuple[T, float]:
        try:
            answer, seconds = await self._ask(name)
        finally:
            del self._asking[name]
        self._kept.pop(name, None)
        if seconds > 0:
            self._kept[name] = (answer, self._now() + seconds)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return answer, seconds
