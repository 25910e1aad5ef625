"""An index that is damaged when a shard is opened: set aside as it is, saved as far as it goes, and counted."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from pathlib import Path

import pytest

from relayd import metrics
from relayd.spool import writer
from relayd.spool.records import State
from relayd.spool.shard import JournalStore
from relayd.spool.store import FormatError, StoreError
from tests.fakes.mail import accepted, body, name, result, settled

MESSAGES = 300


async def opened(directory: Path) -> JournalStore:
    store = JournalStore(directory, 0)
    await store.open()
    return store


@pytest.fixture
async def directory(tmp_path) -> Path:
    """A shard with mail at rest, closed; and one message in the journal."""
    made = tmp_path / "shard-00"
    store = await opened(made)
    await store.commit([accepted(number, octets=1000) for number in range(MESSAGES)])
    await store.seal()
    await store.commit([accepted(MESSAGES)])
    await store.close()
    return made


def quarantined() -> float:
    value = metrics.REGISTRY.get_sample_value("relayd_spool_quarantined_total")
    assert value is not None
    return value


async def due(store: JournalStore) -> set[str]:
    found = await store.rest.due(1e12, lanes=9, each=10**6, full=lambda _domain, _account: False)
    return {message.envelope.id for message in found}


async def test_the_first_page(directory):
    """Nothing but the places of the tables was in it, and these are known."""
    index = directory / "index.db"
    damaged = bytearray(index.read_bytes())
    damaged[:4096] = random.Random(1).randbytes(4096)
    index.write_bytes(damaged)
    before = quarantined()
    store = await opened(directory)
    assert store.rest.count == MESSAGES
    assert quarantined() == before
    (kept,) = (directory / "quarantine").iterdir()
    assert kept.read_bytes() == bytes(damaged)
    assert await due(store) == {name(number) for number in range(MESSAGES)}
    assert await store.rest.body(name(7)) == body(7, 1000)
    await store.commit([settled(number) for number in range(MESSAGES)])
    await store.seal()
    await store.close()
    store = await opened(directory)
    assert [*store.messages, *await due(store)] == [name(MESSAGES)]
    await store.close()


async def test_a_page_in_the_middle(directory):
    """Opening counts what is there, and meets the damage that way or not: nothing altered comes out."""
    index = directory / "index.db"
    damaged = bytearray(index.read_bytes())
    damaged[:100] = bytes(100)
    middle = len(damaged) // 8192 * 4096
    damaged[middle : middle + 4096] = bytes(4096)
    index.write_bytes(damaged)
    before = quarantined()
    store = await opened(directory)
    lost = MESSAGES - store.rest.count
    assert 0 < lost < MESSAGES // 3
    assert quarantined() == before + lost
    for message in await due(store):
        assert await store.rest.body(message) == body(int(message[3:], 16), 1000)
    await store.close()


async def test_nothing_of_it(directory):
    (directory / "index.db").write_bytes(b"")
    store = await opened(directory)
    assert store.rest.count == 0
    assert list(store.messages) == [name(MESSAGES)]
    await store.seal()
    assert store.rest.count == 1
    await store.close()


async def test_an_index_of_another_program_is_refused_and_left_alone(directory):
    index = directory / "index.db"
    index.unlink()
    with contextlib.closing(sqlite3.connect(index)) as other:
        other.execute("CREATE TABLE mine(one INTEGER)")
    content = index.read_bytes()
    with pytest.raises(FormatError, match="not an index of relayd"):
        await opened(directory)
    assert index.read_bytes() == content
    assert not list((directory / "quarantine").iterdir())


async def test_an_irregular_file_is_refused(directory):
    (directory / "index.db").unlink()
    os.mkfifo(directory / "index.db")
    with pytest.raises(StoreError, match="not a regular file"):
        await opened(directory)
    (directory / "index.db").unlink()
    store = await opened(directory)
    assert list(store.messages) == [name(MESSAGES)]
    await store.close()


async def test_leftovers_of_a_renewal_that_was_cut_off(directory):
    for leftover in ("index.new.db", "index.new.db-wal", "index.db.new"):
        (directory / leftover).write_bytes(b"half of something")
    index = directory / "index.db"
    index.write_bytes(bytes(4096) + index.read_bytes()[4096:])
    store = await opened(directory)
    assert store.rest.count == MESSAGES
    assert not (directory / "index.new.db").exists()
    await store.close()


async def test_on_a_full_disk_what_rests_is_delivered(small_disk):
    directory = small_disk / "shard-00"
    store = await opened(directory)
    await store.commit([accepted(number, octets=1000) for number in range(20)])
    await store.seal()
    await store.close()
    assert (directory / "reserve").stat().st_size == writer.RESERVE
    with (small_disk / "others").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    store = await opened(directory)
    assert not (directory / "reserve").exists()
    assert len(await due(store)) == 20
    for number in range(20):
        assert await store.rest.body(name(number)) == body(number, 1000)
        await store.commit([settled(number)])
    await store.close()
    (small_disk / "others").unlink()
    store = await opened(directory)
    assert (list(store.messages), store.rest.count, await due(store)) == ([], 0, set())
    await store.close()


@pytest.fixture
async def leaf(directory) -> Path:
    """The shard with a damaged page in the middle of its messages: nobody reads it but who needs it."""
    index = directory / "index.db"
    octets = bytearray(index.read_bytes())
    pages = [at for at in range(0, len(octets), 4096) if b"sender@example.org" in octets[at : at + 4096]]
    at = octets.index(b"sender@example.org", pages[len(pages) // 2])
    octets[at] ^= 1
    index.write_bytes(octets)
    return directory


async def test_a_page_that_is_found_damaged_when_it_is_read(leaf):
    store = await opened(leaf)
    assert store.rest.count == MESSAGES
    await store.commit([accepted(1000)])
    found = await due(store)
    assert MESSAGES - 40 < len(found) < MESSAGES
    assert store.rest.count == 0
    for message in found:
        assert await store.rest.body(message) == body(int(message[3:], 16), 1000)
    await store.seal()
    assert store.rest.count == 2, "what did not change since is asked for once"
    await store.close()
    assert len(list((leaf / "quarantine").glob("index-*.db"))) == 1


async def test_a_page_that_is_found_damaged_where_the_journal_tells_of_it(directory):
    store = await opened(directory)
    await due(store)
    await store.commit([settled(number, result(state=State.DEFERRED)) for number in range(MESSAGES)])
    await store.close()
    index = directory / "index.db"
    octets = bytearray(index.read_bytes())
    octets[octets.index(b"sender@example.org", len(octets) // 2)] ^= 1
    index.write_bytes(octets)
    store = await opened(directory)
    assert MESSAGES - 40 < len(store.messages) <= MESSAGES
    assert store.rest.count == 0
    await store.close()


async def test_what_is_in_memory_is_written_again_to_the_new_index(leaf):
    """The page that is lost had mail that was taken back into memory meanwhile."""
    store = await opened(leaf)
    everyone = [name(number) for number in range(MESSAGES)]
    for message in everyone[:5]:
        assert await store.rest.take(message)
    octets = bytearray((leaf / "index.db").read_bytes())
    for at in range(4096, len(octets), 4096):
        if any(bytes.fromhex(message[3:]) in octets[at : at + 4096] for message in everyone[:5]):
            octets[at : at + 4096] = bytes(4096)
    (leaf / "index.db").write_bytes(octets)
    await due(store)
    await store.commit([])
    await store.seal()
    await store.close()
    store = await opened(leaf)
    assert {*everyone[:5]} <= {*store.messages, *await due(store)}
    await store.close()


@pytest.mark.parametrize("log_too", [False, True])
async def test_a_crash_between_the_old_index_and_the_new(directory, log_too):
    """The new one was whole before the old one went."""
    (directory / "index.db").rename(directory / "index.new.db")
    if not log_too:
        (directory / "index.db-wal").write_bytes(b"of the old one" * 100)
    store = await opened(directory)
    assert store.rest.count == MESSAGES
    assert await due(store) == {name(number) for number in range(MESSAGES)}
    await store.close()


async def test_a_log_without_its_file(directory):
    """Nothing can be read of that; it is kept."""
    (directory / "index.db").unlink()
    (directory / "index.db-wal").write_bytes(b"of the old one" * 100)
    store = await opened(directory)
    assert (store.rest.count, list(store.messages)) == (0, [name(MESSAGES)])
    assert [file.read_bytes() for file in (directory / "quarantine").iterdir()] == [b"of the old one" * 100]
    await store.close()
