"""The cold half of a shard: messages that outlived their journal segment, in SQLite, and when they are due.

Owns what is in `index.db` of one shard and how it changes; `index_file` is the file itself. Blocking; called from one
thread of the shard's own, and read-only by whoever looks. Heads are opaque octets here: it knows nothing of envelopes,
records, journals or asyncio. Messages wait in lanes, (domain, account); a lane knows its earliest due, so that asking
what is due costs what is answered, whatever waits behind it.
"""

from __future__ import annotations

import errno
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import apsw
import msgspec

from relayd.spool import index_file
from relayd.spool.index_file import (
    BODY,
    BY_ID,
    FORMAT,
    SELECT,
    Found,
    IndexDamagedError,
    Row,
    Waiting,
    body_crc,
    checked,
    checked_body,
    key_of,
    row_crc,
    waits_of,
)

__all__ = ["FORMAT", "Found", "Index", "IndexDamagedError", "Put", "Waiting", "open_read_only"]

CHECKPOINT_OCTETS = 2 * 1024**2
"""Size of the write-ahead log above which the next move first brings it into the file: 8 ms, where 16 MB took 80."""

TIDY_PAGES = 512
"""Freed pages given back in one step: 2 MB, 30 to 100 ms."""

_LANES = "SELECT lane, domain, account FROM lanes WHERE due <= ? ORDER BY due, lane"
_OF_DOMAIN = "SELECT due, 0, lane FROM lanes WHERE domain = ?"
_OF_LANE = (
    SELECT.replace("m.number", "w.number", 1) + "waiting w LEFT JOIN messages m ON m.number = w.number"
    " WHERE w.lane = ? AND w.due <= ? ORDER BY w.due, w.number"
)
_NEXT = "SELECT due, number FROM waiting WHERE lane = ? AND (due, number) > (?, ?) ORDER BY due, number LIMIT 1"
_BY_NUMBER = SELECT + "messages m WHERE m.number = ?"
_PAGE = SELECT + "messages m WHERE m.number > ? ORDER BY m.number LIMIT ?"

_encode = msgspec.msgpack.Encoder().encode


class Put(NamedTuple):
    """A message as it is to stand in the index.

    body None: the body stored under this id stays as it is, or there is none here: it lies in a file of its own.
    """

    id: str
    head: bytes
    waiting: Sequence[Waiting]
    body: bytes | None
    held: bool = False


class Index:
    """The index of one shard, open: for writing by its one owner, or read-only.

    taken: number of the newest journal segment whose survivors are all here, 0 for none. count: messages; held: of
    these, held. Invariants: a move counts whole or not at all, and is durable when it returns; what is read is what was
    written, or IndexDamagedError is raised. Held messages are found like others: put them without waiting groups.
    Every method raises OSError for disk trouble. After one in writing or syncing nothing more is written: close it and
    open it again (I5). Costs are of a file in the page cache; n is the number of messages.
    """

    def __init__(self, path: Path, shard: int, *, read_only: bool = False) -> None:
        self._path = path
        self.shard = shard
        self.broken = False
        self._log_octets = 0
        with index_file.telling(path):
            self._db = index_file.open_index(path, shard, read_only=read_only)
            try:
                self._begin(read_only=read_only)
            except BaseException:
                self._db.close()
                raise

    def _begin(self, *, read_only: bool) -> None:
        """Count what is there: O(n) over the smallest index, 40 ms for a million messages."""
        self.taken = self._value("SELECT taken FROM state")
        self.count = self._value("SELECT COUNT(*) FROM messages")
        self.held = self._value("SELECT COUNT(*) FROM messages INDEXED BY messages_held WHERE held")
        self._next = self._value("SELECT COALESCE(MAX(number), 0) + 1 FROM messages")
        if not read_only:
            self._db.set_wal_hook(self._logged)
            # A log whose sync failed may be whole in memory and not on disk: nothing is appended behind such a part.
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def close(self) -> None:
        """Bring the log into the file, unless writing failed, and close."""
        with index_file.telling(self._path):
            if not self.broken:
                self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            self._db.close()

    # --- changing -----------------------------------------------------------------------------------------------------

    def move(self, puts: Sequence[Put], drops: Sequence[str], taken: int | None = None) -> None:
        """Put and drop messages in one durable transaction; `taken` is stored in it. O((puts + drops) log n).

        Idempotent: the same again changes nothing. Unknown drops are fine; what is both put and dropped is dropped; of
        two puts of an id the last counts. ValueError for what cannot be stored: an id of another shard, a due that is
        no number. On any error nothing is changed.
        """
        change = _Change(self._db, self.shard, self._next)
        with self._writing():
            if self._log_octets > CHECKPOINT_OCTETS:
                self._checkpoint()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                change.apply(puts, drops)
                if taken is not None:
                    self._db.execute("UPDATE state SET taken = ?", (taken,))
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self._next = change.next
        self.count += change.count
        self.held += change.held
        if taken is not None:
            self.taken = taken

    def tidy(self) -> bool:
        """Give up to TIDY_PAGES freed pages back to the file system; whether there are more."""
        with self._writing():
            if self._value("PRAGMA freelist_count"):
                self._db.execute(f"PRAGMA incremental_vacuum({TIDY_PAGES})").fetchall()
            # The file gets shorter when the log comes into it.
            self._checkpoint()
            return bool(self._value("PRAGMA freelist_count"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self.broken:
            raise OSError(errno.EIO, "writing failed before", str(self._path))
        try:
            with index_file.telling(self._path):
                yield
        except OSError as error:
            self.broken = error.errno == errno.EIO
            raise

    def _checkpoint(self) -> None:
        """Bring the log into the file; readers are not waited for, what they keep is brought in by a later one."""
        self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._log_octets = 0

    def _logged(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_octets = pages * index_file.PAGE_OCTETS
        return apsw.SQLITE_OK

    # --- what is due --------------------------------------------------------------------------------------------------

    def due(
        self,
        before: float,
        *,
        lanes: int,
        each: int,
        skip: Callable[[str], bool],
        full: Callable[[str, str], bool],
    ) -> list[Found]:
        """Messages with a group due at or before `before`, each once: of `lanes` lanes, `each` of a lane at most.

        The lane that is due first comes first, and in a lane what is due first. Lanes that are full(domain, account)
        and messages to skip(id) are left out and not counted; so is a lane that has nothing else.
        O(lanes + results + what was left out), each O(log n), whatever else is due.
        """
        found: dict[int, Found] = {}
        served = 0
        with index_file.telling(self._path), closing(self._db.execute(_LANES, (before,))) as rows:
            for lane, domain, account in rows:
                if served >= lanes:
                    break
                if not full(domain, account) and self._of_lane(lane, before, each, skip, found):
                    served += 1
        return list(found.values())

    def _of_lane(
        self, lane: int, before: float, each: int, skip: Callable[[str], bool], found: dict[int, Found]
    ) -> bool:
        """Add what is due in a lane to `found`; whether there was any."""
        taken = 0
        with closing(self._db.execute(_OF_LANE, (lane, before))) as rows:
            for row in rows:
                if taken >= each:
                    break
                message = checked(row, self.shard)
                if message.number not in found and not skip(message.id):
                    found[message.number] = message
                    taken += 1
        return taken > 0

    def of_domains(self, domains: Iterable[str], limit: int, *, skip: Callable[[str], bool]) -> list[Found]:
        """At most `limit` messages that wait in these domains, due or not, the oldest due first, each once.

        O(lanes of these domains + results + skipped), each O(log n).
        """
        found: dict[int, Found] = {}
        with index_file.telling(self._path):
            heap = [start for domain in set(domains) for start in self._db.execute(_OF_DOMAIN, (domain,))]
            heapq.heapify(heap)
            while heap and len(found) < limit:
                due, number, lane = heap[0]
                if number and number not in found:
                    row = self._row(_BY_NUMBER, number)
                    if row is None:
                        raise IndexDamagedError(f"{self._path}: no message {number}")
                    message = checked(row, self.shard)
                    if not skip(message.id):
                        found[number] = message
                if after := self._db.execute(_NEXT, (lane, due, number)).fetchall():
                    heapq.heapreplace(heap, (*after[0], lane))
                else:
                    heapq.heappop(heap)
        return list(found.values())

    # --- single messages and lists ------------------------------------------------------------------------------------

    def get(self, id: str) -> Found | None:  # noqa: A002  # named as in Put and Found
        """The message of an id. O(log n)."""
        with index_file.telling(self._path):
            row = self._row(BY_ID, key_of(id, self.shard))
            return None if row is None else checked(row, self.shard)

    def get_many(self, ids: Iterable[str]) -> dict[str, Found]:
        """Those of these messages that are here. O(ids log n)."""
        return {id: found for id in ids if (found := self.get(id)) is not None}  # noqa: A001  # as in Put and Found

    def body(self, id: str) -> bytes:  # noqa: A002  # named as in Put and Found
        """The body stored with a message; KeyError when none is. O(log n + octets)."""
        with index_file.telling(self._path):
            row = self._row(BY_ID, key_of(id, self.shard))
            if row is None or row[3] < 0:
                raise KeyError(id)
            found = checked(row, self.shard)
            stored = self._db.execute(BODY, (found.number,)).fetchone()
        return checked_body(found, row[3], stored)

    def page(self, after: int, limit: int) -> list[Found]:
        """Messages with a number above `after`, in order of arrival. O(log n + limit)."""
        with index_file.telling(self._path):
            return [checked(row, self.shard) for row in self._db.execute(_PAGE, (after, limit))]

    def oldest(self) -> Found | None:
        """The message that came first. O(log n)."""
        return next(iter(self.page(0, 1)), None)

    def _row(self, statement: str, key: bytes | int | None) -> Row | None:
        row: Row | None = self._db.execute(statement, (key,)).fetchone()
        return row

    def _value(self, statement: str) -> int:
        value = self._db.execute(statement).get
        if not isinstance(value, int):
            raise IndexDamagedError(f"{self._path}: {value!r} is no number")
        return value


def open_read_only(path: Path, shard: int) -> Index:
    """The index as it is now, for who only looks: with or without its owner at work. FileNotFoundError.

    Nothing in it is changed, and `move` and `tidy` raise OSError. count, held and taken are as of opening. An owner
    that starts while the file is read without one can make a look fail or mix two states: look again.
    """
    return Index(path, shard, read_only=True)


class _Change:
    """One transaction of an index: what it puts, drops and counts, and the lanes it moves.

    Statements run in the order of the tables, each for all its rows: the trees are walked one after the other.
    next: the number of the next new message. count, held: by how much these grow.
    """

    def __init__(self, db: apsw.Connection, shard: int, number: int) -> None:
        self.next = number
        self.count = 0
        self.held = 0
        self._db = db
        self._shard = shard
        self._lanes: dict[tuple[str, str], tuple[int, float]] = {}
        """(lane, its due as stored) of the lanes met so far."""
        self._gone: list[tuple[str, str, float, int]] = []
        self._come: list[tuple[str, str, float, int]] = []

    def apply(self, puts: Sequence[Put], drops: Sequence[str]) -> None:
        """Everything, in a transaction that is open."""
        keys = dict.fromkeys(key for id_ in drops if (key := key_of(id_, self._shard)) is not None)
        self._drop(keys)
        self._put({key: put for put in puts if (key := self._key(put)) not in keys})
        self._wait()

    def _key(self, put: Put) -> bytes:
        key = key_of(put.id, self._shard)
        if key is None:
            raise ValueError(f"{put.id!r} is no id of shard {self._shard}")
        if any(math.isnan(group.due) for group in put.waiting):
            raise ValueError(f"{put.id} waits for no time")
        return key

    def _known(self, key: bytes) -> tuple[int, int, int, list[Waiting]] | None:
        """Number, held, body and groups of a message that is here."""
        row: Row | None = self._db.execute(BY_ID, (key,)).fetchone()
        if row is None:
            return None
        checked(row, self._shard)
        number, _, held, body, waits, _, _ = row
        return number, held, body, waits_of(waits)

    def _drop(self, keys: Iterable[bytes]) -> None:
        known = [row for key in keys if (row := self._known(key)) is not None]
        self.count -= len(known)
        for number, held, _, groups in known:
            self.held -= held
            self._gone += ((*group, number) for group in groups)
        numbers = [(number,) for number, *_ in known]
        self._db.executemany("DELETE FROM messages WHERE number = ?", numbers)
        self._db.executemany("DELETE FROM bodies WHERE number = ?", numbers)

    def _put(self, puts: dict[bytes, Put]) -> None:
        messages, bodies = [], []
        for key, put in puts.items():
            number, held, body, before = self._known(key) or self._new()
            groups = set(put.waiting)
            self._gone += ((*group, number) for group in set(before) - groups)
            self._come += ((*group, number) for group in groups - set(before))
            self.held += put.held - held
            if put.body is not None:
                body = len(put.body)
                bodies.append((number, body_crc(key, put.body), put.body))
            row = (number, key, int(put.held), body, _encode(sorted(groups)), put.head)
            messages.append((*row, row_crc(*row)))
        self._db.executemany(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(number) DO UPDATE SET"
            " held = excluded.held, body = excluded.body, waits = excluded.waits, head = excluded.head,"
            " crc = excluded.crc",
            messages,
        )
        self._db.executemany("INSERT OR REPLACE INTO bodies VALUES (?, ?, ?)", bodies)

    def _new(self) -> tuple[int, int, int, list[Waiting]]:
        """What is known of a message that is new."""
        self.next += 1
        self.count += 1
        return self.next - 1, 0, -1, []

    def _wait(self) -> None:
        """Bring `waiting` and then the lanes' dues up to date."""
        earliest: dict[tuple[str, str], float] = defaultdict(lambda: math.inf)
        for domain, account, due, _ in self._come:
            earliest[domain, account] = min(due, earliest[domain, account])
        for domain, account, _, _ in self._gone:
            self._lane(domain, account, None)
        for name, due in earliest.items():
            self._lane(*name, due)
        for statement, groups in (
            ("DELETE FROM waiting WHERE lane = ? AND due = ? AND number = ?", self._gone),
            ("INSERT INTO waiting VALUES (?, ?, ?)", self._come),
        ):
            rows = ((self._lanes[domain, account][0], due, number) for domain, account, due, number in groups)
            self._db.executemany(statement, sorted(rows))
        for lane, due in self._lanes.values():
            self._settle(lane, due)

    def _lane(self, domain: str, account: str, due: float | None) -> None:
        """Meet a lane; one that is new begins with `due`."""
        if (domain, account) in self._lanes:
            return
        find = "SELECT lane, due FROM lanes WHERE domain = ? AND account = ?"
        rows = self._db.execute(find, (domain, account)).fetchall()
        if not rows and due is None:
            raise IndexDamagedError(f"a message waits in ({domain}, {account}), which is no lane")
        if not rows:
            insert = "INSERT INTO lanes(domain, account, due) VALUES (?, ?, ?) RETURNING lane, due"
            rows = self._db.execute(insert, (domain, account, due)).fetchall()
        self._lanes[domain, account] = cast(tuple[int, float], rows[0])

    def _settle(self, lane: int, stored: float) -> None:
        due = self._db.execute("SELECT MIN(due) FROM waiting WHERE lane = ?", (lane,)).fetchall()[0][0]
        if due is None:
            self._db.execute("DELETE FROM lanes WHERE lane = ?", (lane,))
        elif due != stored:
            self._db.execute("UPDATE lanes SET due = ? WHERE lane = ?", (due, lane))
