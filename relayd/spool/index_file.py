"""The file of a shard's index: its layout, its checksums, how it is created, opened and refused.

Called by `index`, which reads and writes what is in it, and by `salvage`, which reads what is left of it. Every page
ends in a checksum that SQLite's cksumvfs checks whenever it is read, so that no flipped bit answers wrongly; heads and
bodies have a crc of their own besides, which tells what is sound where pages are not. Must not know what a head means.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import apsw
import apsw.sqlite_extra
import msgspec
from zlib_ng.zlib_ng import crc32

from relayd.spool.disk import sync_directory
from relayd.spool.store import FormatError

FORMAT = 1
"""PRAGMA user_version of what is written; a larger one is FormatError."""

APPLICATION = 0x524C5949
"""PRAGMA application_id: "RLYI"."""

PAGE_OCTETS = 4096
"""Wastes least over bodies of all lengths: from 8 KB on, a page takes a whole number of bodies, often one."""

CACHE_OCTETS = 16 * 1024**2
"""Memory of a connection for pages; the kernel caches the file besides. Nothing is mapped: an I/O error there kills."""

WAL_OCTETS = 32 * 1024**2
"""Length the write-ahead log is cut back to when it is begun anew; a larger one is left by a reader or a large move."""

SYNCHRONOUS = "FULL"
"""A commit is on disk when it returns."""

LOG = "PRAGMA journal_mode = WAL"
"""Transactions are appended to a log: one sync each, and readers are not in their way."""

BUSY_MILLISECONDS = 5000
"""Longest wait for a lock: recovery of the log holds one for a moment, and nobody else does."""

_RESERVED = 8
"""Octets at the end of each page that hold its checksum; the number is cksumvfs's."""

_COMPANIONS = ("-wal", "-shm", "-journal")

SCHEMA = (
    "CREATE TABLE state(one INTEGER PRIMARY KEY, shard INTEGER NOT NULL, taken INTEGER NOT NULL)",
    (
        "CREATE TABLE messages(number INTEGER PRIMARY KEY, id BLOB NOT NULL, held INTEGER NOT NULL,"
        " body INTEGER NOT NULL, waits BLOB NOT NULL, head BLOB NOT NULL, crc INTEGER NOT NULL)"
    ),
    "CREATE UNIQUE INDEX messages_id ON messages(id)",
    "CREATE INDEX messages_held ON messages(number) WHERE held",
    "CREATE TABLE bodies(number INTEGER PRIMARY KEY, crc INTEGER NOT NULL, octets BLOB NOT NULL)",
    "CREATE TABLE lanes(lane INTEGER PRIMARY KEY, domain TEXT NOT NULL, account TEXT NOT NULL, due REAL NOT NULL)",
    "CREATE UNIQUE INDEX lanes_name ON lanes(domain, account)",
    "CREATE INDEX lanes_due ON lanes(due)",
    (
        "CREATE TABLE waiting(lane INTEGER NOT NULL, due REAL NOT NULL, number INTEGER NOT NULL,"
        " PRIMARY KEY(lane, due, number)) WITHOUT ROWID"
    ),
)
"""messages.body: octets of the body in `bodies`, -1 when none is there. messages.waits: the groups in msgpack, so that
their rows in `waiting` are found without an index on them, and a message can be salvaged from its row alone. lanes.due:
the earliest due in `waiting` of the lane. crc: see `row_crc` and `body_crc`. Root pages keep their places for ever."""

SELECT = "SELECT m.number, m.id, m.held, m.body, m.waits, m.head, m.crc FROM "
"""The columns of a Row, of `messages m`."""

BY_ID = SELECT + "messages m WHERE m.id = ?"
BODY = "SELECT crc, octets FROM bodies WHERE number = ?"

LAST_NUMBER = 2**63 - 1
"""The largest a message can have: of SQLite's integers."""


class IndexDamagedError(Exception):
    """The index of the shard is damaged: what can be read of it has to be salvaged into a new one."""


class Waiting(NamedTuple):
    """A group of recipients that is tried together; due in wall seconds."""

    domain: str
    account: str
    due: float


class Found(NamedTuple):
    """A message of the index; numbers grow in the order of arrival."""

    number: int
    id: str
    head: bytes
    held: bool


Row = tuple[int, bytes, int, int, bytes, bytes, int]
"""What SELECT gives, if the file is what it should be."""

_decode = msgspec.msgpack.Decoder(list[Waiting]).decode


# --- rows -----------------------------------------------------------------------------------------------------------


def key_of(queue_id: str, shard: int) -> bytes | None:
    """The ten octets behind an id's shard digits; None for an id that cannot be in this index."""
    try:
        key = bytes.fromhex(queue_id[3:])
    except ValueError:
        return None
    return key if len(key) == 10 and f"{shard:03x}{key.hex()}" == queue_id else None


def row_crc(number: int, key: bytes, held: int, body: int, waits: bytes, head: bytes) -> int:
    """The checksum of a message's row, all columns of it."""
    return crc32(b"%d %b %d %d %d %b%b" % (number, key, held, body, len(waits), waits, head))


def body_crc(key: bytes, octets: bytes) -> int:
    """The checksum of a body: of its message too, so that no other's is ever taken for it."""
    return crc32(octets, crc32(key))


def checked(row: Row, shard: int) -> Found:
    """A row as a message; IndexDamagedError when it is not what was written."""
    number, key, held, body, waits, head, crc = row
    try:
        sound = row_crc(number, key, held, body, waits, head) == crc and len(key) == 10
    except TypeError:
        # A forged file: every column can hold every type. None stands where a message is missing.
        sound = False
    if not sound:
        raise IndexDamagedError(f"message {number} of shard {shard}: wrong checksum")
    return Found(number, f"{shard:03x}{key.hex()}", head, bool(held))


def waits_of(octets: bytes) -> list[Waiting]:
    """The groups of a message's row; IndexDamagedError."""
    try:
        groups = _decode(octets)
    except (ValueError, TypeError) as error:
        raise IndexDamagedError(f"groups of a message: {error}") from error
    if any(math.isnan(group.due) for group in groups):
        raise IndexDamagedError("groups of a message: due is no number")
    return groups


def checked_body(found: Found, body: int, stored: Sequence[object] | None) -> bytes:
    """A body, stored as (crc, octets), if its message's row and its own crc say so; IndexDamagedError."""
    key = bytes.fromhex(found.id[3:])
    crc, octets = stored or (0, None)
    if not isinstance(octets, bytes) or len(octets) != body or body_crc(key, octets) != crc:
        raise IndexDamagedError(f"the body of {found.id} is not what was written")
    return octets


# --- the file -------------------------------------------------------------------------------------------------------

_ERRNO: dict[type[apsw.Error], int] = {
    apsw.IOError: errno.EIO,
    apsw.FullError: errno.ENOSPC,
    apsw.ReadOnlyError: errno.EROFS,
    apsw.CantOpenError: errno.EIO,
    apsw.PermissionsError: errno.EACCES,
    apsw.BusyError: errno.EBUSY,
    apsw.LockedError: errno.EBUSY,
    apsw.ProtocolError: errno.EBUSY,
    apsw.NoMemError: errno.ENOMEM,
}
_BUGS = (apsw.BindingsError, apsw.MisuseError, apsw.ThreadingViolationError, apsw.ConnectionClosedError)
_WRONG_PAGE = (apsw.SQLITE_IOERR_DATA, apsw.SQLITE_IOERR_CORRUPTFS)


def told(error: apsw.Error, path: Path) -> Exception:
    """What an error of SQLite is called here. Our statements are right, so what is left over is the file's fault."""
    if isinstance(error, _BUGS):
        return error
    number = _ERRNO.get(type(error))
    wrong_page = getattr(error, "extendedresult", 0) in _WRONG_PAGE
    if number is None or wrong_page:
        return IndexDamagedError(f"{path}: {'a page is not what was written' if wrong_page else error}")
    return OSError(number, str(error), str(path))


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Errors of SQLite leave as OSError or IndexDamagedError."""
    try:
        yield
    except apsw.Error as error:
        raise told(error, path) from error
    except UnicodeDecodeError as error:
        raise IndexDamagedError(f"{path}: {error}") from error


def load_checksums() -> None:
    """Make cksumvfs known to the SQLite of this process, once; its default file system stays the default."""
    if "cksmvfs" not in apsw.vfs_names():
        default = apsw.vfs_names()[0]
        with closing(apsw.Connection(":memory:")) as connection:
            apsw.sqlite_extra.load(connection, "cksumvfs")
        apsw.set_default_vfs(default)


def connect(path: Path, flags: int, *, vfs: str = "cksmvfs", immutable: bool = False) -> apsw.Connection:
    """A connection that trusts nothing in the file and writes nothing on its own account."""
    name = f"file:{quote(str(path.absolute()))}{'?immutable=1' if immutable else ''}"
    connection = apsw.Connection(name, flags=flags | apsw.SQLITE_OPEN_URI, vfs=vfs)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.execute(f"PRAGMA cell_size_check = ON; PRAGMA cache_size = {-CACHE_OCTETS // 1024}")
    except BaseException:
        connection.close()
        raise
    return connection


def files_of(path: Path) -> list[Path]:
    """What belongs to an index, there or not: itself, its log, the log's own index, and a journal of older modes."""
    return [path, *(path.with_name(path.name + end) for end in _COMPANIONS)]


def has_log(path: Path) -> bool:
    """Whether transactions stand beside the file that it does not hold yet, or somebody has it open."""
    _, wal, shm, _ = files_of(path)
    return shm.exists() or (wal.exists() and wal.stat().st_size > 0)


def is_regular(path: Path) -> bool:
    """Whether there is such a file; OSError when it is not a regular one: opening a FIFO would block for ever.

    Nothing is opened here: closing a descriptor of ours would drop the locks of every connection in this process.
    """
    try:
        regular = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
    if not regular:
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return True


def is_there(path: Path) -> bool:
    """Whether there is an index; OSError for irregular files, IndexDamagedError when only half is there."""
    there, *_ = [is_regular(file) for file in files_of(path)]
    if there:
        if path.stat().st_size == 0:
            raise IndexDamagedError(f"{path} is empty")
        return True
    if has_log(path):
        raise IndexDamagedError(f"{path} is gone and its log is not")
    return False


def create(path: Path, shard: int) -> None:
    """Make an empty index, durably and under its name only when it is whole."""
    partial = path.with_name(path.name + ".new")
    for leftover in files_of(partial):
        leftover.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(connect(partial, apsw.SQLITE_OPEN_READWRITE)) as connection:
        lay_out(connection, shard)
        if connection.execute(LOG).get != "wal":
            raise OSError(errno.EIO, "the file takes no log", str(path))
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    partial.rename(path)
    sync_directory(path.parent)


def lay_out(connection: apsw.Connection, shard: int) -> None:
    """Make the tables of an empty index, in one transaction."""
    connection.reserve_bytes(reserve=_RESERVED)
    connection.execute(f"PRAGMA page_size = {PAGE_OCTETS}; PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    with connection:
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}")
        connection.execute("INSERT INTO state VALUES (1, ?, 0)", (shard,))


def examine(connection: apsw.Connection, path: Path, shard: int) -> None:
    """FormatError for another program's or version's file, or another shard's; IndexDamagedError for a strange one."""
    application, version = (connection.pragma(name) for name in ("application_id", "user_version"))
    if application != APPLICATION:
        raise FormatError(f"{path} is not an index of relayd")
    if version != FORMAT:
        raise FormatError(f"{path}: format {version}, and {FORMAT} is the only one known here")
    schema = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid")]
    if connection.reserve_bytes() != _RESERVED or schema != list(SCHEMA):
        raise IndexDamagedError(f"{path}: not the layout of format {FORMAT}")
    owner = connection.execute("SELECT shard FROM state WHERE one = 1").get
    if not isinstance(owner, int):
        raise IndexDamagedError(f"{path}: nobody's")
    if owner != shard:
        raise FormatError(f"{path} belongs to shard {owner}, not to {shard}")


def open_index(path: Path, shard: int, *, read_only: bool) -> apsw.Connection:
    """A connection to an index of this format; a missing one is created, or FileNotFoundError."""
    if not is_there(path):
        if read_only:
            raise FileNotFoundError(errno.ENOENT, "no index", str(path))
        create(path, shard)
    if not has_log(path):
        # Without a log the file alone is read, and a file that is refused has no companion left beside it.
        connection = _examined(connect(path, apsw.SQLITE_OPEN_READONLY, immutable=True), path, shard)
        if read_only:
            return connection
        connection.close()
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    connection = _examined(connect(path, flags), path, shard)
    if not read_only:
        # The log is brought into the file by `index`, which hears of errors that way.
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}; PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_OCTETS}")
    return connection


def _examined(connection: apsw.Connection, path: Path, shard: int) -> apsw.Connection:
    try:
        examine(connection, path, shard)
    except BaseException:
        connection.close()
        raise
    return connection


# At once: when root has been given up, the library's own files may be out of reach.
load_checksums()
