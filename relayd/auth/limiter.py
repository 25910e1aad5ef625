"""The limit on failed authentication: five a minute for a client (an address, or an IPv6 /64) and for an account.

Owns the table of recent failures and its file, which carries it over a restart. Times are wall seconds, given by the
caller. Knows nothing of passwords. Only `authenticator` uses it.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

LIMIT = 5
"""Failures within WINDOW after which attempts are refused unseen."""

WINDOW = 60.0
"""Seconds a failure counts."""

CAPACITY = 20_000
"""Keys remembered. One hash at a time makes some 3,000 failures a minute at most, two keys each."""

_Table = dict[str, list[float]]


class Limiter:
    """Recent failures by key. Every operation is O(LIMIT), `snapshot` is O(keys)."""

    def __init__(self, recorded: _Table | None = None) -> None:
        self._failures: _Table = recorded or {}

    def limited(self, key: str, now: float) -> bool:
        """Whether the key has used up its failures."""
        return len(self._recent(key, now)) >= LIMIT

    def record(self, keys: Iterable[str], now: float) -> None:
        """One more failure for each of the keys."""
        for key in keys:
            recent = self._recent(key, now)
            self._failures.pop(key, None)
            # Re-inserted at the end: the first key is always the one that failed longest ago.
            self._failures[key] = [*recent, now][-LIMIT:]
        while len(self._failures) > CAPACITY:
            del self._failures[next(iter(self._failures))]

    def snapshot(self, now: float) -> bytes:
        """What still counts, for the file; drops what does not."""
        self._failures = {key: recent for key in self._failures if (recent := self._recent(key, now))}
        return msgspec.json.encode(self._failures)

    def _recent(self, key: str, now: float) -> list[float]:
        # A time in the future (the clock was set back) must not lock anybody out for long.
        return [at for at in self._failures.get(key, ()) if now - WINDOW < at <= now + 1]


@functools.lru_cache(maxsize=4096)
def client_key(address: str) -> str:
    """The client a failure counts for: an IPv4 address, or the /64 of an IPv6 address, which is one subscriber."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 6:
        return f"client:{ipaddress.IPv6Network((parsed, 64), strict=False)}"
    return f"client:{parsed}"


def account_key(user: str) -> str:
    """The account a failure counts for, whether or not it exists."""
    return f"account:{user[:255]}"


def load(file: Path) -> Limiter:
    """The failures recorded by an earlier process; whatever is missing or unreadable counts as none."""
    try:
        return Limiter(msgspec.json.decode(file.read_bytes(), type=_Table))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        # At worst a minute's failures are forgotten; refusing to start would be a greater loss.
        return Limiter()


def save(file: Path, snapshot: bytes) -> None:
    """Replace the file in one step; OSError. Not synced: a power cut may forget a minute's failures."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.new")  # worker processes share the file
    draft.write_bytes(snapshot)
    draft.chmod(0o600)
    draft.replace(file)
