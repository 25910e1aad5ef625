"""Body files: whole and durable, or gone; checked before they are read; orphans removed, but nothing in doubt."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.smtp.framing import stuffed
from relayd.spool import bodyfile, journal
from relayd.spool.bodies import Bodies, Writing
from relayd.spool.bodyfile import HEADER, BodyError, NewFile, SoundFile, path_of, sweep
from relayd.spool.memory import Memory
from relayd.spool.records import Accepted, Filed
from relayd.spool.shard import JournalStore
from tests.fakes.mail import accepted, name, settled

TEXT = b"Subject: x\r\n\r\n" + b".line\r\n" * 60_000


class Shard:
    def __init__(self, path: Path) -> None:
        self.directory, self.quarantine = path / "bodies", path / "quarantine"
        for directory in (self.directory, self.quarantine):
            directory.mkdir()
        self.memory = Memory(10**9)
        self.bodies = Bodies(self.directory, self.quarantine)

    def path(self, number: int) -> Path:
        return path_of(self.directory, name(number))

    def files(self) -> list[str]:
        return sorted(file for _, _, files in os.walk(self.directory) for file in files)

    def aside(self) -> list[str]:
        return sorted(path.name for path in self.quarantine.iterdir())

    def descriptors(self) -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link).startswith(str(self.directory)) for link in links)

    async def write(self, number: int, text: bytes = TEXT) -> Filed:
        writing = self.bodies.write(name(number), self.memory)
        for start in range(0, len(text), 50_000):
            writing.write(text[start : start + 50_000])
        return await writing.finish()


@pytest.fixture
async def shard(tmp_path) -> AsyncIterator[Shard]:
    made = Shard(tmp_path)
    yield made
    assert made.memory.used == 0
    made.bodies.close()


async def test_what_is_written_is_read(shard):
    filed = await shard.write(1)
    assert filed.octets == len(TEXT)
    reading = await shard.bodies.read(name(1), filed, shard.memory)
    for _ in range(2):
        stream, parts = reading.stream(), []
        while part := await stream.next():
            parts.append(part)
        assert b"".join(parts) == stuffed(TEXT)
    stream, parts = reading.stream(stuffed=False), []
    while part := await stream.next():
        parts.append(part)
    assert b"".join(parts) == TEXT[:-1], "the last octet is the caller's to send"
    assert await reading.header() == b"Subject: x\r\n"
    assert shard.memory.used == 2 * bodyfile.READ
    reading.close()
    shard.bodies.remove(name(1))


async def test_what_waits_counts_until_it_is_written(shard, monkeypatch, eventually):
    go = threading.Event()
    append = NewFile.append
    monkeypatch.setattr(NewFile, "append", lambda self, parts: (go.wait(10), append(self, parts)))
    writing = shard.bodies.write(name(1), shard.memory)
    told = []
    writing.changed = lambda: told.append(writing.waiting)
    for _ in range(3):
        writing.write(b"x" * 998 + b"\r\n")
    assert writing.waiting == shard.memory.used == 3000
    go.set()
    await eventually(lambda: len(told) == 2)
    assert told == [2000, 0], "the first, then all that had gathered"
    assert (await writing.finish()).octets == 3000


@pytest.mark.parametrize("moment", ["nothing written", "first waits", "written", "finishing"])
async def test_discarded_at_any_moment(shard, moment, eventually):
    writing = shard.bodies.write(name(1), shard.memory)
    if moment != "nothing written":
        writing.write(TEXT)
    if moment == "written":
        await eventually(lambda: writing.waiting == 0)
        assert shard.files() == [name(1)]
    finished = writing.finish() if moment == "finishing" else None
    writing.discard()
    writing.discard()
    writing.write(TEXT)
    await eventually(lambda: shard.memory.used == 0)
    await eventually(lambda: shard.files() == [])
    await eventually(lambda: not shard.descriptors())
    if finished is None:
        with pytest.raises(OSError):
            await writing.finish()


@pytest.mark.parametrize("step", ["append", "seal"])
async def test_after_a_failure_nothing_is_tried_again(shard, monkeypatch, step, eventually):
    calls = []

    def failing(self, *args):
        calls.append(step)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(NewFile, step, failing)
    writing = shard.bodies.write(name(1), shard.memory)
    writing.write(TEXT)
    with pytest.raises(OSError, match="broken"):
        await writing.finish()
    writing.write(TEXT)
    await eventually(lambda: shard.files() == [])
    assert calls == [step]
    assert writing.error is not None and writing.error.errno == errno.EIO


async def test_closed_while_it_is_written(shard):
    writing = shard.bodies.write(name(1), shard.memory)
    shard.bodies.close()
    writing.write(TEXT)
    assert writing.error is not None
    with pytest.raises(OSError, match="closed"):
        await writing.finish()
    shard.bodies.remove(name(1))


def damaged(shard: Shard, how: str) -> None:
    path = shard.path(1)
    raw = bytearray(path.read_bytes())
    match how:
        case "body":
            raw[-5] ^= 1
        case "magic":
            raw[0] ^= 1
        case "another's":
            raw = bytearray(bodyfile.header(name(2), len(TEXT), journal.crc32(TEXT)) + TEXT)
        case "newer":
            head = bodyfile._HEAD.pack(b"relaydB\n", 2, 0, name(1).encode(), len(TEXT), journal.crc32(TEXT))
            raw[:HEADER] = head + journal.crc32(head).to_bytes(4, "big")
        case "longer":
            raw += b"x"
        case "unfinished":
            raw[:HEADER] = bytes(HEADER)
        case "empty":
            raw.clear()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["body", "magic", "another's", "newer", "longer", "unfinished", "empty"])
async def test_a_damaged_file_is_set_aside(shard, how):
    filed = await shard.write(1)
    damaged(shard, how)
    with pytest.raises(BodyError, match="newer" if how == "newer" else None):
        await shard.bodies.read(name(1), filed, shard.memory)
    assert (shard.files(), shard.aside()) == ([], [f"{name(1)}.body"])
    with pytest.raises(BodyError, match="missing"):
        await shard.bodies.read(name(1), filed, shard.memory)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "hard link", "symlinked directory"])
async def test_only_plain_files_are_read(shard, kind, tmp_path):
    filed = await shard.write(1)
    path, real = shard.path(1), tmp_path / "real"
    if kind == "symlinked directory":
        path.parent.rename(real)
        path.parent.symlink_to(real)
    else:
        path.rename(real)
        match kind:
            case "symlink":
                path.symlink_to(real)
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "hard link":
                os.link(real, path)
    with pytest.raises(BodyError):
        await asyncio.wait_for(shard.bodies.read(name(1), filed, shard.memory), 5)
    assert real.exists()


async def test_a_disk_that_cannot_read_condemns_nothing(shard, monkeypatch):
    filed = await shard.write(1)

    def broken(self, offset):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(SoundFile, "read", broken)
        with pytest.raises(OSError, match="broken"):
            await shard.bodies.read(name(1), filed, shard.memory)
    (await shard.bodies.read(name(1), filed, shard.memory)).close()


@pytest.mark.parametrize("text", [b"a\nb\r\n", b"a\rb\r\n", b"a\0\r\n", b"no end", b"a\r"])
async def test_a_forged_body_does_not_smuggle(shard, text):
    """Record and file may agree, and still not be what was taken off a client."""
    filed = await shard.write(1, text)
    with pytest.raises(BodyError):
        await shard.bodies.read(name(1), filed, shard.memory)


async def test_cancelled_while_it_is_checked(shard, monkeypatch, eventually):
    filed = await shard.write(1)
    go = threading.Event()
    check = SoundFile._check_body
    monkeypatch.setattr(SoundFile, "_check_body", lambda self: (go.wait(10), check(self)))
    reading = asyncio.ensure_future(shard.bodies.read(name(1), filed, shard.memory))
    await eventually(shard.descriptors)
    reading.cancel()
    await asyncio.wait([reading])
    go.set()
    await eventually(lambda: not shard.descriptors())


# --- the sweep ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doubt", [False, True])
async def test_orphans(shard, doubt):
    for number in (1, 2):
        await shard.write(number)
    assert sweep(shard.directory, shard.quarantine, {name(1)}, doubt=doubt) == ((0, 1) if doubt else (1, 0))
    assert shard.files() == [name(1)]
    assert shard.aside() == ([f"{name(2)}.body"] if doubt else [])


async def test_what_is_not_ours_is_never_deleted(shard):
    (shard.directory / "notes").write_text("x")
    (shard.directory / "ab").mkdir()
    (shard.directory / "ab" / name(5)).write_text("wrong directory")
    shard.path(6).parent.mkdir()
    shard.path(6).symlink_to("/etc/passwd")
    (shard.directory / "link").symlink_to("/etc")
    (shard.quarantine / "notes.body").write_text("older")
    assert sweep(shard.directory, shard.quarantine, (), doubt=False) == (0, 4)
    assert shard.aside() == sorted([f"{name(5)}.body", f"{name(6)}.body", "link.body", "notes.body", "notes.body.1"])
    assert Path("/etc/passwd").exists()


async def filed_in(store: JournalStore, number: int, memory: Memory) -> Filed:
    writing = store.bodies.write(name(number), memory)
    writing.write(TEXT)
    return await writing.finish()


async def test_a_damaged_journal_keeps_every_body(tmp_path):
    """The first start after the damage may fail behind setting it aside: the second one still doubts."""
    store, memory = JournalStore(tmp_path / "shard-00", 0), Memory(10**9)
    await store.open()
    for number in (1, 2):
        filed = await filed_in(store, number, memory)
        await store.commit((Accepted(accepted(number).envelope, filed),))
    await store.close()
    segment = tmp_path / "shard-00" / "journal" / "00000001.log"
    raw = bytearray(segment.read_bytes())
    raw[raw.index(name(2).encode()) + 30] ^= 1
    segment.write_bytes(raw)
    for _ in range(2):
        again = JournalStore(tmp_path / "shard-00", 0)
        recovered = await again.open()
        assert [message.envelope.id for message in recovered.messages] == [name(1)]
        assert (tmp_path / "shard-00" / "quarantine" / f"{name(2)}.body").exists()
        await again.close()
    assert path_of(tmp_path / "shard-00" / "bodies", name(1)).exists()


async def test_done_while_the_process_ends(tmp_path):
    """Settled, and not yet unlinked: the next start does it."""
    store, memory = JournalStore(tmp_path / "shard-00", 0), Memory(10**9)
    await store.open()
    filed = await filed_in(store, 1, memory)
    await store.commit((Accepted(accepted(1).envelope, filed),))
    await store.commit((settled(1),))
    await store.close()
    again = JournalStore(tmp_path / "shard-00", 0)
    await again.open()
    assert not path_of(tmp_path / "shard-00" / "bodies", name(1)).exists()
    assert not any((tmp_path / "shard-00" / "quarantine").iterdir())
    await again.close()


async def test_a_bug_in_a_thread_is_an_error_of_the_disk(shard, monkeypatch):
    monkeypatch.setattr(NewFile, "append", lambda self, parts: 1 / 0)
    writing: Writing = shard.bodies.write(name(1), shard.memory)
    writing.write(TEXT)
    with pytest.raises(OSError, match="division"):
        await writing.finish()
