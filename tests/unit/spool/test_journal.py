"""The file format: round trips, hostile content, and what the next frame is searched by."""

from __future__ import annotations

import contextlib
import os
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool import journal
from relayd.spool.journal import Damage, Frame, IrregularFileError, Item, RecordError, SegmentReader
from relayd.spool.records import Accepted, Record, Result, Settled, State
from relayd.spool.store import FormatError
from tests.fakes.mail import accepted, settled

SALT = 0x0123456789ABCDEF

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e12)
ADDRESS = st.builds("{}@example.net".format, st.from_regex(r"[a-z0-9+]{1,20}", fullmatch=True))
ENVELOPE = st.builds(
    Envelope,
    id=st.builds(queue_id.compose, st.just(0), st.binary(min_size=10, max_size=10)),
    sender=st.one_of(st.just(""), ADDRESS).map(Address),
    recipients=st.lists(ADDRESS.map(Address), min_size=1, max_size=5).map(tuple),
    account=TEXT,
    accepted_at=SECONDS,
    size=st.integers(0, 2**40),
    smtputf8=st.booleans(),
    eightbit=st.booleans(),
    client=TEXT,
    priority=st.integers(-9, 9),
)
REPLY = st.builds(Reply, st.integers(200, 599), TEXT, TEXT)
RESULT = st.builds(
    Result, st.integers(0, 9), st.sampled_from(State), st.integers(0, 2**31), SECONDS, SECONDS, REPLY, TEXT
)
RESULTS = st.lists(RESULT, max_size=3).map(tuple)
BODY = st.lists(st.binary(max_size=60).map(lambda octets: octets.translate(None, b"\r\n\0"))).map(b"\r\n".join)
ACCEPTED = st.builds(Accepted, ENVELOPE, BODY, RESULTS)
RECORD = st.one_of(ACCEPTED, st.builds(Settled, TEXT, RESULTS, st.none() | ACCEPTED))


def segment(tmp_path, *frames: list[Record], header: bytes | None = None):
    data = journal.file_header(SALT, 1) if header is None else header
    for sequence, records in enumerate(frames):
        items = [journal.encode(record) for record in records]
        data += b"".join(journal.frame(items, salt=SALT, sequence=sequence, offset=len(data)))
    path = tmp_path / "00000001.log"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


@settings(deadline=None)
@given(RECORD)
def test_a_record_comes_back_as_it_was(record):
    assert journal.decode(journal.encode(record), 0) == record


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(RECORD, max_size=4), max_size=4))
def test_frames_come_back_as_they_were(tmp_path_factory, frames):
    path = segment(tmp_path_factory.getbasetemp(), *frames)
    with SegmentReader(path) as reader:
        parts = list(reader.contents())
    assert all(isinstance(part, Frame) and part.intact for part in parts)
    read = [[journal.decode(row.item, 0) for row in part.rows] for part in parts]
    assert read == frames
    assert [part.sequence for part in parts] == list(range(len(frames)))


@settings(deadline=None)
@given(st.sampled_from([journal.ACCEPTED, journal.SETTLED, journal.SEAL, 0, 255]), st.binary(max_size=200))
def test_any_octets_are_a_record_or_a_record_error(kind, meta):
    with contextlib.suppress(RecordError):
        journal.decode(Item(kind, meta, b"body"), 0)


@settings(deadline=None)
@given(RECORD, st.data())
def test_any_change_of_the_small_part_is_a_record_or_a_record_error(record, data):
    item = journal.encode(record)
    meta = bytearray(item.meta)
    position = data.draw(st.integers(0, len(meta) - 1))
    meta[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RecordError):
        journal.decode(item._replace(meta=bytes(meta)), 0)


def test_a_record_from_before_priorities_is_read():
    meta = (
        b"\x93\x99\xb700000010203040506070809\xb0a@sender.example\x91\xaeb@peer.example\xa8user:ann"
        b"\xcbA\xd9T\xfc@ \x00\x00\x05\xc2\xc3\xa9192.0.2.1\x90\xc0"
    )
    assert journal.decode(Item(journal.ACCEPTED, meta, b"hi\r\n"), 0) == Accepted(
        Envelope(
            id="00000010203040506070809",
            sender=Address("a@sender.example"),
            recipients=(Address("b@peer.example"),),
            account="user:ann",
            accepted_at=1700000000.5,
            size=5,
            eightbit=True,
            client="192.0.2.1",
        ),
        b"hi\r\n",
    )


def metas():
    good = accepted(1)
    pack = msgspec.msgpack.encode
    envelope = good.envelope

    def changed(**changes: object) -> bytes:
        return pack((msgspec.structs.replace(envelope, **changes), ()))

    yield "id of a path", changed(id="../../etc/passwd")
    yield "id of another shard", changed(id=queue_id.compose(1, bytes(10)))
    yield "no recipients", changed(recipients=())
    yield "line break in an address", changed(recipients=("a@b.example>\r\nDATA",))
    yield "parameter in an address", changed(sender="a@b.example> SIZE=1")
    yield "not a number", changed(accepted_at=float("nan"))
    yield "infinite", changed(accepted_at=float("inf"))
    yield "negative size", changed(size=-1)
    yield "more urgent than can be", changed(priority=10)
    yield "half a priority", changed(priority=0.5)
    yield "a billion recipients", pack((envelope, ()))[:-1] + b"\xdd\x3b\x9a\xca\x00"
    yield "a string of 4 GB", b"\x92\x99\xdb\xff\xff\xff\xff"
    yield "deeply nested", b"\x92\x9b" + pack(envelope)[1:] + b"\x91" * 100_000 + b"\x90\x90"
    yield "negative recipient", pack((envelope, [[-1, "delivered", 0, 0.0, 0.0, [250, "", ""], ""]]))
    yield "due never", pack((envelope, [[0, "deferred", 0, 0.0, float("inf"), [450, "", ""], ""]]))
    yield "unknown state", pack((envelope, [[0, "lost", 0, 0.0, 0.0, [450, "", ""], ""]]))


@pytest.mark.parametrize("meta", [pytest.param(meta, id=what) for what, meta in metas()])
def test_hostile_values_are_record_errors(meta):
    with pytest.raises(RecordError):
        journal.decode(Item(journal.ACCEPTED, meta, b""), 0)


@pytest.mark.parametrize("body", [b"a\n.\r\nMAIL", b"a\r.\r\n", b"a\0\r\n", b"a\r\r\n", b"a\r\n\n"])
def test_a_body_that_could_smuggle_is_a_record_error(body):
    with pytest.raises(RecordError, match="in the body"):
        journal.decode(journal.encode(Accepted(accepted(1).envelope, body)), 0)


@pytest.mark.parametrize(
    "address", ["", "postmaster", "Postmaster", '"a b"@example.net', "ü@exämple.net", "a@[192.0.2.1]"]
)
def test_every_accepted_address_is_read_back(address):
    envelope = msgspec.structs.replace(
        accepted(1).envelope, sender=Address("" if "post" in address.lower() else address)
    )
    if address:
        envelope = msgspec.structs.replace(envelope, recipients=(Address(address),))
    record = Accepted(envelope, b"")
    assert journal.decode(journal.encode(record), 0) == record


def test_a_newer_format_is_refused(tmp_path):
    head = bytearray(journal.file_header(SALT, 1)[:-4])
    head[9] = journal.FORMAT + 1
    path = segment(tmp_path, header=bytes(head) + zlib.crc32(head).to_bytes(4, "big"))
    with pytest.raises(FormatError, match="newer"):
        SegmentReader(path)


def test_a_flipped_version_is_damage_and_not_a_newer_format(tmp_path):
    header = bytearray(journal.file_header(SALT, 1))
    header[9] ^= 0xFF
    with SegmentReader(segment(tmp_path, [accepted(1)], header=bytes(header))) as reader:
        damage, found = reader.contents()
    assert damage == Damage(0, journal.HEADER, "no sound header")
    assert found.intact


def test_irregular_files_are_not_opened(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "directory", "fifo"):
        with pytest.raises(IrregularFileError):
            SegmentReader(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        SegmentReader(tmp_path / "nothing")


def test_a_body_that_is_a_segment_is_never_read_as_one(tmp_path):
    # A client that knows the format sends a whole segment; then the frame that holds it is damaged.
    forged = segment(tmp_path, [accepted(66)]).read_bytes()
    other_salt = forged.replace(SALT.to_bytes(8, "big"), bytes(8))
    carrier = Accepted(accepted(1).envelope, other_salt)
    path = segment(tmp_path, [carrier], [accepted(2)])
    data = bytearray(path.read_bytes())
    data[journal.HEADER + 2] ^= 1
    path.write_bytes(data)
    with SegmentReader(path) as reader:
        damage, found = reader.contents()
    assert isinstance(damage, Damage)
    assert journal.decode(found.rows[0].item, 0) == accepted(2)


def test_a_frame_counts_only_at_its_own_offset(tmp_path):
    path = segment(tmp_path, [accepted(1)])
    data = path.read_bytes()
    path.write_bytes(data[: journal.HEADER] + b"moved" + data[journal.HEADER :])
    with SegmentReader(path) as reader:
        (damage,) = reader.contents()
    assert isinstance(damage, Damage)


def test_lengths_count_only_inside_the_file(tmp_path):
    # A sound head that claims 2^63 octets and 2^32 records.
    head = journal._HEAD.pack(journal._FRAME_MAGIC, SALT, 0, 2**32 - 1, 2**63, 0)
    crc = zlib.crc32(head, journal.HEADER).to_bytes(4, "big")
    path = segment(tmp_path)
    path.write_bytes(path.read_bytes() + head + crc + b"some")
    with SegmentReader(path) as reader:
        (damage,) = reader.contents()
    assert isinstance(damage, Damage)


def test_the_next_frame_is_found_across_the_stride_of_the_search(tmp_path):
    for gap in range(journal._STRIDE - 16, journal._STRIDE + 4):
        head = journal.file_header(SALT, 1)
        data = head + bytes(gap)
        data += b"".join(journal.frame([journal.encode(settled(1))], salt=SALT, sequence=1, offset=len(data)))
        path = tmp_path / "00000001.log"
        path.write_bytes(data)
        with SegmentReader(path) as reader:
            damage, found = reader.contents()
        assert (damage.offset, damage.end) == (journal.HEADER, journal.HEADER + gap)
        assert found.intact


def test_other_names_are_no_segments(tmp_path):
    for name in ("00000002.log", "00000010.log", "100000000.log", "1.log", "00000001.log.bak", "x.log"):
        (tmp_path / name).touch()
    assert journal.segment_numbers(tmp_path) == [2, 10, 100000000]
