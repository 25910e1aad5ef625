"""What the queue lets go of, in memory and at rest, and how it is found there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relayd.spool import holding, space
from relayd.spool import queue as module
from relayd.spool.records import Message, State
from relayd.spool.shard import JournalStore
from relayd.spool.space import Space
from relayd.spool.store import StoreError
from tests.fakes.mail import accepted, body, name, result, settled
from tests.fakes.memory_store import MemoryStore
from tests.unit.spool.test_queue import Opened, listed


def not_full(_domain: str, _account: str) -> bool:
    return False


@pytest.fixture
async def opened(tmp_path) -> AsyncIterator[Opened]:
    made = Opened(JournalStore(tmp_path / "shard-00", 0), JournalStore(tmp_path / "shard-05", 5))
    await made.queue.open()
    yield made
    await made.queue.close()


async def brought(made: Opened) -> list[Message]:
    return [message for rest in made.queue.rests for message in await rest.due(1e12, lanes=9, each=99, full=not_full)]


async def seal(made: Opened) -> None:
    for store in made.stores:
        await store.seal()


async def test_what_goes_to_rest_gives_its_memory_back_once(opened, eventually):
    for number in (1, 2):
        await opened.accept(number)
    needed = {name(2)}
    opened.queue.dismiss = lambda message: message not in needed
    await seal(opened)
    assert (opened.memory.used, opened.queue.resting) == (100, 1)
    assert opened.queue.get(name(1)) is None
    (message,) = await brought(opened)
    assert message.body is None
    assert await opened.queue.body(message) == body(1)
    assert (opened.memory.used, opened.queue.resting) == (100, 0)
    for number in (1, 2):
        opened.queue.settle(settled(number), opened.recorded(number))
    await eventually(lambda: "recorded 2" in opened.told)
    assert opened.memory.used == 0


async def test_beyond_half_of_the_memory_a_body_stays_on_disk_alone(opened, eventually):
    opened.memory.limit = 1000
    for number in range(1, 9):
        await opened.accept(number)
    kept = [message for message in (opened.queue.get(name(n)) for n in range(1, 9)) if message.body is not None]
    assert len(kept) == 5
    assert opened.memory.used == 500
    for number in range(1, 9):
        assert await opened.queue.body(opened.queue.get(name(number))) == body(number)
    for number in range(1, 9):
        opened.queue.settle(settled(number), opened.recorded(number))
    await eventually(lambda: "recorded 8" in opened.told)
    assert opened.memory.used == 0


async def test_a_notification_is_counted_while_it_is_in_memory(opened, eventually):
    await opened.accept(1)
    note = accepted(2, octets=300)
    opened.queue.settle(settled(1, result(state=State.FAILED), notification=note), opened.recorded(1))
    await eventually(lambda: "recorded 1" in opened.told)
    assert opened.memory.used == 300
    await seal(opened)
    assert opened.memory.used == 0
    assert await opened.queue.body((await brought(opened))[0]) == note.body


async def test_everything_is_listed_and_found_wherever_it_is(opened, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 3)
    for number in range(10):
        await opened.accept(number, shard=5 * (number % 2))
    await seal(opened)
    assert opened.queue.resting == 10
    for number in range(10, 15):
        await opened.accept(number)
    pages = [page async for page in opened.queue.pages()]
    assert max(map(len, pages)) == 3
    listed_now = [message.envelope.id for page in pages for message in page]
    assert sorted(listed_now) == sorted([name(n, 5 * (n % 2)) for n in range(10)] + [name(n) for n in range(10, 15)])
    assert listed_now[-5:] == [name(n) for n in range(10, 15)]
    for message in listed_now:
        found = await opened.queue.find(message)
        assert found is not None and found.envelope.id == message
    assert opened.queue.resting == 10


@pytest.mark.parametrize(
    "text", ["", "x", "../../../etc/passwd", "fff" + "a" * 20, name(1)[:-1], name(1) + "\n", name(1, 7)]
)
async def test_only_ids_are_found(opened, text):
    await opened.accept(1)
    assert await opened.queue.find(text) is None
    assert not await holding.hold(opened.queue, text, held=True)


async def test_due_asks_every_shard(opened):
    for number in range(4):
        await opened.accept(number, shard=5 * (number % 2))
    await seal(opened)
    assert sorted(message.envelope.id for message in await brought(opened)) == sorted(
        name(n, 5 * (n % 2)) for n in range(4)
    )
    assert await brought(opened) == []


async def test_the_oldest_is_in_memory_or_at_rest(opened):
    assert opened.queue.oldest() is None
    await opened.accept(5)
    await seal(opened)
    await opened.accept(7)
    assert opened.queue.oldest() == 7.0
    await opened.queue.rests[0].look_back()
    assert opened.queue.oldest() == 5.0
    await brought(opened)
    assert opened.queue.oldest() == 5.0


def held_at_rest(queue: module.Queue) -> int:
    return sum(rest.held for rest in queue.rests)


async def test_a_message_is_held_wherever_it_is(opened):
    await opened.accept(1)
    await opened.accept(2)
    assert await holding.hold(opened.queue, name(1), held=True)
    await seal(opened)
    assert (opened.queue.resting, held_at_rest(opened.queue)) == (2, 1)
    assert await holding.hold(opened.queue, name(2), held=True)
    assert opened.queue.get(name(2)).held
    assert await brought(opened) == []
    assert await holding.hold(opened.queue, name(1), held=False)
    assert not opened.queue.get(name(1)).held
    assert (opened.queue.resting, held_at_rest(opened.queue)) == (0, 0)
    assert not await holding.hold(opened.queue, name(9), held=True)


async def test_what_was_held_is_held_after_a_restart(tmp_path):
    for seals in (False, True):
        first = Opened(JournalStore(tmp_path / f"{seals}-00", 0))
        await first.queue.open()
        await first.accept(1)
        assert await holding.hold(first.queue, name(1), held=True)
        if seals:
            await seal(first)
        await first.queue.close()
        again = Opened(JournalStore(tmp_path / f"{seals}-00", 0))
        await again.queue.open()
        assert [message.held for message in await listed(again.queue)] == [True]
        assert held_at_rest(again.queue) == seals
        await again.queue.close()


async def test_a_message_that_ends_while_it_is_held_is_gone():
    store = MemoryStore()
    made = Opened(store)
    await made.queue.open()
    await made.accept(1)
    made.queue.settle(settled(1), made.recorded(1))
    assert not await holding.hold(made.queue, name(1), held=True)
    await made.queue.close()


def test_the_disk_is_not_asked_at_each_message(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(space.clock, "monotonic", lambda: now[0])
    gone = tmp_path / "gone"
    now[0] = 100.0
    asked = Space([tmp_path, gone], 0)
    assert not asked.enough()
    gone.mkdir()
    now[0] += space.INTERVAL * 0.9
    assert not asked.enough()
    now[0] += space.INTERVAL * 0.2
    assert asked.enough()
    assert Space([], 10**18).enough(), "without a disk there is always room"


async def test_a_message_that_could_not_be_held_is_scheduled_again():
    """It was at rest, and is in memory now."""
    store = MemoryStore()
    made = Opened(store)
    await made.queue.open()
    await made.accept(1)
    await store.seal()
    store.failing = True
    with pytest.raises(StoreError):
        await holding.hold(made.queue, name(1), held=True)
    assert made.told == [f"added {name(1)}"] * 2
    store.failing = False
    await made.queue.close()
