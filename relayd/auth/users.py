"""The users file: lines `name:$argon2id$…`, read by the server, changed by `relayd user`.

Owns the format, the strict parse, and the atomic replacement under a lock. `UsersFile` follows changes of the file and
keeps what it had when the new content is not whole. Knows nothing of checking passwords or of sessions.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import argon2

from relayd import log

HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1, type=argon2.Type.ID)
"""argon2id with 19 MiB and two passes: OWASP's second choice, 15 to 30 ms on a current core."""

MAX_NAME = 255
"""Characters of a user name."""

_HASH = re.compile(r"\$argon2id\$v=19\$m=[0-9]{1,7},t=[0-9]{1,3},p=[0-9]{1,3}\$[A-Za-z0-9+/]{8,}\$[A-Za-z0-9+/]{8,}")


class UsersError(Exception):
    """The users file, or a change to it, is not acceptable; the text says why."""


class UsersFile:
    """Names and hashes as they stand in the file now. A lookup costs one stat; a change costs one parse.

    A missing file is an empty one. A file that does not parse wholly leaves the former content in force, and one alert.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users: dict[str, str] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._trouble = ""
        self.generation = 0
        """Grows whenever the content in force changes: what was derived from it is then stale."""
        self.refresh()

    def lookup(self, name: str) -> str | None:
        """The hash of a user, from the file as it is now."""
        self.refresh()
        return self._users.get(name)

    def refresh(self) -> None:
        """Read the file again if it changed."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            users = _read(self._path, known=bool(self._users))
        except (OSError, UsersError) as error:
            if isinstance(error, OSError):
                self._stamp = None  # trouble of ours, not of the file: the next lookup tries again
            self._alert(str(error))
            return
        self._trouble = ""
        if users != self._users:
            self._users = users
            self.generation += 1

    def _alert(self, reason: str) -> None:
        """Once for each trouble, however often it is met."""
        if reason != self._trouble:
            self._trouble = reason
            log.alert("users file not loaded, the former content stays in force", file=str(self._path), reason=reason)


def load(path: Path) -> dict[str, str]:
    """Name to hash, in the file's order; UsersError or OSError when it cannot be used. A missing file is empty."""
    return _read(path, known=False)


def names(path: Path) -> list[str]:
    """The users, sorted."""
    return sorted(load(path))


def add(path: Path, name: str, password: str) -> None:
    """Add a user; UsersError when there is one of that name already."""
    hashed = HASHER.hash(_acceptable(password))
    with _changing(path) as users:
        if users.setdefault(canonical(name), hashed) is not hashed:
            raise UsersError(f"user {name} exists already")


def passwd(path: Path, name: str, password: str) -> None:
    """Change a user's password; UsersError when there is no such user."""
    hashed = HASHER.hash(_acceptable(password))
    with _changing(path) as users:
        if canonical(name) not in users:
            raise UsersError(f"no user {name}")
        users[canonical(name)] = hashed


def remove(path: Path, name: str) -> None:
    """Remove a user; UsersError when there is no such user."""
    with _changing(path) as users:
        if users.pop(canonical(name), None) is None:
            raise UsersError(f"no user {name}")


def canonical(name: str) -> str:
    """The name in NFC; UsersError unless it is 1 to 255 printable characters without space or colon."""
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or ":" in name or any(map(str.isspace, name)):
        raise UsersError("a user name is 1 to 255 printable characters, without spaces and colons")
    return name


def _acceptable(password: str) -> str:
    # RFC 4616 §2: a password of PLAIN is not empty and holds no NUL.
    if not password or "\0" in password:
        raise UsersError("a password is not empty and holds no NUL")
    return password


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when the file does; all zeros when it is missing, -1 when even that cannot be told."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    except OSError:
        return (-1, -1, -1)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path, *, known: bool) -> dict[str, str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise UsersError("not UTF-8") from None
    if not text and known:
        raise UsersError("suddenly empty")
    if text and not text.endswith("\n"):
        raise UsersError("the last line is not whole")
    return _parsed(text.split("\n")[:-1])


def _parsed(lines: list[str]) -> dict[str, str]:
    users: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, _, hashed = line.partition(":")
        try:
            whole = canonical(name) == name
        except UsersError:
            whole = False
        if not whole or not _HASH.fullmatch(hashed) or name in users:
            raise UsersError(f"line {number} is not a new name, a colon and an argon2id hash")
        users[name] = hashed
    return users


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, str]]:
    """The users, to be changed; on leaving, the file is replaced in one step. Changes exclude each other."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock is a file of its own: the users file itself is replaced, and a lock on it would go with the old one.
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users = load(path)
        yield users
        if users:
            _replace(path, "".join(f"{name}:{hashed}\n" for name, hashed in users.items()).encode())
        else:
            # A file that is suddenly empty counts as half-written; a missing one is empty.
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if os.geteuid() == 0:
            # Root changes the file of a server that runs as someone else, who must still be able to read it.
            owner = (path if path.exists() else path.parent).stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
