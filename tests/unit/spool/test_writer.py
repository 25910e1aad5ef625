"""What the writer's calls leave on the disk, octet for octet; that nothing is told before it is there is `crash`'s."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from relayd.spool import disk, journal, writer
from relayd.spool.journal import Damage, Frame, Item, SegmentReader
from relayd.spool.recovery import Replay
from relayd.spool.writer import ROOM, Writer
from tests.fakes.bad_block import BLOCK, BadBlock
from tests.fakes.mail import accepted, name


@pytest.fixture
def made(tmp_path) -> Writer:
    writer.make_directories(tmp_path)
    return Writer(tmp_path, number=0, sequence=0, epoch=1, limit=1 << 26)


def segment(directory: Path, number: int = 1) -> Path:
    return journal.segment_path(directory / "journal", number)


def mail(number: int, octets: int = 100) -> list[Item]:
    return [journal.encode(accepted(number, octets=octets))]


def test_frames_stand_in_the_place_of_zeros(made, tmp_path):
    first = made.append(mail(0))
    assert segment(tmp_path).stat().st_size == journal.HEADER + len(ROOM)
    for number in range(1, 200):
        last = made.append(mail(number))
    assert segment(tmp_path).stat().st_size == journal.HEADER + len(ROOM)
    assert segment(tmp_path).read_bytes()[last.octets :].strip(b"\0") == b""
    with SegmentReader(segment(tmp_path)) as reader:
        assert next(reader.contents()).offset == first.offset
        assert reader.end == last.octets
    replay = Replay(tmp_path, 0)
    assert (list(replay.ledger.messages), replay.losses) == ([name(number) for number in range(200)], [])


def test_room_is_made_again_where_it_is_used_up(made, tmp_path):
    octets, sizes = 0, set()
    while octets < 2.5 * len(ROOM):
        octets = made.append(mail(0, 10_000)).octets
        sizes.add(segment(tmp_path).stat().st_size)
    assert sizes == {journal.HEADER + number * len(ROOM) for number in (1, 2, 3)}


def test_a_large_frame_is_written_once(made, tmp_path):
    position = made.append(mail(0, len(ROOM) // 4))
    assert segment(tmp_path).stat().st_size == position.octets
    position = made.append(mail(1))
    assert segment(tmp_path).stat().st_size > position.octets + len(ROOM) // 2
    position = made.append(mail(2, 2 * len(ROOM)))
    assert segment(tmp_path).stat().st_size == position.octets
    assert len(Replay(tmp_path, 0).ledger.messages) == 3


def test_a_sealed_segment_ends_with_its_footer(made, tmp_path):
    made.append(mail(0))
    made.rotate()
    made.append(mail(1))
    made.close()
    for number in (1, 2):
        with SegmentReader(segment(tmp_path, number)) as reader:
            *_, footer = reader.contents()
            assert isinstance(footer, Frame)
            assert footer.end == reader.size
            assert footer.rows[0].item.kind == journal.SEAL


@pytest.mark.parametrize("call", ["pwrite", "writev", "fdatasync"])
def test_where_a_write_fails_nothing_stays_behind_what_is_durable(made, tmp_path, monkeypatch, call):
    monkeypatch.setattr(writer, "ROOM", bytes(4000))
    durable = made.append(mail(0)).octets
    monkeypatch.setattr(writer, "ROOM", bytes(40_000))

    def fails(*_arguments):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="broken"):
        broken.setattr(os, call, fails)
        made.append(mail(1, 5000))
    assert segment(tmp_path).stat().st_size == durable
    assert made.append(mail(2)).segment == 2
    assert list(Replay(tmp_path, 0).ledger.messages) == [name(0), name(2)]


def test_zeros_at_the_end_of_a_frame_are_the_frame_s(tmp_path):
    start = journal.file_header(7, 1)
    frame = journal.frame([Item(9, b"meta" + bytes(50), b"")], salt=7, sequence=0, offset=len(start))
    path = tmp_path / "00000001.log"
    path.write_bytes(start + b"".join(frame) + bytes(1000))
    with SegmentReader(path) as reader:
        (found,) = reader.contents()
        assert isinstance(found, Frame)
        assert found.intact
        assert found.end == len(start) + len(b"".join(frame)) > reader.end


def test_zeros_alone_are_no_room(tmp_path):
    path = tmp_path / "00000001.log"
    path.write_bytes(bytes(3 << 20))
    with SegmentReader(path) as reader:
        assert list(reader.contents()) == [Damage(0, 3 << 20, "no sound header")]


def test_what_the_disk_refuses_is_no_room(made, tmp_path, monkeypatch):
    last = made.append(mail(0)).octets
    BadBlock(monkeypatch, segment(tmp_path), last + 2 * BLOCK, math.inf)
    replay = Replay(tmp_path, 0)
    assert list(replay.ledger.messages) == [name(0)]
    assert [(loss.offset, loss.torn) for loss in replay.losses] == [(last, True)]
    assert [one.kept for one in replay.ledger.segments] == [True]


def test_short_writes_are_taken_up_where_they_ended(tmp_path, monkeypatch):
    buffers = [bytes([number]) * 30 for number in range(100)]
    for most in (1, 29, 30, 31, 95, 10_000):
        real, path = os.writev, tmp_path / str(most)

        def writev(descriptor, parts, real=real, most=most):
            return real(descriptor, [b"".join(parts)[:most]])

        with monkeypatch.context() as patched, path.open("wb") as file:
            patched.setattr(os, "writev", writev)
            patched.setattr(disk, "_IOV_MAX", 7)
            disk.write_all(file.fileno(), buffers)
        assert path.read_bytes() == b"".join(buffers)
