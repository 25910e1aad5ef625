"""Answers kept for their time, questions shared."""

import asyncio
import collections

import pytest

from relayd.resolver.cache import Cache


class _Source:
    """Answers with the name and how often it was asked for; waits for `gate`."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self.seconds = seconds
        self.now = 0.0
        self.error: Exception | None = None

    async def ask(self, name: str) -> tuple[str, float]:
        self.asked[name] += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return f"{name}{self.asked[name]}", self.seconds

    def cache(self, size: int = 10) -> Cache[str]:
        return Cache(self.ask, size, lambda: self.now)


async def test_an_answer_is_kept_until_it_ends() -> None:
    source = _Source()
    cache = source.cache()
    assert await cache.get("a") == ("a1", 10.0)
    source.now = 9.0
    assert await cache.get("a") == ("a1", 1.0)
    source.now = 10.0
    assert await cache.get("a") == ("a2", 10.0)


async def test_an_answer_valid_for_no_time_is_not_kept() -> None:
    source = _Source(seconds=0.0)
    cache = source.cache()
    assert [await cache.get("a"), await cache.get("a")] == [("a1", 0.0), ("a2", 0.0)]
    assert len(cache) == 0


async def test_the_name_asked_for_longest_ago_goes_first() -> None:
    source = _Source()
    cache = source.cache(size=2)
    for name in ("a", "b", "a", "c"):
        await cache.get(name)
    assert len(cache) == 2
    for name in ("a", "c", "b"):
        await cache.get(name)
    assert source.asked == {"a": 1, "b": 2, "c": 1}


async def test_concurrent_questions_are_one() -> None:
    source = _Source()
    source.gate.clear()
    cache = source.cache()
    waiting = [asyncio.create_task(cache.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    source.gate.set()
    assert await asyncio.gather(*waiting) == [("a1", 10.0)] * 5


async def test_who_leaves_takes_nothing_from_who_stays() -> None:
    source = _Source()
    source.gate.clear()
    cache = source.cache()
    leaves, stays = (asyncio.create_task(cache.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    source.gate.set()
    assert await stays == ("a1", 10.0)


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    source = _Source()
    source.error = RuntimeError("bug")
    cache = source.cache()
    assert all(
        isinstance(result, RuntimeError)
        for result in await asyncio.gather(cache.get("a"), cache.get("a"), return_exceptions=True)
    )
    source.error = None
    assert await cache.get("a") == ("a2", 10.0)


async def test_settled_waits_for_what_is_asked() -> None:
    source = _Source()
    source.gate.clear()
    cache = source.cache()
    left = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    left.cancel()
    settled = asyncio.create_task(cache.settled())
    await asyncio.sleep(0)
    assert not settled.done()
    source.gate.set()
    await settled
    assert len(cache) == 1
