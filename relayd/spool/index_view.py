"""A shard's index for whoever only looks, and wants to go on behind what is damaged.

Reads what `index` writes, with or without its owner at work, and changes nothing. What cannot be read is told, a text
each, to whoever opened it; `refuse` makes an exception of the first. Used by `viewer` and `audit`. Must not know what a
head means.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from relayd.spool import index_file, salvage
from relayd.spool.index_file import (
    BODY,
    BY_ID,
    LAST_NUMBER,
    SELECT,
    Found,
    IndexDamagedError,
    Row,
    checked,
    checked_body,
    key_of,
)

PAGE = 1000
"""Rows read at a time."""

_FROM = SELECT + "messages m WHERE m.number >= ? ORDER BY m.number LIMIT ?"
_REACH = "SELECT number, crc FROM messages WHERE number >= ? ORDER BY number LIMIT 1"

Tell = Callable[[str], None]
"""Told what cannot be read, and why."""


class MissingError(Exception):
    """The message, or its body, is not in the index (any more)."""


def refuse(what: str) -> None:
    """For whoever does not want to go on: raises IndexDamagedError."""
    raise IndexDamagedError(what)


class IndexView:
    """An index, open read-only. FileNotFoundError, FormatError or another OSError when it is opened.

    version: of the format. taken: number of the newest segment whose survivors are all here. count: messages. Each is 0
    when it cannot be read.
    strict: the checksums of pages are checked as well as those of rows and bodies; without, whatever is sound by its
    own checksum is given out, on a damaged page too. Memory: PAGE rows, or one body.
    """

    def __init__(self, path: Path, shard: int, tell: Tell = refuse, *, strict: bool = True) -> None:
        self._path = path
        self._shard = shard
        self._tell = tell
        self._db = self._opened()
        try:
            if not strict:
                self._db.execute("PRAGMA checksum_verification = OFF").fetchall()
            self.version = self.number("format", "PRAGMA user_version")
            self.taken = self.number("newest segment taken", "SELECT taken FROM state")
            self.count = self.number("count of messages", "SELECT COUNT(*) FROM messages")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nothing is brought into the file."""
        self._db.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """A block in which all that is read is of one moment. The owner's log grows meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    # --- messages -------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """Every row that can be reached, in order of arrival, not checked; what lies between is told, as a range.

        O(rows), and O(log of the range) for each damaged one.
        """
        start = 1
        while start <= LAST_NUMBER:
            page, error = self._page(start)
            yield from page
            start = page[-1][0] + 1 if page else start
            if error is not None:
                beyond = self._beyond(start)
                last = beyond - 1 if beyond <= LAST_NUMBER else "the last"
                self.tell(f"messages number {start} to {last}: {self._bare(error)}")
                start = beyond
            elif len(page) < PAGE:
                return

    def messages(self) -> Iterator[Found]:
        """Every message that is what was written; what is not is told."""
        for row in self.rows():
            try:
                yield checked(row, self._shard)
            except IndexDamagedError as error:
                self.tell(self._bare(error))

    def get(self, name: str) -> Found | None:
        """The message of an id. O(log n)."""
        try:
            with self._going_on():
                row = self._db.execute(BY_ID, (key_of(name, self._shard),)).fetchone()
                return None if row is None else checked(row, self._shard)
        except IndexDamagedError as error:
            self.tell(f"{name}: {self._bare(error)}")
        return None

    def get_many(self, names: Iterable[str]) -> dict[str, Found]:
        """Those of these messages that are here."""
        return {name: found for name in names if (found := self.get(name)) is not None}

    def body(self, name: str) -> bytes:
        """The body stored with a message. MissingError, IndexDamagedError, OSError. O(log n + octets)."""
        with self._going_on():
            row = self._db.execute(BY_ID, (key_of(name, self._shard),)).fetchone()
        if row is None:
            raise MissingError(name)
        return self.body_of(row)

    def body_of(self, row: Row) -> bytes:
        """The body of a row; IndexDamagedError when there is none, too."""
        found = checked(row, self._shard)
        if row[3] < 0:
            raise IndexDamagedError(f"{found.id} has no body")
        with self._going_on():
            return checked_body(found, row[3], self._db.execute(BODY, (found.number,)).fetchone())

    # --- for who checks ---------------------------------------------------------------------------------------------

    def query(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """What a statement finds; IndexDamagedError, OSError."""
        with self._going_on():
            found: list[tuple[object, ...]] = self._db.execute(statement, values).fetchall()
        return found

    def number(self, what: str, statement: str) -> int:
        """What a statement counts; when it cannot, that is told, and 0."""
        try:
            ((value,),) = self.query(statement)
            if isinstance(value, int):
                return value
            self.tell(f"{what}: {value!r} is no number")
        except (IndexDamagedError, ValueError) as error:
            self.tell(f"{what}: {self._bare(error)}")
        return 0

    def tell(self, what: str) -> None:
        """Tell of the file what cannot be read in it."""
        self._tell(f"{self._path}: {what}")

    def _bare(self, error: Exception) -> str:
        """What an error says, without the file's name."""
        return str(error).removeprefix(f"{self._path}: ")

    # --- parts --------------------------------------------------------------------------------------------------------

    def _opened(self) -> apsw.Connection:
        try:
            with index_file.telling(self._path):
                return index_file.open_index(self._path, self._shard, read_only=True)
        except IndexDamagedError as error:
            self.tell(self._bare(error))
            if not index_file.is_regular(self._path):
                raise
        with index_file.telling(self._path):
            return salvage.open_damaged(self._path)

    def _page(self, start: int) -> tuple[list[Row], Exception | None]:
        """Rows from a number on, and what ended them, if that was not their end."""
        page: list[Row] = []
        try:
            with self._going_on():
                for row in self._db.execute(_FROM, (start, PAGE)):
                    if row[0] < start:
                        return page, IndexDamagedError(f"number {row[0]} behind {start - 1}")
                    start = row[0] + 1
                    page.append(row)
        except IndexDamagedError as error:
            return page, error
        return page, None

    def _beyond(self, start: int) -> int:
        """The first number from which on reading works again; beyond LAST_NUMBER when there is none.

        The steps grow twofold, and then are halved. A sound range between two damaged ones may be passed over.
        """
        step = 1
        while not self._reaches(start + step):
            if start + step >= LAST_NUMBER:
                return LAST_NUMBER + 1
            step = min(2 * step, LAST_NUMBER - start)
        low, high = start + max(1, step // 2), start + step
        while low < high:
            middle = (low + high) // 2
            if self._reaches(middle):
                high = middle
            else:
                low = middle + 1
        return high

    def _reaches(self, number: int) -> bool:
        try:
            rows = self.query(_REACH, number)
        except IndexDamagedError:
            return False
        # A damaged tree may lead anywhere, and reading must come to an end.
        return all(isinstance(row[0], int) and row[0] >= number for row in rows)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Errors as in `index_file.telling`, but a sector that cannot be read is damage, and no reason to stop."""
        try:
            with index_file.telling(self._path):
                yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise IndexDamagedError(str(error)) from error
