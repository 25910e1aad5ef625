"""A large body's file, the blocking half: written once, made durable, checked from end to end before it is read.

    bodies/3f/<queue id>      3f: the first two digits of the id's random part
    file   = header body      header = magic 8, version 2, zero 2, id 24, octets 8, crc of the body 4, crc of these 4

The header is written last: a file without it was never finished. Called from the threads of `bodies`, and by the shard
at open. Knows nothing of records but octets and crc. Symbolic links are followed nowhere below the shard.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from zlib_ng.zlib_ng import crc32

from relayd.message import queue_id
from relayd.smtp.framing import Strays
from relayd.spool import disk
from relayd.spool.disk import sync_directory, write_all
from relayd.spool.records import Filed

FORMAT = 1
"""Version written; a larger one is an error of the message alone."""

READ = 128 * 1024
"""Octets read at a time."""

_MAGIC = b"relaydB\n"
_HEAD = struct.Struct(">8sHH24sQI")
_CRC = struct.Struct(">I")
HEADER = _HEAD.size + _CRC.size
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BodyError(Exception):
    """A body's file is missing or damaged: an error of this message alone, which is kept and never sent altered."""


class NewFile:
    """A file while it is written. `append` as often as wanted, then `seal`; `remove` after any of them, or instead.

    OSError out of `append` or `seal`: nothing is tried again on this descriptor (I5), only `remove` is left.
    """

    def __init__(self, directory: Path, name: str, synced: set[str]) -> None:
        """synced: the sub-directories known to be durable in `directory`; shared by its files."""
        self._directory = directory
        self._name = name
        self._synced = synced
        self._descriptor = -1
        self._created = False
        self._octets = 0
        self._crc = 0

    def append(self, parts: Sequence[bytes]) -> None:
        """Write on; the first creates the file."""
        if not self._created:
            self._create()
        write_all(self._descriptor, parts)
        for part in parts:
            self._crc = crc32(part, self._crc)
            self._octets += len(part)

    def seal(self) -> Filed:
        """Make the file durable, with its directory entries, and close it."""
        head = header(self._name, self._octets, self._crc)
        written = os.pwrite(self._descriptor, head, 0)
        if written != len(head):
            raise OSError(f"{written} of {len(head)} octets written")
        os.fsync(self._descriptor)
        self._close()
        with _opened(self._directory, self._name) as inner:
            os.fsync(inner)
        sub = _sub(self._name)
        if sub not in self._synced:
            sync_directory(self._directory)
            self._synced.add(sub)
        return Filed(self._octets, self._crc)

    def remove(self) -> None:
        """Close and unlink what there is. OSError: the file may be left, for the sweep of the next start."""
        self._close()
        if self._created:
            self._created = False
            unlink(self._directory, self._name)

    def _create(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _opened(self._directory, self._name, make=True) as inner:
            self._descriptor = os.open(self._name, flags, 0o600, dir_fd=inner)
        self._created = True
        write_all(self._descriptor, [bytes(HEADER)])

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class SoundFile:
    """A file that is what its record says, open; BodyError when it is not, OSError when the disk cannot tell.

    All of it is read once, before anybody gets an octet. ascii, ascii_header: whether all of it is, or its header.
    """

    def __init__(self, directory: Path, name: str, filed: Filed) -> None:
        self.ascii = True
        self.ascii_header = True
        self._filed = filed
        self._descriptor = _regular(directory, name)
        try:
            self._check_header(name)
            self._check_body()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int) -> bytes:
        """READ octets of the body, fewer at its end."""
        return os.pread(self._descriptor, min(READ, self._filed.octets - offset), HEADER + offset)

    def close(self) -> None:
        """Once."""
        os.close(self._descriptor)

    def _check_header(self, name: str) -> None:
        size = os.fstat(self._descriptor).st_size
        if size != HEADER + self._filed.octets:
            raise BodyError(f"{size} octets instead of {HEADER + self._filed.octets}")
        raw = os.pread(self._descriptor, HEADER, 0)
        if raw != header(name, self._filed.octets, self._filed.crc):
            magic, version, *_ = _HEAD.unpack_from(raw.ljust(HEADER, b"\0"))
            newer = magic == _MAGIC and version > FORMAT and _CRC.pack(crc32(raw[:-4])) == raw[-4:]
            raise BodyError(f"format {version} is newer than {FORMAT}" if newer else "wrong header")

    def _check_body(self) -> None:
        strays = Strays()
        crc = offset = 0
        fault, tail, in_header = "", b"\r\n", True
        while block := self.read(offset):
            crc = crc32(block, crc)
            offset += len(block)
            fault = strays.feed(block)
            self.ascii = self.ascii and block.isascii()
            tail += block
            if in_header:
                end = tail.find(b"\r\n\r\n")
                self.ascii_header = self.ascii_header and (tail if end < 0 else tail[:end]).isascii()
                in_header = end < 0
            tail = tail[-3:]
        if offset != self._filed.octets or crc != self._filed.crc:
            raise BodyError("wrong checksum")
        if fault or not tail.endswith(b"\r\n"):
            # The record may be as forged as the file: what could smuggle does not come back from the disk.
            raise BodyError(f"{fault or 'no CRLF at the end'} in the body")


def header(name: str, octets: int, crc: int) -> bytes:
    """The header of a message's file."""
    head = _HEAD.pack(_MAGIC, FORMAT, 0, name.encode("ascii"), octets, crc)
    return head + _CRC.pack(crc32(head))


def unlink(directory: Path, name: str) -> None:
    """Remove a message's file; no sync: one that comes back is an orphan of the next start. OSError."""
    with contextlib.suppress(FileNotFoundError), _opened(directory, name) as inner:
        disk.remove(name, directory=inner)


def set_aside(path: Path, quarantine: Path) -> None:
    """Move a file, or whatever has its name, into the quarantine, durably and over nothing that is there. OSError."""
    target, number = quarantine / f"{path.name}.body", 0
    while os.path.lexists(target):
        number += 1
        target = quarantine / f"{path.name}.body.{number}"
    path.rename(target)
    sync_directory(quarantine)
    sync_directory(path.parent)


def path_of(directory: Path, name: str) -> Path:
    """Where a message's file is; `name` is a valid queue id."""
    return directory / _sub(name) / name


def sweep(directory: Path, quarantine: Path, live: Container[str], *, doubt: bool) -> tuple[int, int]:
    """At open: files that no live message names are removed. How many were, and how many were moved. OSError.

    In `doubt`, when part of the journal could not be read, one of them may be acknowledged mail: then they move to the
    quarantine, as does, at any time, what has no name of ours. O(files).
    """
    removed = moved = 0
    for sub in _entries(directory):
        inside = _entries(directory / sub) if _is_sub(directory / sub) else None
        for name in [None] if inside is None else inside:
            path = directory / sub / name if name else directory / sub
            ours = name is not None and queue_id.is_valid(name) and _sub(name) == sub
            if ours and name in live:
                continue
            if ours and not doubt and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
                removed += 1
            else:
                set_aside(path, quarantine)
                moved += 1
    return removed, moved


def _entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _is_sub(path: Path) -> bool:
    return len(path.name) == 2 and stat.S_ISDIR(path.lstat().st_mode)


def _sub(name: str) -> str:
    return name[3:5]


def _regular(directory: Path, name: str) -> int:
    """The file of this name, opened; BodyError for anything that is no plain file of its own."""
    try:
        with _opened(directory, name) as inner:
            # O_NONBLOCK: opening a FIFO must not wait for a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=inner)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BodyError("the file is missing") from error
    except OSError as error:
        if path_of(directory, name).is_symlink():
            raise BodyError("a symbolic link") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise BodyError("not a regular file of its own")
    return descriptor


@contextlib.contextmanager
def _opened(directory: Path, name: str, *, make: bool = False) -> Iterator[int]:
    """The sub-directory of a message's file."""
    top = os.open(directory, _DIRECTORY)
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(_sub(name), 0o700, dir_fd=top)
        inner = os.open(_sub(name), _DIRECTORY, dir_fd=top)
    finally:
        os.close(top)
    try:
        yield inner
    finally:
        os.close(inner)
