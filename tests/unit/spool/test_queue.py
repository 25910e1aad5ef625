"""The queue's promises: memory, health, and that neither a client gone nor a failing disk disturbs them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import msgspec
import pytest

from relayd import clock, metrics
from relayd.message import queue_id
from relayd.spool import repair
from relayd.spool.memory import Memory
from relayd.spool.queue import BEHIND_PAUSE, STALLED_SECONDS, UNHEALTHY_PAUSE, Queue
from relayd.spool.records import Message, State
from relayd.spool.shard import JournalStore
from relayd.spool.space import Space
from relayd.spool.store import StoreError, StoreLockedError
from tests.fakes.mail import accepted, body, name, result, settled
from tests.fakes.memory_store import Disk, MemoryStore


class Opened:
    """A queue over a fake store, and what it told."""

    def __init__(self, *stores: MemoryStore) -> None:
        self.stores = stores or (MemoryStore(),)
        self.memory = Memory(1_000_000)
        self.queue = Queue(self.stores, self.memory)
        self.told: list[str] = []
        self.queue.added = self.added

    def added(self, message: Message) -> None:
        self.told.append(f"added {message.envelope.id}")

    def recorded(self, number: int):
        return lambda: self.told.append(f"recorded {number}")

    async def accept(self, number: int, **kwargs: int) -> None:
        new = accepted(number, **kwargs)
        assert self.memory.take(len(new.body))
        await self.queue.accept(new.envelope, new.body)


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    made = Opened()
    await made.queue.open()
    yield made
    made.stores[0].failing = False
    await made.queue.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(repair, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(repair, "MOST_DELAY", 0.01)


async def listed(queue: Queue) -> list[Message]:
    return [message async for page in queue.pages() for message in page]


def healthy_metric() -> float | None:
    return metrics.REGISTRY.get_sample_value("relayd_spool_healthy")


async def test_a_message_from_acceptance_to_its_end(opened, eventually):
    await opened.accept(1, recipients=2)
    assert opened.queue.get(name(1)).body == body(1)
    assert opened.memory.used == 100
    assert opened.queue.oldest() == 1.0
    opened.queue.settle(settled(1, result(0, State.DEFERRED)), opened.recorded(1))
    await eventually(lambda: "recorded 1" in opened.told)
    assert opened.memory.used == 100
    opened.queue.settle(settled(1, result(0)), opened.recorded(2))
    opened.queue.settle(settled(1, result(1)), opened.recorded(3))
    await eventually(lambda: "recorded 3" in opened.told)
    assert opened.told == [f"added {name(1)}", "recorded 1", "recorded 2", "recorded 3"]
    assert opened.queue.get(name(1)) is None
    assert opened.queue.oldest() is None
    assert opened.memory.used == 0


async def test_a_notification_is_added_before_its_cause_is_recorded(opened, eventually):
    await opened.accept(1)
    note = accepted(2, octets=300)
    opened.queue.settle(settled(1, result(state=State.FAILED), notification=note), opened.recorded(1))
    await eventually(lambda: "recorded 1" in opened.told)
    assert opened.told == [f"added {name(1)}", f"added {name(2)}", "recorded 1"]
    assert opened.memory.used == 300
    opened.queue.settle(settled(2), opened.recorded(2))
    await eventually(lambda: "recorded 2" in opened.told)
    assert opened.memory.used == 0


async def test_recovered_messages_are_returned_and_not_added():
    disk = Disk()
    first = Opened(MemoryStore(0, disk))
    await first.queue.open()
    for number in (2, 1):
        await first.accept(number)
    await first.queue.close()
    again = Opened(MemoryStore(0, disk))
    assert [message.envelope.id for message in await again.queue.open()] == [name(1), name(2)]
    assert again.told == []
    assert again.memory.used == 200
    await again.queue.close()


async def test_a_client_that_goes_away_disturbs_nothing(opened, eventually):
    store = opened.stores[0]
    store.held = True
    waiting = asyncio.create_task(opened.accept(1))
    await eventually(lambda: store.load == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert opened.memory.used == 100
    store.release()
    await eventually(lambda: opened.told == [f"added {name(1)}"])
    assert opened.queue.get(name(1)) is not None
    # The other ending: the commit of somebody gone fails.
    store.held = True
    waiting = asyncio.create_task(opened.accept(2))
    await eventually(lambda: store.load == 1)
    waiting.cancel()
    store.failing = True
    store.release()
    await eventually(lambda: not opened.queue.healthy)
    assert opened.memory.used == 100


async def test_a_failed_acceptance_gives_its_memory_back(opened, eventually):
    opened.stores[0].failing = True
    with pytest.raises(StoreError, match="broken"):
        await opened.accept(1)
    assert opened.memory.used == 0
    assert not opened.queue.healthy
    assert healthy_metric() == 0
    attempts = len(opened.stores[0].attempts)
    with pytest.raises(StoreError, match="at present"):
        await opened.accept(2)
    assert opened.memory.used == 0
    assert all(not batch for batch in opened.stores[0].attempts[attempts:]), "only probes while unhealthy"
    await eventually(lambda: len(opened.stores[0].attempts) > attempts + 2)
    opened.stores[0].failing = False
    await eventually(lambda: opened.queue.healthy)
    assert healthy_metric() == 1
    await opened.accept(3)
    assert opened.told == [f"added {name(3)}"]


async def test_what_cannot_be_encoded_gives_its_memory_back(opened):
    opened.memory.take(3)
    bad = accepted(1).envelope
    with pytest.raises(UnicodeEncodeError):
        await opened.queue.accept(type(bad)(bad.id, bad.sender, bad.recipients, "\ud800", 0.0, 3), b"abc")
    assert opened.memory.used == 0
    assert opened.queue.healthy


async def test_a_store_that_stalls_is_trouble_until_it_goes_on(opened, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    store = opened.stores[0]
    store.held = True
    waiting = asyncio.create_task(opened.accept(1))
    await asyncio.sleep(0)
    now += STALLED_SECONDS
    assert (opened.queue.trouble, healthy_metric()) == ("", 1)
    now += 1
    assert (opened.queue.trouble, healthy_metric()) == ("spool stalled", 0)
    store.release()
    await waiting
    assert (opened.queue.trouble, healthy_metric()) == ("", 1)


async def test_outcomes_that_are_not_durable_are_counted_and_hold_up_deliveries(opened, monkeypatch, eventually):
    monkeypatch.setattr("relayd.spool.queue.MOST_UNRECORDED", 2)
    for number in range(3):
        await opened.accept(number)
    store = opened.stores[0]
    store.held = True
    opened.queue.settle(settled(0), opened.recorded(0))
    assert (opened.queue.unrecorded, opened.queue.pause) == (1, 0)
    opened.queue.settle(settled(1), opened.recorded(1))
    assert (opened.queue.unrecorded, opened.queue.pause) == (2, BEHIND_PAUSE)
    store.failing = True
    store.release()
    await eventually(lambda: not opened.queue.healthy)
    assert (opened.queue.unrecorded, opened.queue.pause) == (2, UNHEALTHY_PAUSE)
    store.failing = False
    await eventually(lambda: opened.queue.healthy and not opened.queue.unrecorded)
    assert opened.queue.pause == 0


async def test_outcomes_are_retried_in_order_until_durable(opened, eventually):
    for number in range(5):
        await opened.accept(number)
    opened.told.clear()
    opened.stores[0].failing = True
    for number in range(4):
        opened.queue.settle(settled(number), opened.recorded(number))
    await eventually(lambda: not opened.queue.healthy)
    attempts = len(opened.stores[0].attempts)
    await eventually(lambda: len(opened.stores[0].attempts) > attempts + 8)
    opened.queue.settle(settled(4), opened.recorded(4))
    assert opened.told == []
    assert opened.memory.used == 500
    opened.stores[0].failing = False
    await eventually(lambda: len(opened.told) == 5)
    assert opened.told == [f"recorded {number}" for number in range(5)]
    assert opened.memory.used == 0
    assert opened.queue.healthy


async def test_an_outcome_that_cannot_be_encoded_keeps_no_other_back(opened, eventually):
    bad = settled(2, msgspec.structs.replace(result(), host="\ud800"))
    with pytest.raises(UnicodeEncodeError):
        opened.queue.settle(bad, opened.recorded(2))
    await opened.accept(1)
    opened.stores[0].failing = True
    with pytest.raises(StoreError):
        await opened.accept(3)
    bugs = metrics.REGISTRY.get_sample_value("relayd_bugs_total")
    opened.queue.settle(bad, opened.recorded(2))
    opened.queue.settle(settled(1), opened.recorded(1))
    opened.stores[0].failing = False
    await eventually(lambda: opened.told[-1:] == ["recorded 1"])
    assert metrics.REGISTRY.get_sample_value("relayd_bugs_total") == bugs + 1
    assert "recorded 2" not in opened.told


async def test_closing_tries_once_more(eventually):
    made = Opened()
    await made.queue.open()
    await made.accept(1)
    await made.accept(2)
    made.stores[0].failing = True
    made.queue.settle(settled(1), made.recorded(1))
    await eventually(lambda: not made.queue.healthy)
    made.queue.settle(settled(2), made.recorded(2))
    made.stores[0].failing = False
    await made.queue.close()
    assert made.told[-2:] == ["recorded 1", "recorded 2"]
    await made.queue.close()


async def test_closing_ends_though_the_disk_never_comes_back(eventually):
    made = Opened()
    await made.queue.open()
    await made.accept(1)
    made.stores[0].failing = True
    made.queue.settle(settled(1), made.recorded(1))
    await asyncio.wait_for(made.queue.close(), 5)
    assert made.told == [f"added {name(1)}"]


async def test_ids_go_to_the_first_shard_until_its_line_is_long(monkeypatch):
    monkeypatch.setattr("relayd.spool.queue.SHORT_LINE", 1)
    stores = (MemoryStore(0), MemoryStore(5))
    made = Opened(*stores)
    await made.queue.open()
    assert queue_id.shard_of(made.queue.new_id()) == 0
    stores[0].held = True
    busy = asyncio.ensure_future(made.accept(1))
    await asyncio.sleep(0)
    new = made.queue.new_id()
    assert queue_id.is_valid(new)
    assert queue_id.shard_of(new) == 5
    await made.accept(2, shard=5)
    assert made.queue.get(name(2, shard=5)) is not None
    stores[0].release()
    await busy
    assert [message.envelope.id for message in await listed(made.queue)] == [name(1), name(2, shard=5)]
    await made.queue.close()


async def test_one_sick_shard_makes_the_queue_sick(eventually):
    stores = (MemoryStore(0), MemoryStore(1))
    made = Opened(*stores)
    await made.queue.open()
    stores[1].failing = True
    with pytest.raises(StoreError):
        await made.accept(1, shard=1)
    with pytest.raises(StoreError, match="at present"):
        await made.accept(2, shard=0)
    stores[1].failing = False
    await eventually(lambda: made.queue.healthy)
    await made.queue.close()


async def test_a_shard_that_cannot_be_opened_leaves_none_open():
    disk = Disk()
    disk.owned = True
    free = MemoryStore(0)
    queue = Queue((free, MemoryStore(1, disk)), Memory(1))
    with pytest.raises(StoreLockedError):
        await queue.open()
    assert not free.disk.owned
    await queue.close()


@pytest.mark.parametrize("text", ["", "x", "../../../etc/passwd", "fff" + "a" * 20, name(1)[:-1], name(1) + "\n"])
async def test_only_ids_are_looked_up(opened, text):
    await opened.accept(1)
    assert opened.queue.get(text) is None


async def test_disk_space(tmp_path, monkeypatch):
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert Space([tmp_path], free // 2).enough()
    assert not Space([tmp_path], free * 2).enough()
    assert not Space([tmp_path / "gone"], 0).enough()
    monkeypatch.setattr("relayd.spool.space.INODE_RESERVE", status.f_files + 1)
    assert not Space([tmp_path], 0).enough()


async def test_over_a_real_journal(tmp_path, eventually):
    stores = [JournalStore(tmp_path / f"shard-{n:02}", n) for n in range(2)]
    queue = Queue(stores, Memory(0))
    queue.added = lambda _message: None
    assert await queue.open() == []
    new = [accepted(n, shard=n % 2) for n in range(20)]
    await asyncio.gather(*(queue.accept(one.envelope, one.body) for one in new))
    done: list[int] = []
    for number in range(10):
        queue.settle(settled(number, shard=number % 2), lambda number=number: done.append(number))
    await eventually(lambda: len(done) == 10)
    assert [message.envelope for message in await listed(queue)] == [one.envelope for one in new[10:]]
    assert [await queue.body(message) for message in await listed(queue)] == [one.body for one in new[10:]]
    await queue.close()


def test_memory_is_a_budget():
    memory = Memory(10)
    assert memory.take(10)
    assert not memory.take(1)
    memory.force(5)
    memory.give(10)
    assert memory.used == 5
    assert memory.take(5)
    assert not memory.take(1)
