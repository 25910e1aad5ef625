"""Looking at a spool from outside: beside its owner and without one, and changing nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.spool import journal
from relayd.spool.index import Index
from relayd.spool.index_file import IndexDamagedError
from relayd.spool.index_view import MissingError
from relayd.spool.records import State
from relayd.spool.shard import JournalStore
from relayd.spool.viewer import Viewer
from tests.fakes.mail import accepted, body, name, result, settled


@pytest.fixture
def spool(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def store(spool) -> AsyncIterator[JournalStore]:
    """Three at rest, one of these back in memory and another settled since; two in the journal."""
    opened = JournalStore(spool / "shard-00", 0)
    await opened.open()
    await opened.commit([accepted(number, octets=500) for number in range(3)])
    await opened.seal()
    await opened.rest.due(1.0, lanes=1, each=2, full=lambda _domain, _account: False)
    await opened.commit([settled(0), settled(1, result(state=State.DEFERRED, attempts=4))])
    await opened.commit([accepted(3, octets=500), accepted(4, octets=500)])
    yield opened
    await opened.close()


def seen(spool: Path) -> dict[str, bytes]:
    with Viewer(spool) as viewer:
        messages = list(viewer.messages())
        found = {message.envelope.id: b"".join(viewer.body(message)) for message in messages}
        assert len(found) == len(messages)
        for message in messages:
            same = viewer.find(message.envelope.id)
            assert (same.envelope, same.results) == (message.envelope, message.results)
        assert (viewer.quarantined, viewer.torn) == (0, 0)
        return found


EXPECTED = {name(number): body(number, 500) for number in range(1, 5)}


async def test_beside_the_owner(spool, store):
    assert seen(spool) == EXPECTED
    with Viewer(spool) as viewer:
        assert viewer.find(name(1)).results == [result(state=State.DEFERRED, attempts=4)]
        assert viewer.find(name(0)) is None
        assert [message.envelope.id for message in viewer.messages()] == [name(n) for n in (2, 1, 3, 4)]
    await store.commit([settled(4)])
    assert seen(spool).keys() == EXPECTED.keys() - {name(4)}


async def test_without_the_owner_and_after_a_crash(spool, store, tmp_path):
    shutil.copytree(spool, tmp_path / "crashed")
    assert seen(tmp_path / "crashed") == EXPECTED
    await store.close()
    assert seen(spool) == EXPECTED


async def test_nothing_is_changed(spool, store):
    await store.close()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(spool.rglob("*"))}
    assert seen(spool) == EXPECTED
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(spool.rglob("*"))} == before


async def test_after_a_move_that_stopped_half_way(spool, store, monkeypatch):
    monkeypatch.setattr("relayd.spool.mover.MOVED_AT_ONCE", 1)
    move, moves = Index.move, []

    def twice(*arguments: object) -> None:
        moves.append(True)
        if len(moves) > 2:
            raise OSError(5, "Input/output error")
        move(*arguments)

    monkeypatch.setattr(Index, "move", twice)
    with pytest.raises(Exception, match="Input/output"):
        await store.seal()
    assert seen(spool) == EXPECTED


async def test_a_segment_that_is_unlinked_under_a_look(spool, store, monkeypatch):
    """It looks again, and finds what it held where it is now."""
    numbers, gone = journal.segment_numbers, iter([[1, 2], [1, 2]])
    monkeypatch.setattr(journal, "segment_numbers", lambda directory: next(gone, None) or numbers(directory))
    assert numbers(spool / "shard-00" / "journal") == [2]
    assert seen(spool) == EXPECTED


@pytest.mark.parametrize("text", ["", "x", "../../../etc/passwd", name(9), name(1, shard=3), name(1) + "\n"])
async def test_who_is_not_there(spool, store, text):
    with Viewer(spool) as viewer:
        assert viewer.find(text) is None


async def test_a_spool_that_is_none(tmp_path):
    with Viewer(tmp_path / "nothing", tmp_path) as viewer:
        assert list(viewer.messages()) == []
        assert viewer.find(name(1)) is None


async def test_several_directories(tmp_path):
    stores = [JournalStore(tmp_path / part / f"shard-{number:02}", number) for number, part in enumerate("ab")]
    for store in stores:
        await store.open()
        await store.commit([accepted(store.shard, shard=store.shard)])
        await store.close()
    with Viewer(tmp_path / "a", tmp_path / "b") as viewer:
        assert [message.envelope.id for message in viewer.messages()] == [name(0, 0), name(1, 1)]
        for message in viewer.messages():
            assert b"".join(viewer.body(message)) == body(int(message.envelope.accepted_at))


async def test_damage_is_an_error_or_is_told(spool, store):
    await store.close()
    index = spool / "shard-00" / "index.db"
    damaged = index.read_bytes().replace(b"sender@example.org", b"Sender@example.org", 1)
    index.write_bytes(damaged)
    with pytest.raises(IndexDamagedError), Viewer(spool) as viewer:
        list(viewer.messages())
    told: list[str] = []
    with Viewer(spool, tell=told.append) as viewer:
        found = {message.envelope.id for message in viewer.messages()}
    assert {name(3), name(4)} <= found < EXPECTED.keys()
    assert told


async def test_while_the_owner_writes_and_moves(spool, store):
    """Whatever is seen twice or not at all, all that is given out is right, and nothing is called damaged."""
    stop = asyncio.Event()
    acknowledged = 0

    async def traffic() -> None:
        nonlocal acknowledged
        number = 100
        while not stop.is_set():
            await store.commit([accepted(number + n, octets=500) for n in range(5)])
            await store.commit([settled(number), settled(number + 1)])
            if number % 3 == 0:
                await store.seal()
            number += 5
            acknowledged = number

    def look() -> int:
        with Viewer(spool) as viewer:
            found = 0
            for message in viewer.messages():
                assert b"".join(viewer.body(message)) == body(int(message.envelope.accepted_at), 500)
                found += 1
            assert viewer.quarantined == 0
            return found

    writing = asyncio.ensure_future(traffic())
    looked = 0
    while acknowledged < 300:
        try:
            looked += await asyncio.to_thread(look) > 0
        except (FileNotFoundError, MissingError):
            # Settled, or on its way into the index, just then.
            continue
    stop.set()
    await writing
    assert looked
