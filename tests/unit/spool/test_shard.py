"""The embedded engine: group commit, segments' lives, and real faults of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd import metrics
from relayd.spool import disk, journal, keeper, mover, shard, writer
from relayd.spool.index import Index, Put, Waiting
from relayd.spool.journal import SegmentReader
from relayd.spool.records import Accepted, State
from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreError
from relayd.spool.viewer import Viewer
from tests.fakes.bad_block import BadBlock
from tests.fakes.mail import accepted, body, name, result, settled

SEGMENT = 64 * 1024


def segments(directory: Path) -> list[int]:
    return journal.segment_numbers(directory / "journal")


def octets(directory: Path) -> int:
    """Of the journal, with what is still being removed from it."""
    found = 0
    for path in (directory / "journal").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


async def opened(directory: Path, **kwargs: int) -> JournalStore:
    store = JournalStore(directory, 0, **kwargs)
    await store.open()
    return store


async def bodies(store: JournalStore) -> dict[str, bytes]:
    """Everything that lives in a store, in memory and at rest."""
    names = list(store.messages)
    after = -1
    while after:
        after, page = await store.rest.page(max(after, 0), 100)
        names += [message.envelope.id for message in page]
    assert len(names) == len(set(names)) == len(store.messages) + store.rest.count
    return {name: await store.rest.body(name) for name in names}


async def due(store: JournalStore) -> list[str]:
    found = await store.rest.due(1e12, lanes=1000, each=1000, full=lambda _domain, _account: False)
    return [message.envelope.id for message in found]


def seen(spool: Path) -> list[str]:
    """What a spool that nobody has open is seen to hold."""
    with Viewer(spool) as viewer:
        return [message.envelope.id for message in viewer.messages()]


@pytest.fixture
def no_index(monkeypatch) -> None:
    """Nothing can be moved."""

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Index, "move", broken)


class Gate:
    """Keeps each move on the index's thread waiting until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting = threading.Event()
        self._opened = threading.Event()
        move = Index.move

        def gated(*arguments: object) -> None:
            self.waiting.set()
            assert self._opened.wait(20), "nobody opened the gate"
            move(*arguments)

        monkeypatch.setattr(Index, "move", gated)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open()


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "spool" / "shard-00"


async def test_only_the_owner_may_read_it(directory):
    store = await opened(directory)
    await store.commit([accepted(1)])
    await store.close()
    for path in (directory.parent, directory, *directory.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert (directory / "reserve").stat().st_size == writer.RESERVE


async def test_what_waits_together_is_one_frame(directory):
    store = await opened(directory)
    groups = metrics.REGISTRY.get_sample_value("relayd_commit_seconds_count")
    await asyncio.gather(*(store.commit([accepted(n)]) for n in range(50)))
    assert metrics.REGISTRY.get_sample_value("relayd_commit_seconds_count") == groups + 1
    await store.close()


async def test_a_group_of_large_bodies_is_bounded(directory, monkeypatch):
    monkeypatch.setattr(shard, "GROUP_OCTETS", 10_000)
    store = await opened(directory)
    groups = metrics.REGISTRY.get_sample_value("relayd_commit_seconds_count")
    await asyncio.gather(*(store.commit([accepted(n, octets=5000)]) for n in range(10)))
    assert metrics.REGISTRY.get_sample_value("relayd_commit_seconds_count") == groups + 5
    await store.close()


async def test_more_buffers_than_one_writev_takes(directory):
    store = await opened(directory)
    await store.commit([accepted(n) for n in range(2000)])
    await store.close()
    store = await opened(directory)
    assert all(message.body is None for message in store.messages.values())
    assert await bodies(store) == {name(n): body(n) for n in range(2000)}
    await store.close()


async def test_every_start_appends_to_a_new_segment(directory):
    for expected in (1, 2, 3):
        store = await opened(directory)
        await store.commit([accepted(expected)])
        await store.close()
        assert segments(directory) == list(range(1, expected + 1))


async def test_full_segments_are_sealed_and_unlinked_oldest_first(directory, eventually):
    store = await opened(directory, segment_octets=SEGMENT)
    for number in range(10):
        await store.commit([accepted(number, octets=SEGMENT)])
    assert segments(directory) == list(range(1, 11))
    for number in (2, 1, 0):
        await store.commit([settled(number)])
        expected = list(range(1 if number else 4, 12))
        await eventually(lambda expected=expected: segments(directory) == expected)
    with Viewer(directory.parent) as viewer:
        assert viewer.torn == 0
    await store.close()


async def test_an_empty_queue_leaves_a_small_journal(directory, eventually):
    store = await opened(directory)
    await store.commit([accepted(1, octets=shard.TIDY_OCTETS)])
    await store.commit([settled(1)])
    await eventually(lambda: octets(directory) == journal.HEADER)
    assert segments(directory) == [2]
    await store.commit([accepted(2)])
    await store.commit([settled(2)])
    await store.close()
    assert segments(directory) == [2]
    store = await opened(directory)
    await eventually(lambda: segments(directory) == [3])
    await store.close()


async def test_one_stuck_message_does_not_keep_the_journal(directory, eventually, monkeypatch):
    monkeypatch.setattr(writer, "ROOM", bytes(SEGMENT // 8))
    monkeypatch.setattr(keeper, "TICK", 0.005)
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.005)
    store = await opened(directory, segment_octets=SEGMENT)
    stuck = accepted(0, octets=3000, recipients=3)
    await store.commit([stuck])
    await store.commit([settled(0, result(0), result(1, State.DEFERRED, attempts=2))])
    rng = random.Random(2)
    for number in range(1, 400):
        await store.commit([accepted(number, octets=rng.randrange(200, 8000)), settled(number)])
    # Those that wait for nothing but their turn, and the one being written.
    await eventually(lambda: octets(directory) <= (keeper.SEGMENTS + 1.5) * SEGMENT)
    assert segments(directory)[0] > 15
    assert (list(store.messages), store.rest.count) == ([], 1)
    await store.close()
    store = await opened(directory)
    assert await due(store) == [name(0)]
    (message,) = store.messages.values()
    assert (message.envelope, await store.rest.body(name(0))) == (stuck.envelope, stuck.body)
    assert message.results == [result(0), result(1, State.DEFERRED, attempts=2), None]
    await store.close()


async def test_survivors_move_and_only_then_their_segment_goes(directory, gate, eventually):
    store = await opened(directory)
    await store.commit([accepted(number) for number in range(250)])
    await store.commit([settled(number) for number in range(240)])
    sealing = asyncio.ensure_future(store.seal())
    await eventually(gate.waiting.is_set)
    assert segments(directory) == [1, 2]
    assert store.rest.count == 0
    gate.open()
    await sealing
    assert segments(directory) == [2]
    assert octets(directory) == journal.HEADER
    assert (list(store.messages), store.rest.count) == ([], 10)
    await store.close()
    assert seen(directory.parent) == [name(number) for number in range(240, 250)]


async def test_a_segment_stays_while_its_survivors_cannot_be_moved(directory, no_index):
    store = await opened(directory)
    await store.commit([accepted(1), accepted(2)])
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.seal()
    assert segments(directory)[0] == 1
    assert list(store.messages) == [name(1), name(2)]
    await store.commit([settled(1)])
    await store.close()
    store = await opened(directory)
    assert await bodies(store) == {name(2): body(2)}
    await store.close()


@pytest.mark.parametrize("again", ["seal", "reopen", "both"])
async def test_an_outcome_beside_the_move_of_its_message_counts(directory, gate, eventually, again):
    store = await opened(directory)
    store.idle = lambda _name: False
    await store.commit([accepted(number, recipients=2) for number in range(3)])
    sealing = asyncio.ensure_future(store.seal())
    await eventually(gate.waiting.is_set)
    await store.commit([settled(0, result(0), result(1))])
    await store.commit([settled(1, result(1))])
    assert list(store.messages) == [name(1), name(2)]
    gate.open()
    await sealing
    store.idle = lambda _name: True
    if again != "reopen":
        await store.seal()
    if again != "seal":
        await store.close()
        store = await opened(directory)
    await due(store)
    found = {message.envelope.id: message.results for message in store.messages.values()}
    assert found == {name(1): [None, result(1)], name(2): [None, None]}
    assert await bodies(store) == {name(number): body(number) for number in (1, 2)}
    await store.close()
    assert sorted(seen(directory.parent)) == [name(1), name(2)]


async def test_a_notification_beside_the_move_of_its_message_stays(directory, gate, eventually):
    store = await opened(directory)
    store.idle = lambda _name: False
    await store.commit([accepted(1)])
    sealing = asyncio.ensure_future(store.seal())
    await eventually(gate.waiting.is_set)
    await store.commit([settled(1, result(state=State.FAILED), notification=accepted(2))])
    gate.open()
    await sealing
    for _ in range(2):
        await store.seal()
        assert await bodies(store) == {name(2): body(2)}
        await store.close()
        store = await opened(directory)
    await store.close()


async def test_a_crash_in_the_middle_of_a_move(directory, monkeypatch):
    """Whatever of a segment is in the index already is neither twice there nor missing."""
    monkeypatch.setattr("relayd.spool.mover.MOVED_AT_ONCE", 2)
    store = await opened(directory)
    await store.commit([accepted(number) for number in range(6)])
    move, moves = Index.move, iter(range(100))

    def twice(*arguments: object) -> None:
        if next(moves) == 2:
            raise OSError(5, "Input/output error")
        move(*arguments)

    monkeypatch.setattr(Index, "move", twice)
    with pytest.raises(StoreError):
        await store.seal()
    assert (len(store.messages), store.rest.count) == (2, 4)
    await store.close()
    store = await opened(directory)
    assert len(store.messages) + store.rest.count == 6
    await store.commit([settled(0), settled(1)])
    await store.seal()
    assert await bodies(store) == {name(number): body(number) for number in range(2, 6)}
    await store.close()
    assert sorted(seen(directory.parent)) == [name(number) for number in range(2, 6)]


async def test_traffic_of_every_kind_is_found_again_after_many_restarts(directory, monkeypatch, eventually):
    """A model beside the store: small segments, outcomes in any order, notifications, mail that rests and comes back."""
    monkeypatch.setattr(keeper, "TICK", 0.002)
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.005)
    rng = random.Random(3)
    model: dict[str, Accepted] = {}
    numbers = iter(range(10**9))
    for _ in range(8):
        store = await opened(directory, segment_octets=SEGMENT)
        busy: set[str] = set()
        store.idle = lambda message, busy=busy: message not in busy
        assert await bodies(store) == {n: a.body for n, a in model.items()}
        for _ in range(60):
            if rng.random() < 0.2:
                await store.rest.due(1e12, lanes=1, each=rng.randrange(1, 30), full=lambda _domain, _account: False)
            commits = []
            for _ in range(rng.randrange(6)):
                new = accepted(next(numbers), octets=rng.randrange(10_000))
                model[new.envelope.id] = new
                commits.append(store.commit([new]))
            live = sorted(model.keys() & store.messages.keys())
            for old in rng.sample(live, min(len(live), rng.randrange(6))):
                busy.add(old)
                number = int(model.pop(old).envelope.accepted_at)
                note = accepted(next(numbers), octets=500) if rng.random() < 0.1 else None
                if note is not None:
                    model[note.envelope.id] = note
                commits.append(store.commit([settled(number, notification=note)]))
            await asyncio.gather(*commits)
        await store.seal()
        # Finished segments are removed behind the commits, and the keeper is at work all the time.
        await eventually(lambda store=store: sum(one.octets for one in store.ledger.segments) == octets(directory))
        assert await bodies(store) == {n: a.body for n, a in model.items()}
        await store.close()


# --- faults ---------------------------------------------------------------------------------------------------------


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(size))


async def test_a_full_disk_takes_no_mail_but_records_outcomes(small_disk, monkeypatch):
    monkeypatch.setattr(writer, "ROOM", b"")  # in which both would fit
    directory = small_disk / "spool" / "shard-00"
    store = await opened(directory)
    for number in range(20):
        await store.commit([accepted(number, octets=10_000)])
    fill(small_disk / "others")
    for _ in range(2):
        with pytest.raises(StoreError, match="No space"):
            await store.commit([accepted(100, octets=20_000)])
    assert (directory / "reserve").exists()
    with pytest.raises(StoreError, match="No space"):
        await store.commit([settled(0)])
    # The reserve made room: outcomes and probes are recorded now.
    assert not (directory / "reserve").exists()
    await store.commit([])
    for number in range(20):
        await store.commit([settled(number)])
    await store.close()
    store = await opened(directory)
    assert not store.messages
    await store.close()
    assert not list((directory / "quarantine").iterdir())


async def test_on_a_full_disk_mail_is_taken_as_far_as_there_is_room(small_disk):
    directory = small_disk / "spool" / "shard-00"
    store = await opened(directory)
    await store.commit([accepted(0)])
    fill(small_disk / "others")
    taken = [0]
    with pytest.raises(StoreError, match="No space"):
        for number in range(1, 1000):
            await store.commit([accepted(number, octets=10_000)])
            taken.append(number)
    assert 45 < len(taken) < 55
    assert list(store.messages) == [name(number) for number in taken]
    await store.close()
    assert seen(directory.parent) == [name(number) for number in taken]
    assert not list((directory / "quarantine").iterdir())


async def test_the_reserve_comes_back_when_there_is_room(small_disk, monkeypatch):
    monkeypatch.setattr(writer, "RESERVE_INTERVAL", 0.0)
    store = await opened(small_disk / "shard-00")
    fill(small_disk / "others")
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.commit([settled(0), accepted(1, octets=5 << 20)])
    with pytest.raises(StoreError):
        await store.commit([])
    await store.commit([])
    assert not (small_disk / "shard-00" / "reserve").exists()
    (small_disk / "others").unlink()
    await store.commit([])
    assert (small_disk / "shard-00" / "reserve").stat().st_size == writer.RESERVE
    await store.close()


async def test_a_failed_group_leaves_no_bad_range(small_disk):
    store = await opened(small_disk / "shard-00")
    await store.commit([accepted(1)])
    fill(small_disk / "others")
    with pytest.raises(StoreError):
        await store.commit([accepted(2, octets=1 << 20), accepted(3)])
    (small_disk / "others").unlink()
    await store.commit([accepted(4)])
    with Viewer(small_disk) as viewer:
        assert [message.envelope.id for message in viewer.messages()] == [name(1), name(4)]
        assert (viewer.quarantined, viewer.torn) == (0, 0)
    # Never again on the descriptor that failed.
    assert segments(small_disk / "shard-00") == [1, 2]
    await store.close()


async def at_rest_soon(directory: Path) -> JournalStore:
    """A store of three messages whose bodies are in the first segment alone, which is sealed."""
    store = await opened(directory)
    for number in range(3):
        await store.commit([accepted(number, octets=30_000)])
    await store.close()
    return await opened(directory)


async def test_a_body_the_disk_refuses_for_a_while_moves_with_its_message(directory, monkeypatch):
    store = await at_rest_soon(directory)
    path = journal.segment_path(directory / "journal", 1)
    BadBlock(monkeypatch, path, 45_000, mover.READS - 1)
    for _ in range(mover.READS - 1):
        with pytest.raises(StoreError, match="Input/output error"):
            await store.seal()
        assert path.exists()
    await store.seal()
    assert not path.exists()
    assert await bodies(store) == {name(number): body(number, 30_000) for number in range(3)}
    await store.close()
    assert not list((directory / "quarantine").iterdir())


async def test_a_body_the_disk_refuses_for_good_keeps_its_segment_and_nobody_else(directory, monkeypatch):
    store = await at_rest_soon(directory)
    path = journal.segment_path(directory / "journal", 1)
    octets = path.read_bytes()
    bad = BadBlock(monkeypatch, path, 45_000, math.inf)
    for _ in range(mover.READS - 1):
        with pytest.raises(StoreError, match="Input/output error"):
            await store.seal()
    await store.seal()
    assert bad.refused >= mover.READS
    await assert_kept_without_the_second(store, directory, octets)


async def test_a_body_that_is_damaged_keeps_its_segment_and_nobody_else(directory):
    store = await at_rest_soon(directory)
    path = journal.segment_path(directory / "journal", 1)
    with path.open("r+b") as file:
        file.seek(45_000)
        file.write(b"?")
    octets = path.read_bytes()
    await store.seal()
    await assert_kept_without_the_second(store, directory, octets)


async def assert_kept_without_the_second(store: JournalStore, directory: Path, octets: bytes) -> None:
    """Its message is there, too: it never leaves without its body, and expires."""
    assert (list(store.messages), store.rest.count) == ([], 3)
    assert (directory / "quarantine" / "00000001.log").read_bytes() == octets
    for number in (0, 2):
        assert await store.rest.body(name(number)) == body(number, 30_000)
    with pytest.raises(StoreError, match="cannot be read"):
        await store.rest.body(name(1))
    await store.close()


async def test_a_move_never_stands_in_the_way_of_outcomes(small_disk):
    """On a full disk: neither by what it writes, nor by what it waits for."""
    directory = small_disk / "spool" / "shard-00"
    store = await opened(directory, segment_octets=SEGMENT)
    await store.commit([accepted(0, octets=SEGMENT // 2), accepted(1)])
    for number in range(2, 8):
        await store.commit([accepted(number, octets=SEGMENT), settled(number)])
    await store.commit([accepted(9, octets=SEGMENT)])
    fill(small_disk / "others")
    with pytest.raises(StoreError):
        await store.seal()
    with pytest.raises(StoreError, match="No space"):
        await store.commit([settled(1)] * 200)
    assert not (directory / "reserve").exists()
    await store.commit([settled(1)])
    assert list(store.messages) == [name(0), name(9)]
    await store.close()
    assert seen(directory.parent) == [name(0), name(9)]


async def test_a_held_index_thread_delays_no_outcome(directory, gate, eventually):
    store = await opened(directory)
    await store.commit([accepted(1), accepted(2)])
    sealing = asyncio.ensure_future(store.seal())
    await eventually(gate.waiting.is_set)
    for number in range(3, 20):
        await asyncio.wait_for(store.commit([accepted(number), settled(number)]), 5)
    assert not sealing.done()
    gate.open()
    await sealing
    await store.close()


async def test_a_start_on_a_full_disk(small_disk):
    directory = small_disk / "spool" / "shard-00"
    store = await opened(directory)
    await store.commit([accepted(1, octets=10_000)])
    await store.close()
    fill(small_disk / "others")
    store = await opened(directory)
    assert await store.rest.body(name(1)) == body(1, 10_000)
    # What waits can be delivered: the index was opened in the room of the reserve, and outcomes find room as well.
    assert not (directory / "reserve").exists()
    await store.commit([settled(1), settled(1)] * 200)
    assert not store.messages
    await store.close()


async def test_what_cannot_be_removed_stays_and_keeps_what_follows(directory, eventually):
    store = await opened(directory, segment_octets=SEGMENT)
    await store.commit([accepted(1, octets=SEGMENT)])
    obstacle = directory / "journal" / "00000001.gone"
    obstacle.mkdir()
    await store.commit([accepted(2, octets=SEGMENT)])
    await store.commit([settled(1), settled(2)])
    await store.commit([])
    assert segments(directory) == [1, 2, 3]
    await store.close()
    store = await opened(directory)
    assert not store.messages
    await store.close()
    obstacle.rmdir()
    store = await opened(directory)
    await eventually(lambda: segments(directory) == [5])
    await store.close()


async def test_a_body_outlives_a_move_that_failed(directory, no_index, monkeypatch):
    store = await opened(directory)
    await store.commit([accepted(1)])
    with pytest.raises(StoreError):
        await store.seal()
    monkeypatch.undo()
    await store.seal()
    assert await store.rest.body(name(1)) == body(1)
    await store.close()
    assert seen(directory.parent) == [name(1)]


async def test_what_was_half_moved_behind_a_segment_that_stayed_does_not_rise(directory, monkeypatch):
    """The oldest segment answers for nothing and is still there: the move that a crash cut was of a later one."""
    monkeypatch.setattr("relayd.spool.mover.MOVED_AT_ONCE", 1)
    store = await opened(directory)
    store.idle = lambda _name: False
    await store.commit([accepted(1)])
    store.rotate()
    await store._quiet.wait()
    await store.commit([accepted(2), accepted(3)])
    unlink, move, moves = Path.unlink, Index.move, iter(range(100))

    def stays(path: Path, *, missing_ok: bool = False) -> None:
        if path.suffix == ".log":
            raise OSError(5, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    def first(*arguments: object) -> None:
        if next(moves):
            raise OSError(28, "No space left on device")
        move(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stays)
        patch.setattr(Index, "move", first)
        await store.commit([settled(1)])
        with pytest.raises(StoreError):
            await store.seal()
        await store.close()
    store = await opened(directory)
    await store.commit([settled(2), settled(3)])
    await store.seal()
    await store.close()
    store = await opened(directory)
    assert (list(store.messages), await due(store)) == ([], [])
    await store.close()


async def test_an_index_that_cannot_be_opened_again_is_trouble_and_no_bug(directory):
    """It is closed for a fault, and the disk takes no new one: what rests is read again when it does."""
    store = await opened(directory)
    await store.commit([accepted(1)])
    await store.seal()
    await store.commit([accepted(2)])
    store.rotate()
    await store._quiet.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.seal()
            with contextlib.suppress(StoreError):
                assert await store.rest.body(name(1)) == body(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await store.commit([])
    await store.seal()
    assert await bodies(store) == {name(1): body(1), name(2): body(2)}
    await store.close()


async def test_the_index_is_closed_where_the_journal_cannot_be(directory, monkeypatch):
    store = await opened(directory)
    await store.commit([accepted(1)])
    closed = []
    close = Index.close

    def no_footer() -> None:
        raise OSError(28, "No space left on device")

    def counted(index: Index) -> None:
        closed.append(index)
        close(index)

    monkeypatch.setattr(store._writer, "close", no_footer)
    monkeypatch.setattr(Index, "close", counted)
    await store.close()
    assert len(closed) == 1


async def test_a_head_that_makes_no_sense_keeps_no_other(directory):
    store = await opened(directory)
    await store.commit([accepted(1), accepted(2), accepted(3)])
    await store.seal()
    nonsense = Put(name(2), b"nonsense", [Waiting("example.net", "user:alice", 2.0)], None)
    await store.rest.call(lambda index: index.move([nonsense], ()), writing=True)
    assert await due(store) == [name(1), name(3)]
    assert await due(store) == []
    assert store.rest.count == 1, "it stays where it is"
    await store.close()


async def test_a_removal_that_was_cut_off_is_ended_by_the_next_start(directory):
    """It had left the journal before a part of it went."""
    store = await opened(directory)
    await store.commit([accepted(1)])
    await store.close()
    leftover = directory / "journal" / "00000000.gone"
    leftover.write_bytes(bytes(100))
    store = await opened(directory)
    assert not leftover.exists()
    assert list(store.messages) == [name(1)]
    await store.close()


def test_a_large_file_is_removed_by_and_by(tmp_path, monkeypatch):
    file, sizes = tmp_path / "file", []
    file.write_bytes(bytes(5 * disk.STEP + 1))
    monkeypatch.setattr(disk.time, "sleep", lambda _pause: sizes.append(file.stat().st_size))
    disk.remove(file)
    assert sizes == [number * disk.STEP for number in (5, 4, 3, 2, 1)]
    assert not file.exists()


def test_what_has_another_name_is_not_shortened(tmp_path):
    file, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(bytes(2 * disk.STEP))
    file.hardlink_to(other)
    disk.remove(file)
    file.symlink_to(other)
    disk.remove(file)
    assert (file.exists(), other.stat().st_size) == (False, 2 * disk.STEP)


def test_who_reads_a_segment_that_is_being_removed_finds_it_gone(tmp_path):
    path = tmp_path / "00000001.log"
    path.write_bytes(bytes(1000))
    with SegmentReader(path) as reader:
        os.truncate(path, 500)
        assert reader.read(0, 500) == bytes(500)
        with pytest.raises(FileNotFoundError):
            reader.read(0, 1000)
