"""When a shard seals and when its survivors move: by age, by number, by segments, and again after trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relayd import log
from relayd.spool import journal, keeper, writer
from relayd.spool.index import Index
from relayd.spool.shard import JournalStore
from tests.fakes.mail import accepted, body, name, settled


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "shard-00"


@pytest.fixture
async def store(directory, monkeypatch):
    monkeypatch.setattr(keeper, "TICK", 0.002)
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.002)
    opened = JournalStore(directory, 0, segment_octets=4096)
    await opened.open()
    await opened._quiet.wait()
    yield opened
    await opened.close()


def segments(directory: Path) -> list[int]:
    return journal.segment_numbers(directory / "journal")


@pytest.fixture
def looks(monkeypatch) -> Callable[[], int]:
    """How often the keeper has looked."""
    made: list[bool] = []
    look = keeper.Keeper._look

    async def counted(self):
        await look(self)
        made.append(True)

    monkeypatch.setattr(keeper.Keeper, "_look", counted)
    return lambda: len(made)


async def test_a_young_segment_is_left_alone(looks, store, directory, eventually):
    await store.commit([accepted(1)])
    seen = looks()
    await eventually(lambda: looks() > seen + 3)
    assert segments(directory) == [1]
    assert (list(store.messages), store.rest.count) == ([name(1)], 0)


async def test_an_old_segment_with_live_mail_is_sealed_and_moves_when_it_has_settled(
    looks, store, directory, eventually, monkeypatch
):
    await store.commit([accepted(1)])
    monkeypatch.setattr(keeper, "SEGMENT_SECONDS", 0.0)
    await eventually(lambda: segments(directory)[:2] == [1, 2])
    seen = looks()
    await eventually(lambda: looks() > seen + 3)
    sealed, seen = segments(directory), looks()
    await eventually(lambda: looks() > seen + 3)
    assert segments(directory) == sealed, "nothing is live in the newest, so it stays the newest"
    assert list(store.messages) == [name(1)], "what may soon be done waits for that"
    monkeypatch.setattr(keeper, "SETTLE_SECONDS", 0.0)
    await eventually(lambda: segments(directory) == sealed[-1:])
    assert (list(store.messages), store.rest.count) == ([], 1)


async def test_an_old_segment_without_live_mail_is_not_replaced(looks, store, directory, eventually, monkeypatch):
    monkeypatch.setattr(keeper, "SEGMENT_SECONDS", 0.0)
    await store.commit([accepted(1), settled(1)])
    seen = looks()
    await eventually(lambda: looks() > seen + 3)
    assert segments(directory) == [1]


async def test_a_segment_answers_for_so_many_messages(store, directory, eventually, monkeypatch):
    monkeypatch.setattr(keeper, "SEGMENT_MESSAGES", 5)
    await store.commit([accepted(number, octets=10) for number in range(4)])
    await store.commit([accepted(4, octets=10)])
    await eventually(lambda: segments(directory)[:2] == [1, 2])
    assert len(store.messages) == 5


async def test_with_too_many_segments_the_oldest_moves_at_once(looks, store, directory, eventually):
    for number in range(keeper.SEGMENTS - 1):
        await store.commit([accepted(number, octets=4096)])
    seen = looks()
    await eventually(lambda: looks() > seen + 3)
    assert store.rest.count == 0
    for number in (10, 11, 12):
        await store.commit([accepted(number, octets=4096)])
    await eventually(lambda: len(segments(directory)) <= keeper.SEGMENTS)
    assert store.rest.count >= 6 - keeper.SEGMENTS
    # The oldest first.
    assert list(store.messages) == [name(number) for number in (0, 1, 2, 10, 11, 12)][store.rest.count :]


async def test_after_trouble_it_is_tried_again(store, directory, eventually, monkeypatch):
    monkeypatch.setattr(keeper, "SETTLE_SECONDS", 0.0)
    tidy, tries = Index.tidy, []

    def failing(index):
        tries.append(True)
        if len(tries) < 4:
            raise OSError(5, "Input/output error")
        return tidy(index)

    monkeypatch.setattr(Index, "tidy", failing)
    await eventually(lambda: len(tries) > 5)
    await store.commit([accepted(1)])
    store.rotate()
    await eventually(lambda: store.rest.count == 1)
    assert await store.rest.body(name(1)) == body(1)


async def test_after_a_bug_it_goes_on(store, eventually, monkeypatch):
    monkeypatch.setattr(keeper, "SETTLE_SECONDS", 0.0)
    failures = iter([True])

    def idle(_message: str) -> bool:
        if next(failures, False):
            raise RuntimeError("bug")
        return True

    store.idle = idle
    await store.commit([accepted(1), accepted(2)])
    store.rotate()
    await eventually(lambda: next(failures, True))
    await store.commit([accepted(3)])
    store.rotate()
    await eventually(lambda: store.rest.count)
    found = {**store.messages, **dict.fromkeys([m.envelope.id for m in (await store.rest.page(0, 9))[1]])}
    assert found.keys() == {name(1), name(2), name(3)}


async def test_a_first_segment_that_cannot_be_made_is_no_bug(directory, monkeypatch, eventually, looks):
    monkeypatch.setattr(keeper, "TICK", 0.002)
    bugs: list[str] = []
    monkeypatch.setattr(log, "bug", lambda where, **_: bugs.append(where))
    sync = writer.sync_directory

    def fails(path: Path) -> None:
        if path.name == "journal":
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(writer, "sync_directory", fails)
    store = JournalStore(directory, 0)
    await store.open()
    seen = looks()
    await eventually(lambda: looks() > seen + 3)
    await store.close()
    assert bugs == []


async def test_an_index_that_failed_is_opened_again_with_nothing_to_move(looks, store, eventually):
    store.rest._thread.index().broken = True
    await eventually(lambda: not store.rest._thread.index().broken)
    seen = looks()
    await eventually(lambda: looks() > seen)
