"""Who the relay is at a next hop: a name, and a password or an OAuth token, fetched when a session needs it.

Owns reading files, running the command that prints tokens, and keeping a token for as long as it lives. Knows no SMTP:
what is said is `login`'s. `connector` asks before it dials. No text made here, error or repr, holds a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
from pydantic import SecretStr

from relayd import clock
from relayd.config import schema

FETCH_SECONDS = 30.0
"""What a file, or the command, gets to bring the secret."""

KILL_SECONDS = 1.0
"""How long a command that was killed is waited for."""

MAX_OCTETS = 64 * 1024
"""Of a file, or of a command's output."""

EARLY = 60.0
"""Seconds before its end from which a token is not used any more."""

LIFE = 300.0
"""Seconds a token is used that does not say how long it lives."""

MAX_LIFE = 86400.0
"""Seconds any token is used."""

DROP_PAUSE = 60.0
"""Seconds between two tokens that are fetched because one was refused: the next one is unlikely to be better."""


class CredentialsError(Exception):
    """The secret cannot be had; says which setting and why, never the secret."""


class Secret(msgspec.Struct, frozen=True):
    """What proves who we are, in printable ASCII. token: an OAuth 2.0 access token (RFC 6749), else a password."""

    text: SecretStr
    token: bool = False


class _Token(msgspec.Struct):
    """The answer of a token endpoint (RFC 6749 §5.1), as far as it matters."""

    access_token: str
    expires_in: float | None = None


class Credentials:
    """The credentials of one route. Files are read for each session; a command's token is kept while it lives.

    Invariants: at most one command runs at a time, and one thread reads; all who wait share what it brings, so that one
    that hangs holds nobody else's. A token is given to nobody in its last EARLY seconds. Cost: O(1).
    """

    def __init__(self, configured: schema.Credentials, now: Callable[[], float] = clock.monotonic) -> None:
        self.username = _printable(configured.username, "username")
        self.mechanism = configured.mechanism
        self._configured = configured
        self._now = now
        self._kept: SecretStr | None = None
        self._until = -math.inf
        self._dropped = -math.inf
        self._fetching: asyncio.Task[SecretStr] | None = None
        self._reading: asyncio.Future[bytes] | None = None

    async def secret(self) -> Secret:
        """The secret as it is now, within FETCH_SECONDS; CredentialsError."""
        configured = self._configured
        if configured.token_command:
            return Secret(await self._of_command(), token=True)
        if configured.token_file:
            return Secret(_token(await self._content(configured.token_file, "token_file"), "token_file")[0], token=True)
        if configured.password_file:
            content = await self._content(configured.password_file, "password_file")
            return Secret(_line(content, "password_file"))
        if configured.password is not None:
            return Secret(SecretStr(_printable(configured.password.get_secret_value(), "password")))
        raise CredentialsError("neither a password nor a token is configured")

    def drop(self, secret: Secret) -> None:
        """A next hop refused it: if it is the token kept, the next `secret` is another, once a minute at most."""
        if secret.text == self._kept and self._now() >= self._dropped + DROP_PAUSE:
            self._dropped = self._now()
            self.forget()

    def forget(self) -> None:
        """Keep no token."""
        self._kept = None

    async def close(self) -> None:
        """End the command, if it runs."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _of_command(self) -> SecretStr:
        if self._kept is not None and self._now() < self._until:
            return self._kept
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> SecretStr:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                output = await _output(self._configured.token_command)
        except TimeoutError:
            raise CredentialsError(f"token_command: no end within {FETCH_SECONDS:g} s") from None
        except (OSError, ValueError) as error:
            raise CredentialsError(f"token_command cannot be started: {error}") from None
        token, seconds = _token(output, "token_command")
        self._kept, self._until = token, self._now() + seconds
        return token

    async def _content(self, file: Path, setting: str) -> bytes:
        if self._reading is None:
            self._reading = asyncio.get_running_loop().run_in_executor(None, _read, file)
            self._reading.add_done_callback(self._has_read)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await asyncio.shield(self._reading)
        except TimeoutError:
            raise CredentialsError(f"{setting}: {file} cannot be read within {FETCH_SECONDS:g} s") from None
        except OSError as error:
            raise CredentialsError(f"{setting}: {file} cannot be read: {error.strerror}") from None

    def _has_read(self, reading: asyncio.Future[bytes]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # as below

    def _fetched(self, task: asyncio.Task[SecretStr]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # everyone who waited for it may have gone


def _read(file: Path) -> bytes:
    with open(file, "rb", opener=_opened) as opened:
        return opened.read(MAX_OCTETS + 1) or b""


def _opened(file: str, flags: int) -> int:
    """Without waiting for somebody to write into a pipe: the process could not end."""
    return os.open(file, flags | os.O_NONBLOCK)


def _token(content: bytes, setting: str) -> tuple[SecretStr, float]:
    """A token and the seconds it may be used, from its bare text or the JSON of a token endpoint."""
    if not content.lstrip().startswith(b"{"):
        return _line(content.strip(), setting), LIFE
    try:
        said = msgspec.json.decode(content, type=_Token, strict=False)
    except (msgspec.DecodeError, RecursionError):
        raise CredentialsError(f"{setting}: JSON without an access_token") from None
    left = LIFE if said.expires_in is None else said.expires_in - EARLY
    # In this order, what is no number is 0.
    return SecretStr(_printable(said.access_token, setting)), max(0.0, min(left, MAX_LIFE))


def _line(content: bytes, setting: str) -> SecretStr:
    """The first line."""
    if len(content) > MAX_OCTETS:
        raise CredentialsError(f"{setting}: more than {MAX_OCTETS} octets")
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    return SecretStr(_printable(line.decode("latin-1"), setting))


def _printable(text: str, setting: str) -> str:
    """What every mechanism can carry: CR and LF would end a line, NUL and ^A a field; the rest has no one encoding."""
    if not text:
        raise CredentialsError(f"{setting}: empty")
    if not (text.isascii() and text.isprintable()):
        raise CredentialsError(f"{setting}: holds other characters than printable ASCII")
    return text


class _Run(asyncio.SubprocessProtocol):
    """Gathers what a command prints. ended: it is over; CredentialsError: too much. exited: the process has gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.output = b""
        self.ended: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002  # there is one pipe
        self.output += data
        if len(self.output) > MAX_OCTETS and not self.ended.done():
            self.ended.set_exception(CredentialsError(f"token_command: more than {MAX_OCTETS} octets of output"))

    def process_exited(self) -> None:
        """Its pipe may still be open, in a child's hands."""
        _set(self.exited)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # nothing is written to it
        """The process has ended and its pipe is closed."""
        _set(self.ended)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _output(command: tuple[str, ...]) -> bytes:
    """What a command prints; whatever happens, nothing of it runs on. OSError, ValueError: it cannot be started."""
    loop = asyncio.get_running_loop()
    run = _Run(loop)
    quiet = asyncio.subprocess.DEVNULL  # errors may tell secrets, too
    transport, _ = await loop.subprocess_exec(
        lambda: run, *command, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet, start_new_session=True
    )
    with contextlib.closing(transport):
        try:
            await run.ended
        except BaseException:
            # The whole group: a script may have started others, and gone.
            with contextlib.suppress(OSError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            await asyncio.wait([run.exited], timeout=KILL_SECONDS)
            raise
    if status := transport.get_returncode():
        raise CredentialsError(f"token_command ended with status {status}")
    return run.output
