"""What can still be read of a damaged index goes into a fresh one.

Called by whoever opens a shard and met IndexDamagedError; `index_view` looks at a damaged file the same way. Reads it
without its page checksums, row by row: a message counts when its own crc and its body's are right. Must not judge what
is lost: it counts it, and leaves the damaged file as it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import apsw

from relayd.spool import index_file
from relayd.spool.index import Index, IndexDamagedError, Put
from relayd.spool.index_file import (
    BODY,
    LAST_NUMBER,
    PAGE_OCTETS,
    SCHEMA,
    SELECT,
    Row,
    checked,
    checked_body,
    waits_of,
)

GROUP_OCTETS, GROUP_MESSAGES = 4 * 1024**2, 1000
"""What is put into the fresh index in one move."""

_RANGE = SELECT + "messages m WHERE m.number BETWEEN ? AND ? ORDER BY m.number"
_NAMED = (
    "SELECT number FROM messages ORDER BY number",
    "SELECT number FROM messages ORDER BY number DESC",
    "SELECT number FROM bodies ORDER BY number",
    "SELECT number FROM bodies ORDER BY number DESC",
    "SELECT number FROM messages INDEXED BY messages_id ORDER BY id",
    "SELECT number FROM messages INDEXED BY messages_id ORDER BY id DESC",
    "SELECT number FROM waiting ORDER BY lane, due, number",
    "SELECT number FROM waiting ORDER BY lane DESC, due DESC, number DESC",
)
"""Where messages are named: each tree from both ends, up to the first page that cannot be read."""

_UNREADABLE = (apsw.Error, UnicodeDecodeError, OSError)


class Salvage(NamedTuple):
    """What came of it.

    messages: those put into the fresh index. lost: those that some part of the file still names, or half holds, and
    that could not be taken. taken: what the damaged file says, 0 when it does not; the fresh index keeps its own, so
    that segments that are still there are read again.
    """

    messages: int
    lost: int
    taken: int


def salvage(damaged: Path, target: Index) -> Salvage:
    """Put what can be read of a damaged index, and of the log beside it, into a fresh one of the same shard.

    Never raises on content. OSError for trouble in writing, and for a file that is missing or not a regular one. Costs
    one pass over the file and some 200 octets of memory a message. A lost page in the upper levels of a tree, one in
    some hundred, takes what hangs on it with it.
    """
    if not index_file.is_regular(damaged):
        raise FileNotFoundError(damaged)
    with index_file.telling(damaged):
        connection = open_damaged(damaged)
    with closing(connection):
        remains = _Remains(connection, target.shard)
        group: list[Put] = []
        octets = 0
        for put in remains.puts():
            group.append(put)
            octets += len(put.body or b"")
            if octets > GROUP_OCTETS or len(group) >= GROUP_MESSAGES:
                target.move(group, ())
                group, octets = [], 0
        target.move(group, ())
        return Salvage(len(remains.whole), len(remains.named - remains.whole), remains.taken())


class _Remains:
    """A damaged file, being read. named: numbers of messages that were there. whole: of those that were given out."""

    def __init__(self, connection: apsw.Connection, shard: int) -> None:
        self._db = connection
        self._shard = shard
        self.named: set[int] = set()
        self.whole: set[int] = set()
        for statement in _NAMED:
            self.named.update(self._numbers(statement))

    def taken(self) -> int:
        """The newest journal segment the file says it has taken."""
        return max(self._numbers("SELECT taken FROM state"), default=0)

    def puts(self) -> Iterator[Put]:
        """Every message that is whole, once."""
        for row in self._rows(sorted(self.named)):
            self.named.add(row[0])
            try:
                put = self._put(row)
            except (*_UNREADABLE, IndexDamagedError):
                continue
            if row[0] not in self.whole:
                self.whole.add(row[0])
                yield put

    def _put(self, row: Row) -> Put:
        found = checked(row, self._shard)
        body = None
        if row[3] >= 0:
            body = checked_body(found, row[3], self._db.execute(BODY, (found.number,)).fetchone())
        return Put(found.id, found.head, waits_of(row[4]), body, found.held)

    def _rows(self, named: Sequence[int]) -> Iterator[Row]:
        """Rows of all pages that can be read.

        A range with a page that cannot is halved, by the messages known to be in it, until each is read or lost:
        O(messages on such pages · log n), however far their numbers are apart.
        """
        ranges = [(1, LAST_NUMBER)]
        while ranges:
            low, high = ranges.pop()
            try:
                for row in self._db.execute(_RANGE, (low, high)):
                    yield row
                    low = max(low, row[0] + 1)
            except _UNREADABLE:
                first, end = bisect_left(named, low), bisect_right(named, high)
                middle = named[(first + end) // 2] if first < end else high
                if end - first > 1:
                    ranges += [(middle, high), (low, middle - 1)]
                elif low < high and first < end:
                    ranges.append((middle, middle))

    def _numbers(self, statement: str) -> Iterator[int]:
        try:
            for (number,) in self._db.execute(statement):
                if isinstance(number, int) and number > 0:
                    yield number
        except _UNREADABLE:
            return


# --- a file whose first page may be gone ------------------------------------------------------------------------------


def open_damaged(damaged: Path) -> apsw.Connection:
    """A connection that checks no page; with the log where the file's first page is still good for it."""
    flags = apsw.SQLITE_OPEN_READONLY
    try:
        if index_file.has_log(damaged):
            connection = index_file.connect(damaged, flags, vfs="unix")
            if [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema")] == list(SCHEMA):
                return connection
            connection.close()
    except _UNREADABLE:
        pass  # its first page is not good for anything: another one is put before the rest
    vfs = _FirstPage(damaged.stat().st_size // PAGE_OCTETS)
    return index_file.connect(damaged, flags, vfs=vfs.name, immutable=True)


class _FirstPage(apsw.VFS):
    """Files with the first page every index of this format has: it holds the tables' places, which never change."""

    def __init__(self, pages: int) -> None:
        self.name = "relayd-salvage"
        with closing(apsw.Connection(":memory:")) as connection:
            index_file.lay_out(connection, 0)
            empty = connection.serialize("main")
        # The header tells how many pages there are; a file that was cut short is read as if it still had its tables.
        pages = max(pages, len(empty) // PAGE_OCTETS)
        self._octets = pages * PAGE_OCTETS
        self._page = empty[:28] + pages.to_bytes(4, "big") + empty[32:PAGE_OCTETS]
        super().__init__(self.name, "unix")

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802  # SQLite's name
        return _File(name, flags, self._page, self._octets)


class _File(apsw.VFSFile):
    def __init__(self, name: apsw.URIFilename | str | None, flags: list[int], page: bytes, octets: int) -> None:
        self._page = page
        self._octets = octets
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  # SQLite's name
        return self._page[offset : offset + amount] if offset < PAGE_OCTETS else super().xRead(amount, offset)

    def xFileSize(self) -> int:  # noqa: N802  # SQLite's name
        return self._octets
