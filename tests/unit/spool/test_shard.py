"""The embedded engine: group commit, segments' lives, and real faults of the disk."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd import metrics
from relayd.spool import journal, recovery, shard, writer
from relayd.spool.records import Accepted, State
from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreError
from tests.fakes.mail import accepted, body, name, result, settled

SEGMENT = 64 * 1024


def segments(directory: Path) -> list[int]:
    return journal.segment_numbers(directory / "journal")


def octets(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "journal").iterdir())


async def opened(directory: Path, **kwargs: int) -> JournalStore:
    store = JournalStore(directory, 0, **kwargs)
    await store.open()
    return store


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
    assert {n: m.body for n, m in store.messages.items()} == {name(n): body(n) for n in range(2000)}
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
    assert recovery.read_only(directory.parent).torn == 0
    await store.close()


async def test_an_empty_queue_leaves_a_small_journal(directory, eventually):
    store = await opened(directory)
    await store.commit([accepted(1, octets=shard.TIDY_OCTETS)])
    await store.commit([settled(1)])
    await eventually(lambda: segments(directory) == [2])
    assert octets(directory) == journal.HEADER
    await store.commit([accepted(2)])
    await store.commit([settled(2)])
    await store.close()
    assert segments(directory) == [2]
    store = await opened(directory)
    await eventually(lambda: segments(directory) == [3])
    await store.close()


async def test_one_stuck_message_does_not_keep_the_journal(directory):
    store = await opened(directory, segment_octets=SEGMENT)
    stuck = accepted(0, octets=3000, recipients=3)
    await store.commit([stuck])
    await store.commit([settled(0, result(0), result(1, State.DEFERRED, attempts=2))])
    rng = random.Random(2)
    for number in range(1, 400):
        await store.commit([accepted(number, octets=rng.randrange(200, 8000))])
        await store.commit([settled(number)])
        # Twice what lives, four segments, and the one being written.
        assert octets(directory) <= 2 * 4000 + (shard.SPARE_SEGMENTS + 1.5) * SEGMENT
    assert segments(directory)[0] > 15
    await store.close()
    store = await opened(directory)
    (message,) = store.messages.values()
    assert (message.envelope, message.body) == (stuck.envelope, stuck.body)
    assert message.results == [result(0), result(1, State.DEFERRED, attempts=2), None]
    await store.close()


async def test_an_outcome_beside_its_message_being_carried_forward_counts(directory):
    store = await opened(directory, segment_octets=SEGMENT)
    stuck = set(range(1000, 1010))
    await store.commit([accepted(number) for number in sorted(stuck)])
    first = segments(directory)[0]
    while stuck:
        # The second waits while the first is written, and shares the next group with whatever is carried forward.
        filler = store.commit([accepted(1, octets=SEGMENT), settled(1)])
        await asyncio.sleep(0)
        assert store.load == 1
        number = stuck.pop()
        outcome = store.commit([settled(number)])
        await asyncio.gather(filler, outcome)
        assert set(store.messages) == {name(n) for n in stuck}
    assert segments(directory)[0] > first, "nothing was carried forward"
    await store.close()
    assert recovery.read_only(directory.parent).messages == []


async def test_traffic_of_every_kind_is_found_again_after_many_restarts(directory):
    """A model beside the store: small segments, outcomes in any order, notifications, some mail never settled."""
    rng = random.Random(3)
    model: dict[str, Accepted] = {}
    numbers = iter(range(10**9))
    for _ in range(8):
        store = await opened(directory, segment_octets=SEGMENT)
        assert {n: m.body for n, m in store.messages.items()} == {n: a.body for n, a in model.items()}
        for _ in range(60):
            commits = []
            for _ in range(rng.randrange(6)):
                new = accepted(next(numbers), octets=rng.randrange(10_000))
                model[new.envelope.id] = new
                commits.append(store.commit([new]))
            live = sorted(model.keys() & store.messages.keys())
            for old in rng.sample(live, min(len(live), rng.randrange(6))):
                number = int(model.pop(old).envelope.accepted_at)
                note = accepted(next(numbers), octets=500) if rng.random() < 0.1 else None
                if note is not None:
                    model[note.envelope.id] = note
                commits.append(store.commit([settled(number, notification=note)]))
            await asyncio.gather(*commits)
        await store._quiet.wait()  # finished segments are unlinked behind the commits
        assert store._ledger.octets - octets(directory) in range(-200, 200)
        await store.close()


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own with room for 16 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mount]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(size))


async def test_a_full_disk_takes_no_mail_but_records_outcomes(small_disk):
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
    recovered = recovery.read_only(small_disk)
    assert [message.envelope.id for message in recovered.messages] == [name(1), name(4)]
    assert (recovered.quarantined, recovered.torn) == (0, 0)
    # Never again on the descriptor that failed.
    assert segments(small_disk / "shard-00") == [1, 2]
    await store.close()


async def test_carrying_forward_never_stands_in_the_way_of_outcomes(small_disk, monkeypatch):
    directory = small_disk / "spool" / "shard-00"
    monkeypatch.setattr(shard, "SPARE_SEGMENTS", 1000)
    store = await opened(directory, segment_octets=SEGMENT)
    await store.commit([accepted(0, octets=SEGMENT // 2), accepted(1)])
    for number in range(2, 8):
        await store.commit([accepted(number, octets=SEGMENT), settled(number)])
    fill(small_disk / "others")
    monkeypatch.setattr(shard, "SPARE_SEGMENTS", 0)
    for _ in range(2):
        with pytest.raises(StoreError, match="No space"):
            await store.commit([settled(1)])
    assert not (directory / "reserve").exists()
    await store.commit([settled(1)])
    assert list(store.messages) == [name(0)]
    await store.close()
    assert [message.envelope.id for message in recovery.read_only(directory.parent).messages] == [name(0)]


async def test_a_start_on_a_full_disk(small_disk):
    directory = small_disk / "spool" / "shard-00"
    store = await opened(directory)
    await store.commit([accepted(1, octets=10_000)])
    await store.close()
    fill(small_disk / "others")
    store = await opened(directory)
    assert store.messages[name(1)].body == body(1, 10_000)
    with pytest.raises(StoreError, match="No space"):
        await store.commit([settled(1), settled(1)] * 200)
    await store.commit([settled(1)])
    assert not store.messages
    await store.close()


async def test_what_cannot_be_unlinked_stays_and_keeps_what_follows(directory, eventually):
    store = await opened(directory, segment_octets=SEGMENT)
    await store.commit([accepted(1, octets=SEGMENT)])
    first = journal.segment_path(directory / "journal", 1)
    saved = first.read_bytes()
    first.unlink()
    first.mkdir()
    await store.commit([accepted(2, octets=SEGMENT)])
    await store.commit([settled(1), settled(2)])
    await store.commit([])
    assert segments(directory) == [1, 2, 3]
    first.rmdir()
    first.write_bytes(saved)
    await store.close()
    store = await opened(directory)
    assert not store.messages
    await eventually(lambda: segments(directory) == [4])
    await store.close()
