"""Places for connections: as many as a site may have, asked for each time."""

from __future__ import annotations

import asyncio

import pytest

from relayd.outbound.places import Places
from tests.unit.scheduler.entries import site

ONE, THREE = site("mx1", 1), site("mx3", 3)


async def is_waiting(task: asyncio.Task[None]) -> bool:
    """After it had every chance to end."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def test_a_place_is_free_when_one_is_given_back():
    places = Places()
    await places.take(ONE)
    await places.take(THREE)
    waiting = [asyncio.ensure_future(places.take(ONE)) for _ in range(2)]
    assert await is_waiting(waiting[0])
    places.give_back(ONE)
    assert not await is_waiting(waiting[0])
    assert await is_waiting(waiting[1])
    places.give_back(ONE)
    await waiting[1]
    places.give_back(ONE)
    places.give_back(THREE)
    assert (places._taken, dict(places._awaited)) == ({}, {})


async def test_there_may_be_more_of_them_or_fewer():
    places, most, counts = Places(), 1, []
    places.most = lambda _: most
    places.changed = lambda _, taken: counts.append(taken)
    await places.take(THREE)
    waiting = asyncio.ensure_future(places.take(THREE))
    assert await is_waiting(waiting)
    most = 2
    places.widen(THREE)
    await waiting
    most = 1
    places.give_back(THREE)
    waiting = asyncio.ensure_future(places.take(THREE))
    assert await is_waiting(waiting)
    places.give_back(THREE)
    await waiting
    assert counts == [1, 2, 1, 0, 1]


async def test_who_gives_up_takes_none_and_leaves_nothing():
    places = Places()
    await places.take(ONE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await places.take(ONE)
    places.give_back(ONE)
    assert (places._taken, dict(places._awaited)) == ({}, {})
    await places.take(ONE)
