"""The feed over the memory fake: what is due comes into memory in time, and no more of it than can soon be tried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import pytest

from relayd import clock
from relayd.message.site import Way
from relayd.outbound import feed
from relayd.outbound.feed import Feed
from relayd.scheduler.entry import Entry
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp.address import route_key
from relayd.spool.memory import Memory
from relayd.spool.queue import Queue
from relayd.spool.records import Message, Result, State
from tests.fakes.mail import accepted, name, result, settled
from tests.fakes.memory_store import MemoryStore


class Fed:
    """A queue, a scheduler, and the feed between them; `added` has what was brought in, in order."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.queue = Queue([self.store], Memory(10**6))
        self.queue.added = lambda _message: None
        self.scheduler = Scheduler()
        self.added: list[str] = []
        self.feed = Feed(self.queue, self.scheduler, self.add)
        self.queue.dismiss = self.feed.dismiss

    def add(self, message: Message, woken: Collection[str] = ()) -> None:
        self.added.append(message.envelope.id)
        now = clock.monotonic()
        for recipient, address in enumerate(message.envelope.recipients):
            last = message.results[recipient]
            due = 0.0 if last is None else now + last.due - clock.wall()
            self.scheduler.add(Entry(message.envelope, Way(route_key(address)), (recipient,), 0, due), now)

    async def at_rest(self, *numbers: int, due: float = 0.0, account: str = "user:alice") -> None:
        for number in numbers:
            await self.store.commit([accepted(number, account=account)])
            await self.store.commit([settled(number, Result(0, State.DEFERRED, 1, 0.0, due, result().reply))])
        await self.store.seal()

    @property
    def in_scheduler(self) -> int:
        return sum(self.scheduler.counts().values())


@pytest.fixture
async def fed(monkeypatch) -> AsyncIterator[Fed]:
    monkeypatch.setattr(feed, "INTERVAL", 0.002)
    monkeypatch.setattr(feed, "TROUBLE_INTERVAL", 0.002)
    made = Fed()
    await made.queue.open()
    yield made
    await made.feed.stop()
    await made.queue.close()


async def test_what_is_due_within_the_horizon_comes_in_and_nothing_else(fed, eventually):
    now = clock.wall()
    await fed.at_rest(1, due=now - 5)
    await fed.at_rest(2, due=now + feed.HORIZON / 2)
    await fed.at_rest(3, due=now + feed.HORIZON * 2)
    await fed.feed.start()
    await eventually(lambda: len(fed.added) == 2)
    assert fed.added == [name(1), name(2)]
    assert fed.queue.resting == 1
    assert fed.in_scheduler == 2


async def test_a_full_lane_takes_no_more_until_it_has_room(fed, eventually, monkeypatch):
    monkeypatch.setattr(feed, "LANE", 3)
    monkeypatch.setattr(feed, "EACH", 2)
    await fed.at_rest(*range(1, 11))
    await fed.feed.start()
    # What was asked for while there was room is brought in whole.
    await eventually(lambda: len(fed.added) >= 3)
    assert len(fed.added) == 4
    fed.scheduler.recall(fed.added[0])
    fed.scheduler.recall(fed.added[1])
    await eventually(lambda: len(fed.added) == 6)
    assert fed.added == [name(number) for number in range(1, 7)]


async def test_with_enough_in_memory_only_who_has_nothing_there_comes_in(fed, eventually, monkeypatch):
    """However much waits for a site that takes nothing, the mail of another account is not kept on disk by it."""
    monkeypatch.setattr(feed, "TOTAL", 4)
    monkeypatch.setattr(feed, "EACH", 2)
    await fed.at_rest(*range(1, 11))
    await fed.feed.start()
    await eventually(lambda: len(fed.added) >= 4)
    await fed.at_rest(11, account="user:other")
    await eventually(lambda: name(11) in fed.added)
    assert len(fed.added) == 5


async def test_with_enough_in_memory_nothing_comes_in(fed, eventually, monkeypatch):
    monkeypatch.setattr(feed, "TOTAL", 4)
    monkeypatch.setattr(feed, "EACH", 2)
    await fed.at_rest(*range(1, 11))
    await fed.feed.start()
    await eventually(lambda: len(fed.added) >= 4)
    looks = []
    look_back = fed.store.rest.look_back

    async def looked():
        looks.append(True)
        await look_back()

    monkeypatch.setattr(fed.store.rest, "look_back", looked)
    await eventually(lambda: len(looks) > 3)
    assert len(fed.added) == 4
    for message in list(fed.added):
        fed.scheduler.recall(message)
    await eventually(lambda: len(fed.added) == 8)


async def test_everything_that_is_due_comes_in_by_turns(fed, eventually, monkeypatch):
    monkeypatch.setattr(feed, "EACH", 3)
    await fed.at_rest(*range(100))
    await fed.feed.start()
    await eventually(lambda: len(fed.added) == 100)
    assert fed.added == [name(number) for number in range(100)]
    assert fed.queue.resting == 0


async def test_trouble_is_outlived(fed, eventually):
    await fed.feed.start()
    fed.store.rest.failing = True
    tries = []
    check = fed.store.rest._check

    def counted():
        tries.append(True)
        check()

    fed.store.rest._check = counted
    await fed.at_rest(1)
    await eventually(lambda: len(tries) > 2)
    assert fed.added == []
    fed.store.rest.failing = False
    await eventually(lambda: fed.added == [name(1)])


async def test_a_bug_is_outlived(fed, eventually):
    add, failures = fed.feed._add, iter([True])

    def fails_once(message):
        if next(failures, False):
            raise RuntimeError("bug")
        add(message)

    fed.feed._add = fails_once
    await fed.at_rest(1)
    await fed.feed.start()
    await eventually(lambda: not fed.queue.resting)
    await fed.at_rest(2)
    await eventually(lambda: name(2) in fed.added)


async def test_the_age_of_the_queue_is_known_when_it_has_started(fed):
    await fed.at_rest(7, 5, 9, due=1e12)
    assert fed.queue.oldest() is None
    await fed.feed.start()
    assert fed.queue.oldest() == 5.0


async def test_what_is_soon_tried_is_not_dismissed(fed):
    now = clock.wall()
    await fed.at_rest(1, 2, due=now + feed.HORIZON * 2)
    for message in await fed.store.rest.due(1e12, lanes=9, each=9, full=lambda _domain, _account: False):
        fed.add(message)
    await fed.store.commit([settled(1, Result(0, State.DEFERRED, 2, 0.0, now + 1, result().reply))])
    fed.scheduler.recall(name(1))
    fed.add(fed.store.messages[name(1)])
    await fed.store.seal()
    assert list(fed.store.messages) == [name(1)]
    assert fed.in_scheduler == 1, "what went to rest is not scheduled any more"


async def test_what_waits_behind_a_full_lane_is_dismissed(fed, monkeypatch):
    monkeypatch.setattr(feed, "LANE", 4)
    for number in range(10):
        await fed.store.commit([accepted(number)])
        fed.add(fed.store.messages[name(number)])
    await fed.store.seal()
    assert (len(fed.store.messages), fed.queue.resting, fed.in_scheduler) == (4, 6, 4)


async def test_a_shard_in_trouble_keeps_no_other(monkeypatch, eventually):
    monkeypatch.setattr(feed, "INTERVAL", 0.002)
    stores = (MemoryStore(0), MemoryStore(1))
    queue = Queue(stores, Memory(10**6))
    queue.added = lambda _message: None
    await queue.open()
    for shard, store in enumerate(stores):
        await store.commit([accepted(1, shard=shard)])
        await store.seal()
    added: list[str] = []
    tested = Feed(queue, Scheduler(), lambda message: added.append(message.envelope.id))
    await tested.start()
    stores[1].rest.failing = True
    await eventually(lambda: added)
    assert added == [name(1)]
    stores[1].rest.failing = False
    await tested.stop()
    await queue.close()


async def test_with_more_than_enough_in_memory_what_waits_is_dismissed(fed, monkeypatch):
    monkeypatch.setattr(feed, "TOTAL", 6)
    for number in range(10):
        await fed.store.commit([accepted(number)])
        fed.add(fed.store.messages[name(number)])
    await fed.store.seal()
    assert (len(fed.store.messages), fed.queue.resting, fed.in_scheduler) == (6, 4, 6)


async def test_what_is_woken_and_not_due_leaves_room_for_what_is(fed, eventually, monkeypatch):
    monkeypatch.setattr(feed, "TOTAL", 10)
    monkeypatch.setattr(feed, "TOTAL_WOKEN", 5, raising=False)
    monkeypatch.setattr(feed, "WOKEN", 3)
    await fed.at_rest(*range(1, 21), due=clock.wall() + 3600)
    fed.feed.wake(["example.net"])
    looks: list[None] = []
    look_back = fed.store.rest.look_back

    async def counted() -> None:
        looks.append(None)
        await look_back()

    monkeypatch.setattr(fed.store.rest, "look_back", counted)
    await fed.feed.start()
    await eventually(lambda: len(looks) > 10)
    assert len(fed.added) == 6
    await fed.at_rest(30, due=clock.wall())
    await eventually(lambda: name(30) in fed.added)
    # Sealing laid the woken ones to rest again; they come back by threes, and no further than before.
    await eventually(lambda: fed.in_scheduler == 7)
    looks.clear()
    await eventually(lambda: len(looks) > 10)
    assert fed.in_scheduler == 7
