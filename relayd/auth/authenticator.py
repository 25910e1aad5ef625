"""The check of a password: limits, cache, and one argon2 hash at a time, off the event loop.

Owns the executor, the waiting line before it and the cache of positive answers. Answers with a `Verdict`; inbound
makes a reply of it. Same answer and same cost for an unknown user and a wrong password.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import hmac
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

import argon2

from relayd import clock, log, metrics
from relayd.auth import limiter
from relayd.auth.users import HASHER, UsersFile

P = ParamSpec("P")

WAITING = 64
"""Checks in the waiting line; at 20 to 30 ms a hash the last one waits two seconds."""

CACHE_SECONDS = 60.0
"""How long a positive answer is remembered."""

CACHE_SIZE = 4096
"""Positive answers remembered."""

_NOBODY = f"$argon2id$v=19$m={HASHER.memory_cost},t={HASHER.time_cost},p={HASHER.parallelism}${'A' * 22}${'A' * 43}"
"""A hash of nothing known, verified for users that do not exist: the same work as for those that do."""


class Verdict(enum.Enum):
    """What became of an attempt."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    LIMITED_CLIENT = "limited client"
    LIMITED_ACCOUNT = "limited account"
    BUSY = "busy"


class Authenticator:
    """Checks names and passwords against the users file.

    The order of a check is its policy. A client over its limit is refused first. A pair (name, password) that this
    very client proved within the last minute passes next, without a hash: so an attacker elsewhere cannot lock out
    a user who keeps sending, and the cache answers no guesses from other addresses. An account over its limit is
    refused then, which counts against the client alone. All others are hashed, in turn, looking at the limits once
    more when the turn comes: a hundred connections at once get five tries between them.
    """

    def __init__(self, users_file: Path, failures_file: Path) -> None:
        self.failed: Callable[[Sequence[str], float], None] = _tell_nobody
        """Told of each failure counted here: keys of the limiter, wall seconds. For processes that count as one."""
        self._users = UsersFile(users_file)
        self._failures_file = failures_file
        self._failures = limiter.load(failures_file)
        self._alerted = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="argon2")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._secret = secrets.token_bytes(32)
        self._cache: dict[bytes, float] = {}
        self._generation = self._users.generation

    async def check(self, user: str, password: bytes, client: str) -> Verdict:
        """Whether `client` (an IP address) may act as `user` (NFC). Costs one hash unless limited or cached."""
        verdict = self._known(user, password, client)
        if verdict is None:
            if self._waiting >= WAITING:
                return Verdict.BUSY
            with self._in_line():
                async with self._turn:
                    verdict = self._known(user, password, client) or await self._hashed(user, password, client)
        if verdict is not Verdict.ACCEPTED:
            metrics.authentication_failures.inc()
        return verdict

    def heard(self, keys: Sequence[str], at: float) -> None:
        """Count a failure that another process was the one to see, and to save."""
        self._failures.record(keys, at)

    def close(self) -> None:
        """Let go of the thread; a hash in progress ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _known(self, user: str, password: bytes, client: str) -> Verdict | None:
        """The answer that needs no hash, if there is one. O(1)."""
        now = clock.wall()
        if self._failures.limited(limiter.client_key(client), now):
            return Verdict.LIMITED_CLIENT
        if self._cached(self._fingerprint(user, password, client)):
            return Verdict.ACCEPTED
        if self._failures.limited(limiter.account_key(user), now):
            self._count([limiter.client_key(client)], now)
            return Verdict.LIMITED_ACCOUNT
        return None

    async def _hashed(self, user: str, password: bytes, client: str) -> Verdict:
        hashed = self._users.lookup(user)
        generation = self._users.generation
        right = await self._in_thread(_matches, hashed or _NOBODY, password)
        if hashed is not None and right:
            if generation == self._users.generation:
                self._remember(self._fingerprint(user, password, client))
            return Verdict.ACCEPTED
        now = clock.wall()
        self._count([limiter.client_key(client), limiter.account_key(user)], now)
        if not await self._in_thread(_saved, self._failures_file, self._failures.snapshot(now)):
            self._alert_once()
        return Verdict.REFUSED

    def _count(self, keys: Sequence[str], now: float) -> None:
        self._failures.record(keys, now)
        self.failed(keys, now)

    async def _in_thread(self, function: Callable[P, bool], *arguments: P.args, **named: P.kwargs) -> bool:
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _alert_once(self) -> None:
        if not self._alerted:
            self._alerted = True
            log.alert("failed logins are not recorded", file=str(self._failures_file))

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    # --- the cache of positive answers --------------------------------------------------------------------------------

    def _fingerprint(self, user: str, password: bytes, client: str) -> bytes:
        """Names a proven pair without holding the password: useless without this process's secret."""
        return hmac.digest(self._secret, b"\0".join((user.encode(), client.encode(), password)), "sha256")

    def _cached(self, fingerprint: bytes) -> bool:
        self._users.refresh()
        if self._generation != self._users.generation:
            self._generation = self._users.generation
            self._cache.clear()
        return self._cache.get(fingerprint, 0.0) > clock.monotonic()

    def _remember(self, fingerprint: bytes) -> None:
        # Re-inserted at the end: the first is always the oldest, so the bound drops what expires first.
        self._cache.pop(fingerprint, None)
        self._cache[fingerprint] = clock.monotonic() + CACHE_SECONDS
        if len(self._cache) > CACHE_SIZE:
            del self._cache[next(iter(self._cache))]


def _tell_nobody(_keys: Sequence[str], _at: float) -> None:
    pass


def _matches(hashed: str, password: bytes) -> bool:
    try:
        return HASHER.verify(hashed, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        # A mismatch; or a hash whose parameters the library refuses, which lets nobody in.
        return False


def _saved(file: Path, snapshot: bytes) -> bool:
    try:
        limiter.save(file, snapshot)
    except OSError:
        return False
    return True
