"""Recovery: whatever happens to the files, nothing altered comes out, and what is lost is set aside and counted."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd.spool import journal, recovery, writer
from relayd.spool.records import Record, Settled, State
from relayd.spool.recovery import Replay
from relayd.spool.store import FormatError
from relayd.spool.viewer import Viewer
from relayd.spool.writer import Writer
from tests.fakes.mail import accepted, body, name, result, settled

BATCHES: list[list[Record]] = [
    [accepted(1), accepted(2)],
    [settled(1), accepted(3)],
    [settled(2, result(state=State.FAILED), notification=accepted(4)), accepted(5)],
    [],
    [accepted(6), settled(5, result(state=State.DEFERRED))],
]
LIVE = {name(n): body(n) for n in (3, 4, 5, 6)}


@pytest.fixture(autouse=True, params=[0, 4000])
def room(request, monkeypatch):
    """Octets of zeros that the writer writes ahead: none, as versions before did, or few, so that each can be tried."""
    monkeypatch.setattr(writer, "ROOM", bytes(request.param))
    return request.param


def write(directory: Path, *segments: Sequence[Sequence[Record]], seal: bool = False) -> Path:
    """A shard with these segments; the last ends as after a crash unless it is sealed. The last segment's path."""
    (directory / "journal").mkdir(parents=True, exist_ok=True)
    (directory / "quarantine").mkdir(exist_ok=True)
    number = max(journal.segment_numbers(directory / "journal"), default=0)
    writer = Writer(directory, number=number, sequence=Replay(directory, 0).sequence, epoch=1, limit=1 << 26)
    for batches in segments:
        writer.rotate()
        for batch in batches:
            position = writer.append([journal.encode(record) for record in batch])
    if seal:
        writer.close()
    return journal.segment_path(directory / "journal", position.segment)


def put(path: Path, data: bytes) -> None:
    # ext4 flushes a file that is cut to nothing and written again: a thousand times here.
    path.unlink()
    path.write_bytes(data)


def bodies(replay: Replay, directory: Path) -> dict[str, bytes]:
    """What is found, read where the ledger says it lies: a replay itself keeps none."""
    assert all(message.body is None for message in replay.ledger.messages.values())
    found = {}
    for message in replay.ledger.messages:
        place = replay.ledger.place(message)
        assert place is not None
        with journal.SegmentReader(journal.segment_path(directory / "journal", place.segment)) as reader:
            found[message] = reader.body(place)
    return found


def frames(path: Path) -> list[journal.Frame]:
    with journal.SegmentReader(path) as reader:
        return [part for part in reader.contents() if isinstance(part, journal.Frame)]


def quarantine(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "quarantine").iterdir()}


def test_an_untouched_journal(tmp_path):
    write(tmp_path, BATCHES[:2], BATCHES[2:], seal=True)
    replay = recovery.recover(tmp_path, 0)
    assert bodies(replay, tmp_path) == LIVE
    assert replay.losses == []
    assert replay.ledger.messages[name(5)].results == [result(state=State.DEFERRED)]


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_every_octet_flipped(tmp_path, seal, last):
    path = write(tmp_path, BATCHES, seal=seal)
    if not last:
        write(tmp_path, [[accepted(9)]])
    expected = LIVE if last else {**LIVE, name(9): body(9)}
    everything = {name(n): body(n) for n in range(10)}
    data = path.read_bytes()
    tail = frames(path)[-1].offset
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        put(path, flipped)
        replay = Replay(tmp_path, 0)
        found = bodies(replay, tmp_path)
        assert found.items() <= everything.items(), f"altered by octet {position}"
        (loss,) = replay.losses
        assert loss.offset <= position < loss.offset + loss.octets
        assert loss.torn == (last and position >= tail)
        lost = data[loss.offset : loss.offset + loss.octets]
        for absent in expected.keys() - found.keys():
            assert expected[absent] in lost, f"octet {position} took a message that is not in the quarantine"


@pytest.mark.parametrize("seal", [False, True])
def test_every_truncation_of_the_last_segment(tmp_path, seal):
    path = write(tmp_path, BATCHES, seal=seal)
    data = path.read_bytes()
    batches = [frame.end for frame in frames(path)]
    ends = {0, journal.HEADER, *batches}
    for length in range(len(data)):
        put(path, data[:length])
        replay = Replay(tmp_path, 0)
        assert bodies(replay, tmp_path) == live_after(sum(end <= length for end in batches))
        start = max(end for end in ends if end <= length)
        torn = data[start:length].rstrip(b"\0")
        assert [(loss.offset, loss.octets, loss.torn) for loss in replay.losses] == (
            [(start, len(torn), True)] if torn else []
        )


def test_every_truncation_of_an_earlier_segment_is_noticed(tmp_path):
    path = write(tmp_path, BATCHES, [[accepted(9)]])
    path = journal.segment_path(tmp_path / "journal", 1)
    data = path.read_bytes()
    for length in range(len(data)):
        put(path, data[:length])
        replay = Replay(tmp_path, 0)
        assert bodies(replay, tmp_path).items() <= {name(n): body(n) for n in range(10)}.items()
        assert name(9) in bodies(replay, tmp_path)
        # Cut in a frame: that range. Cut between frames: the sequence jumps. Without its first frame there is no base.
        assert [loss.torn for loss in replay.losses] == ([] if length in (0, journal.HEADER) else [False]), length


def live_after(batches: int) -> dict[str, bytes]:
    live: dict[str, bytes] = {}
    for record in (record for batch in BATCHES[:batches] for record in batch):
        if isinstance(record, Settled):
            if record.results[0].state.final:
                live.pop(record.message)
            if record.notification is not None:
                live[record.notification.envelope.id] = record.notification.body
        else:
            live[record.envelope.id] = record.body
    return live


def test_octets_inserted_and_removed_anywhere(tmp_path):
    path = write(tmp_path, BATCHES, [[accepted(9)]])
    path = journal.segment_path(tmp_path / "journal", 1)
    data = path.read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        start, length = rng.randrange(len(data)), rng.randrange(1, 300)
        put(path, data[:start] + rng.randbytes(rng.randrange(300)) + data[start + length :])
        replay = Replay(tmp_path, 0)
        assert bodies(replay, tmp_path).items() <= {name(n): body(n) for n in range(10)}.items()
        assert name(9) in bodies(replay, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"garbage" * 500, b"\xf1RLF" * 5000])
def test_a_file_of_anything_else(tmp_path, content):
    write(tmp_path, BATCHES)
    journal.segment_path(tmp_path / "journal", 2).write_bytes(content)
    write(tmp_path, [[accepted(9)]])
    replay = recovery.recover(tmp_path, 0)
    assert bodies(replay, tmp_path) == {**LIVE, name(9): body(9)}
    assert quarantine(tmp_path) == ({"00000002-0.bad": content} if content else {})
    assert len(replay.losses) == bool(content)


def test_a_damaged_record_takes_no_other_with_it(tmp_path):
    path = write(tmp_path, BATCHES)
    frame = frames(path)[2]
    row = frame.rows[1]
    data = bytearray(path.read_bytes())
    data[row.offset + row.octets - 1] ^= 1
    put(path, data)
    replay = recovery.recover(tmp_path, 0)
    assert bodies(replay, tmp_path) == {name(n): body(n) for n in (3, 4, 6)}
    kept = {f"00000001-{row.offset}.bad": bytes(data[row.offset : row.offset + row.octets])}
    assert quarantine(tmp_path) == kept
    assert path.read_bytes() == data


def test_a_range_is_counted_and_set_aside_once(tmp_path):
    path = write(tmp_path, BATCHES)
    data = bytearray(path.read_bytes())
    data[frames(path)[1].offset] ^= 1
    put(path, data)
    assert [loss.torn for loss in recovery.recover(tmp_path, 0).losses] == [False]
    kept = quarantine(tmp_path)
    write(tmp_path, [[accepted(9)]])
    assert recovery.recover(tmp_path, 0).losses == []
    assert quarantine(tmp_path) == kept


def test_a_torn_tail_is_set_aside_whole_and_never_comes_back(tmp_path):
    path = write(tmp_path, BATCHES)
    data = path.read_bytes()
    tail = frames(path)[-1]
    # As a power cut leaves it: the head and the first record are there, the end is zeros.
    torn = data[: tail.end - 20] + bytes(20)
    put(path, torn + data[tail.end :])
    for counted in (1, 0):
        replay = recovery.recover(tmp_path, 0)
        assert bodies(replay, tmp_path) == {name(n): body(n) for n in (3, 4, 5)}
        assert [loss.torn for loss in replay.losses] == [True] * counted
        assert quarantine(tmp_path) == {f"00000001-{tail.offset}.torn": torn[tail.offset :]}
        # The next owner's segment makes the torn one an earlier one.
        writer = Writer(tmp_path, number=1 + (not counted), sequence=replay.sequence, epoch=2, limit=1 << 26)
        writer.rotate()
        writer.append([])


def test_without_room_in_the_quarantine_the_segment_is_kept(tmp_path):
    path = write(tmp_path, [[accepted(1)], [accepted(2), settled(1)]], [[settled(2)]])
    path = journal.segment_path(tmp_path / "journal", 1)
    data = bytearray(path.read_bytes())
    data[frames(path)[0].offset] ^= 1
    put(path, data)
    shutil.rmtree(tmp_path / "quarantine")
    replay = recovery.recover(tmp_path, 0)
    assert len(replay.losses) == 1
    assert not replay.ledger.messages
    assert [(segment.number, segment.kept) for segment in replay.ledger.removable()] == [(1, True)]
    (tmp_path / "quarantine").mkdir()
    again = recovery.recover(tmp_path, 0)
    assert [(segment.number, segment.kept) for segment in again.ledger.removable()] == [(1, False)]


def test_irregular_files_are_set_aside_as_they_are(tmp_path):
    write(tmp_path, BATCHES)
    directory = tmp_path / "journal"
    os.mkfifo(directory / "00000005.log")
    (directory / "00000006.log").symlink_to("/dev/zero")
    replay = recovery.recover(tmp_path, 0)
    assert bodies(replay, tmp_path) == LIVE
    assert len(replay.losses) == 2
    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["00000005-0.bad", "00000006-0.bad"]
    assert (tmp_path / "quarantine" / "00000006-0.bad").is_symlink()
    assert recovery.recover(tmp_path, 0).losses == []


def test_a_newer_format_changes_nothing(tmp_path):
    write(tmp_path, BATCHES)
    (tmp_path / "journal" / "00000001.log").write_bytes((tmp_path / "journal" / "00000001.log").read_bytes()[:-1])
    header = bytearray(journal.file_header(1, 1)[:-4])
    header[9] = 2
    newer = tmp_path / "journal" / "00000002.log"
    newer.write_bytes(header + journal._CRC.pack(journal.crc32(header)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FormatError):
        recovery.recover(tmp_path, 0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_footer_that_tells_of_other_frames_is_counted(tmp_path):
    path = write(tmp_path, BATCHES, seal=True)
    *_, last, footer = frames(path)
    digest = journal.Digest()
    digest.add(last.head, len(last.rows))
    salt = int.from_bytes(footer.head[4:12], "big")
    forged = journal.frame([digest.seal()], salt=salt, sequence=footer.sequence, offset=footer.offset)
    put(path, path.read_bytes()[: footer.offset] + b"".join(forged))
    replay = recovery.recover(tmp_path, 0)
    assert bodies(replay, tmp_path) == LIVE
    assert [(loss.offset, loss.octets) for loss in replay.losses] == [(footer.offset, 0)]


def test_an_outcome_without_its_message_still_brings_its_notification(tmp_path):
    write(tmp_path, [[settled(1, result(state=State.FAILED), notification=accepted(2))]])
    assert bodies(Replay(tmp_path, 0), tmp_path) == {name(2): body(2)}


def test_a_segment_the_index_has_taken_is_not_read_and_goes_where_nothing_is_deleted(tmp_path):
    write(tmp_path, BATCHES[:2], BATCHES[2:])
    asked = []

    def known(names):
        asked.append(set(names))
        return [name(5)]

    replay = Replay(tmp_path, 0, taken=1, known=known)
    assert bodies(replay, tmp_path) == {name(n): body(n) for n in (4, 5, 6)}
    assert [(segment.number, segment.kept) for segment in replay.ledger.removable()] == [(1, True)]
    # An outcome of what is not in the journal is of something in the index.
    assert list(replay.ledger.strays) == [name(2)]
    assert replay.ledger.indexed == {name(5)}
    assert {name(4), name(5), name(6)} in asked


def test_a_look_at_every_shard_changes_nothing(tmp_path):
    write(tmp_path / "shard-00", BATCHES)
    path = write(tmp_path / "shard-01", [[accepted(2, shard=1)], [accepted(1, shard=1)]])
    put(path, path.read_bytes()[: frames(path)[-1].end - 1])
    (tmp_path / "shard-none").mkdir()
    before = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    with Viewer(tmp_path) as viewer:
        ids = [name(2, shard=1), *(name(n) for n in (3, 4, 5, 6))]
        assert [message.envelope.id for message in viewer.messages()] == ids
        assert [b"".join(viewer.body(message)) for message in viewer.messages()] == [body(n) for n in (2, 3, 4, 5, 6)]
        assert (viewer.quarantined, viewer.torn) == (0, 1)
    assert [(p, p.stat().st_mtime_ns) for p in before] == [(p, s.st_mtime_ns) for p, s in before.items()]
    with Viewer(tmp_path / "nothing") as viewer:
        assert list(viewer.messages()) == []


def test_a_torn_tail_that_was_copied_and_not_cut_is_cut_by_the_next_start(tmp_path, monkeypatch):
    path = write(tmp_path, [[accepted(1)], [accepted(2), accepted(3, octets=5000)]])
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def power_cut(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recovery, "_cut", power_cut)
        recovery.recover(tmp_path, 0)
    for _ in range(2):
        replay = recovery.recover(tmp_path, 0)
        assert replay.losses == []
        # The next segment makes the torn one an earlier one, in which its first record would count.
        Writer(tmp_path, number=2, sequence=replay.sequence, epoch=2, limit=1 << 26).rotate()
        assert set(replay.ledger.messages) == {name(1)}
        assert path.stat().st_size < len(data)
        journal.segment_path(tmp_path / "journal", 3).unlink()
