"""The journal's file format: records in checksummed frames, frames in numbered segments. No asyncio, no policy.

    segment = header frame*       header = magic 8, version 2, zero 2, salt 8, epoch 8, crc 4
    frame   = head table payload  head   = magic 4, salt 8, sequence 8, records 4, payload octets 8, table crc 4, crc 4
    table   = a row per record    row    = kind 1, meta octets 4, body octets 4, crc of both 4
    payload = meta (msgpack) and body octets of each record in turn             integers are big-endian

The head's crc is seeded with the frame's offset and covers the table's crc, which covers each record's. The salt is
random per segment: a body that looks like a frame is never taken for one. Zeros may stand behind the last frame of a
segment that was not sealed: room for further ones. `writer` writes it, `recovery` reads it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
from zlib_ng.zlib_ng import crc32

from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp import address, framing
from relayd.spool.records import Accepted, Filed, Held, Message, Record, Result, Settled
from relayd.spool.store import FormatError

FORMAT = 1
"""Version written; a larger one in a sound header is FormatError. Magic, version and crc keep their places for ever."""

ACCEPTED, SETTLED, SEAL, HELD = 1, 2, 3, 4
"""Kinds of records. SEAL is a sealed segment's footer: alone in the last frame, (records, digest of the heads)."""

_MAGIC = b"relaydJ\n"
_FRAME_MAGIC = b"\xf1RLF"
_FILE = struct.Struct(">8sHHQQ")
_HEAD = struct.Struct(">4sQQIQI")
_ROW = struct.Struct(">BIII")
_CRC = struct.Struct(">I")
HEADER = _FILE.size + _CRC.size
HEAD = _HEAD.size + _CRC.size
_BLOCK = 4096
_STRIDE = 1 << 20
_NAME = re.compile(r"(\d{8,12})\.log", re.ASCII)
_MAX_TIME = 1e12

_Taken = tuple[Envelope, tuple[Result, ...], Filed | None]
_encode = msgspec.msgpack.Encoder().encode
_taken = msgspec.msgpack.Decoder(_Taken).decode
_held = msgspec.msgpack.Decoder(tuple[str, bool]).decode
_head = msgspec.msgpack.Decoder(tuple[Envelope, tuple[Result, ...], Filed | None, bool]).decode
_settled = msgspec.msgpack.Decoder(tuple[str, tuple[Result, ...], _Taken | None]).decode
_seal = msgspec.msgpack.Decoder(tuple[int, int]).decode


GONE = ".gone"
"""Suffix of a segment that is being removed: it is not part of the journal any more."""


class RecordError(ValueError):
    """The octets are sound and yet not a record that this version could have written."""


class Place(NamedTuple):
    """Where a record lies: its segment, and the offsets of its row in the table and of its octets."""

    segment: int
    row: int
    octets: int


class IrregularFileError(Exception):
    """A segment's name belongs to something that is not a regular file."""


# --- names ----------------------------------------------------------------------------------------------------------


def segment_path(journal: Path, number: int) -> Path:
    """Where a segment lives."""
    return journal / f"{number:08}.log"


def segment_numbers(journal: Path) -> list[int]:
    """The segments of a journal, oldest first. Other names are ignored."""
    return sorted(int(match[1]) for path in journal.iterdir() if (match := _NAME.fullmatch(path.name)))


# --- records --------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A record as it is written: its small part in msgpack, and the body as it is."""

    kind: int
    meta: bytes
    body: bytes


def encode(record: Record) -> Item:
    """A record as an Item; the body is not copied. UnicodeEncodeError or msgspec errors are bugs of the caller."""
    if isinstance(record, Accepted):
        accepted, body = _parted(record)
        return Item(ACCEPTED, _encode(accepted), body)
    if isinstance(record, Held):
        return Item(HELD, _encode((record.message, record.held)), b"")
    note = record.notification
    if note is None:
        return Item(SETTLED, _encode((record.message, record.results, None)), b"")
    taken, body = _parted(note)
    return Item(SETTLED, _encode((record.message, record.results, taken)), body)


def _parted(accepted: Accepted) -> tuple[_Taken, bytes]:
    body = accepted.body
    if isinstance(body, Filed):
        return (accepted.envelope, accepted.results, body), b""
    return (accepted.envelope, accepted.results, None), body


def decode(item: Item, shard: int) -> Record:
    """The record of an Item; RecordError for whatever could not have been written here. O(octets)."""
    try:
        if item.kind == ACCEPTED:
            return _accepted(_taken(item.meta), item.body, shard)
        if item.kind == SETTLED:
            message, results, taken = _settled(item.meta)
            return Settled(message, results, None if taken is None else _accepted(taken, item.body, shard))
        if item.kind == HELD:
            return Held(*_held(item.meta))
    except (ValueError, RecursionError) as error:
        raise RecordError(str(error)) from error
    raise RecordError(f"unknown kind {item.kind}")


def head(message: Message) -> bytes:
    """A message without its body, for the index."""
    filed = message.body if isinstance(message.body, Filed) else None
    results = [result for result in message.results if result is not None]
    return _encode((message.envelope, results, filed, message.held))


def from_head(octets: bytes, shard: int) -> Message:
    """What `head` wrote, its body left where it is; RecordError as for `decode`."""
    try:
        envelope, results, filed, held = _head(octets)
        message = Message.of(_accepted((envelope, results, filed), b"", shard))
        message.held = held
    except (ValueError, RecursionError) as error:
        raise RecordError(str(error)) from error
    if not isinstance(message.body, Filed):
        message.body = None
    return message


def _accepted(taken: _Taken, body: bytes, shard: int) -> Accepted:
    envelope, results, filed = taken
    if not queue_id.is_valid(envelope.id) or queue_id.shard_of(envelope.id) != shard:
        raise RecordError("not a queue id of this shard")
    if not 0 <= envelope.accepted_at <= _MAX_TIME or envelope.size < 0 or not envelope.recipients:
        raise RecordError("impossible envelope")
    # The files are as hostile as a client: what is sent later must have passed the one parser.
    paths = [address.reverse_path(b"<%b>" % envelope.sender.encode(), utf8=True)]
    paths += [address.forward_path(b"<%b>" % recipient.encode(), utf8=True) for recipient in envelope.recipients]
    if any(rest for _, rest in paths):
        raise RecordError("text after an address")
    if fault := framing.stray(body):
        # Outbound sends a body as it is: one that could smuggle must not come back from the disk.
        raise RecordError(f"{fault} in the body")
    return Accepted(envelope, body if filed is None else filed, results)


# --- writing --------------------------------------------------------------------------------------------------------


def file_header(salt: int, epoch: int) -> bytes:
    """The first octets of a segment."""
    head = _FILE.pack(_MAGIC, FORMAT, 0, salt, epoch)
    return head + _CRC.pack(crc32(head))


def frame(items: Sequence[Item], *, salt: int, sequence: int, offset: int) -> list[bytes]:
    """The buffers of one frame that will stand at `offset`; none is empty. The first begins with the head."""
    table = b"".join(_ROW.pack(kind, len(meta), len(body), crc32(body, crc32(meta))) for kind, meta, body in items)
    buffers = [part for _, meta, body in items for part in (meta, body) if part]
    octets = sum(map(len, buffers))
    head = _HEAD.pack(_FRAME_MAGIC, salt, sequence, len(items), octets, crc32(table))
    return [head + _CRC.pack(crc32(head, offset & 0xFFFFFFFF)) + table, *buffers]


def places(items: Sequence[Item], segment: int, offset: int) -> Iterator[Place | None]:
    """Where the records of a frame at `offset` lie; None for one that brings no message."""
    row = offset + HEAD
    octets = row + len(items) * _ROW.size
    for kind, meta, body in items:
        yield Place(segment, row, octets) if kind == ACCEPTED or body else None
        row += _ROW.size
        octets += len(meta) + len(body)


class Digest:
    """What a footer says of the segment before it: how many records, and a checksum over the frames' heads."""

    def __init__(self) -> None:
        self.records = 0
        self.crc = 0

    def add(self, head: bytes, records: int) -> None:
        """Count a frame in: `head` is its first HEAD octets."""
        self.records += records
        self.crc = crc32(head, self.crc)

    def seal(self) -> Item:
        """The footer."""
        return Item(SEAL, _encode((self.records, self.crc)), b"")

    def agrees(self, item: Item) -> bool:
        """Whether a footer describes what was read."""
        try:
            return _seal(item.meta) == (self.records, self.crc)
        except ValueError:
            return False


# --- reading --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Where a record's octets stand in the segment, and the record, None when its crc is wrong; row: of the table."""

    offset: int
    octets: int
    item: Item | None
    row: int


class Frame(NamedTuple):
    """A frame whose head and table are sound."""

    offset: int
    end: int
    sequence: int
    head: bytes
    rows: list[Row]

    @property
    def intact(self) -> bool:
        """Whether every record is sound."""
        return all(row.item is not None for row in self.rows)


class Damage(NamedTuple):
    """A range that holds no sound frame."""

    offset: int
    end: int
    reason: str


class _Head(NamedTuple):
    raw: bytes
    salt: int
    sequence: int
    records: int
    payload: int
    table_crc: int


class SegmentReader:
    """One segment, read by offset; closed by its `with` block.

    Content never raises and never decides how much is allocated: a length counts only under a sound crc and inside the
    file. Opening raises IrregularFileError (symbolic link, FIFO, directory), FileNotFoundError or another OSError.
    Memory: one frame.
    """

    def __init__(self, path: Path) -> None:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise IrregularFileError(path) from error
            raise
        self.path = path
        self.unreadable = False
        """Whether the disk refused part of what was read."""
        self.version = 0
        """Of the format; 0 when the header cannot be read."""
        self._salt: int | None = None
        self._start = 0
        try:
            self.size = self._regular_size()
            self._header()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, octets: int) -> bytes:
        """Octets of the file, fewer at its end; zeros for blocks the disk cannot give.

        FileNotFoundError when it is not as long any more as it was: it is being removed.
        """
        parts = []
        while octets > 0 and (part := self._some(offset, octets)):
            parts.append(part)
            offset += len(part)
            octets -= len(part)
        if octets and offset < self.size:
            raise FileNotFoundError(errno.ENOENT, "removed while it was read", str(self.path))
        return b"".join(parts)

    def body(self, place: Place) -> bytes:
        """The body of a record whose place is known; RecordError when its octets are not what was written.

        OSError where the disk refuses some of them: they may be sound, and read another time.
        """
        row = self.read(place.row, _ROW.size)
        if len(row) == _ROW.size:
            _, meta, body, crc = _ROW.unpack(row)
            if place.octets + meta + body <= self.size and crc32(octets := self.read(place.octets, meta + body)) == crc:
                return octets[meta:]
        if self.unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
        raise RecordError(f"{self.path}: wrong checksum at {place.octets}")

    @functools.cached_property
    def end(self) -> int:
        """Where only zeros follow: room for further frames. Not so what the disk refuses, nor zeros alone. O(zeros)."""
        end = self.size
        while end > 0:
            start = max(0, end - _STRIDE)
            octets = self.read(start, end - start)
            end = start + len(octets if self.unreadable else octets.rstrip(b"\0"))
            if end > start:
                return end
        return self.size

    def contents(self) -> Iterator[Frame | Damage]:
        """Everything up to `end`, in order and without gaps. O(size)."""
        offset = self._start
        while offset < self.end:
            found = self._frame(offset)
            if found is None:
                end = self._next(offset + 1)
                yield Damage(offset, end, "no sound frame" if offset else "no sound header")
                offset = end
            else:
                yield found
                offset = found.end

    def _regular_size(self) -> int:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise IrregularFileError(self.path)
        return status.st_size

    def _some(self, offset: int, octets: int) -> bytes:
        try:
            return os.pread(self._fd, octets, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        # A bad sector spoils its block, not the segment: the checksums find what the zeros replaced.
        block = min(octets, _BLOCK - offset % _BLOCK)
        try:
            return os.pread(self._fd, block, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.unreadable = True
            return bytes(min(block, max(0, self.size - offset)))

    def _header(self) -> None:
        raw = self.read(0, HEADER)
        if len(raw) < HEADER or crc32(raw[:-4]) != _CRC.unpack(raw[-4:])[0] or not raw.startswith(_MAGIC):
            return
        _, self.version, _, self._salt, _ = _FILE.unpack_from(raw)
        self._start = HEADER
        if self.version > FORMAT:
            raise FormatError(f"{self.path}: format {self.version} is newer than {FORMAT}, the newest known here")

    def _head(self, offset: int) -> _Head | None:
        """The head of a frame at `offset` that lies inside the file."""
        raw = self.read(offset, HEAD)
        if len(raw) < HEAD or crc32(raw[:-4], offset & 0xFFFFFFFF) != _CRC.unpack(raw[-4:])[0]:
            return None
        magic, *numbers = _HEAD.unpack_from(raw)
        head = _Head(raw, *numbers)
        if magic != _FRAME_MAGIC or self._salt not in (None, head.salt):
            return None
        return head if head.payload + head.records * _ROW.size <= self.size - offset - HEAD else None

    def _frame(self, offset: int) -> Frame | None:
        head = self._head(offset)
        if head is None:
            return None
        table = self.read(offset + HEAD, head.records * _ROW.size)
        lengths = [(meta, body) for _, meta, body, _ in _ROW.iter_unpack(table)]
        if crc32(table) != head.table_crc or sum(map(sum, lengths)) != head.payload:
            return None
        self._salt = head.salt
        start = offset + HEAD + len(table)
        return Frame(offset, start + head.payload, head.sequence, head.raw, self._rows(table, start, head.payload))

    def _rows(self, table: bytes, start: int, octets: int) -> list[Row]:
        payload = memoryview(self.read(start, octets))
        rows = []
        position = 0
        for number, (kind, meta, body, crc) in enumerate(_ROW.iter_unpack(table)):
            middle, end = position + meta, position + meta + body
            sound = crc32(payload[position:end]) == crc and end <= len(payload)
            item = Item(kind, bytes(payload[position:middle]), bytes(payload[middle:end])) if sound else None
            rows.append(Row(start + position, meta + body, item, start - len(table) + number * _ROW.size))
            position = end
        return rows

    def _next(self, offset: int) -> int:
        """Where the next sound head stands, or `end`."""
        mark = _FRAME_MAGIC if self._salt is None else _FRAME_MAGIC + self._salt.to_bytes(8, "big")
        while offset < self.end:
            chunk = self.read(offset, min(_STRIDE, self.end - offset))
            found = chunk.find(mark)
            while found >= 0:
                if self._head(offset + found) is not None:
                    return offset + found
                found = chunk.find(mark, found + 1)
            # A mark may lie across two chunks.
            offset += max(1, len(chunk) - len(mark) + 1)
        return self.end


def body_at(journal: Path, place: Place) -> bytes:
    """The body of a record whose place is known. RecordError when it is not what was written; OSError."""
    try:
        with SegmentReader(segment_path(journal, place.segment)) as reader:
            return reader.body(place)
    except IrregularFileError as error:
        raise RecordError(f"{error}: not a regular file") from error
