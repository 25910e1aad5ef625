"""The broker at work: replies in order, to workers that are there, and in time."""

from __future__ import annotations

import asyncio

import pytest

from relayd import clock
from relayd.outbound.brokerage import Brokerage
from relayd.scheduler import broker, shares
from relayd.scheduler.lease_messages import AT_ONCE, Grant, Pace, Recall, Reply, Share, Want
from tests.unit.scheduler.entries import site

MX, ONE = site("mx"), site("mx1", 1)


@pytest.fixture
async def brokerage():
    brokerage = Brokerage()
    yield brokerage
    brokerage.close()


async def heard(by: list[Reply], number: int) -> list[Reply]:
    """So many of a worker's replies, and then it has heard none."""
    async with asyncio.timeout(5):
        while len(by) < number:
            await asyncio.sleep(0.001)
    replies = [*by]
    by.clear()
    return replies


async def test_a_worker_is_told_after_its_own_call(brokerage):
    told: list[Reply] = []
    brokerage.join(0, told.extend)
    brokerage.receive(0, [Want(MX, 1)])
    brokerage.receive(0, [Want(MX, 2)])
    assert told == []
    assert await heard(told, 2) == [Grant(MX, 1), Grant(MX, 1)]


async def test_turns_and_shares_come_in_time(brokerage, monkeypatch):
    monkeypatch.setattr(broker, "TURN", 0.05)
    monkeypatch.setattr(shares, "SHORTEST_TERM", 0.05)
    paced = site("paced", 20, 1000.0)
    first: list[Reply] = []
    second: list[Reply] = []
    brokerage.join(0, first.extend)
    brokerage.join(1, second.extend)
    brokerage.receive(0, [Want(ONE, 1), Pace(paced)])
    assert [type(said) for said in await heard(first, 2)] == [Grant, Share]
    begun = clock.monotonic()
    brokerage.receive(1, [Want(ONE, 1), Pace(paced)])
    assert await heard(first, 1) == [Recall(ONE, 0)]
    (share,) = await heard(second, 1)
    assert isinstance(share, Share)
    assert clock.monotonic() - begun >= 0.04


async def test_what_concerns_a_worker_that_has_left_is_dropped(brokerage):
    gone: list[Reply] = []
    here: list[Reply] = []
    brokerage.join(0, gone.extend)
    brokerage.join(1, here.extend)
    with pytest.raises(ValueError, match="worker 1"):
        brokerage.join(1, here.extend)
    brokerage.receive(0, [Want(ONE, 1)])
    brokerage.receive(1, [Want(ONE, 1)])
    brokerage.leave(0)
    brokerage.receive(0, [Want(ONE, 1)])
    assert await heard(here, 1) == [Grant(ONE, 1)]
    assert gone == []
    brokerage.leave(1)
    brokerage.leave(1)
    assert brokerage.size <= 1, "and that is a timer"


async def test_much_is_told_in_parts(brokerage):
    parts: list[int] = []
    brokerage.join(0, lambda replies: parts.append(len(replies)))
    brokerage.receive(0, [Want(site(f"mx{number}"), 1) for number in range(2 * AT_ONCE + 1)])
    async with asyncio.timeout(5):
        while sum(parts) <= 2 * AT_ONCE:
            await asyncio.sleep(0)
    assert parts == [AT_ONCE, AT_ONCE, 1]
