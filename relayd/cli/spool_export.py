"""A queued message as a file: its envelope in header fields of our own, then the message byte for byte.

Owns the form of these fields (docs/SPOOL.md) and that nothing is ever overwritten. What clients and peers chose cannot
add a line, or a parameter, of its own. Called by `spool`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from email.header import Header
from pathlib import Path
from typing import Self
from urllib.parse import quote

from relayd.message import received
from relayd.smtp.address import Address
from relayd.spool.index_file import IndexDamagedError
from relayd.spool.journal import RecordError
from relayd.spool.records import Message, Result
from relayd.spool.viewer import Viewer

_LATEST = 253402300799.0
"""The last second of the year 9999: a date has four digits (RFC 5322 §3.3), a forged record may say more."""

_OCTETS = 900
"""Of a parameter's value, and of an account as it is: lines have 998 at most (RFC 5322 §2.1.1)."""

_ESCAPED = frozenset('"\\')
"""What would need a backslash in a quoted string."""


class UnreadableError(Exception):
    """The body of a message cannot be read."""


class Exporter:
    """Writes ID.eml files into a directory, made 0700 where it is missing. OSError. Memory: one part of a body."""

    def __init__(self, viewer: Viewer, directory: Path) -> None:
        self._viewer = viewer
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    def write(self, message: Message) -> None:
        """One message, whole or not at all.

        FileExistsError and UnreadableError are of this message alone; MissingError: it has left the queue meanwhile.
        Any other OSError is of the directory.
        """
        parts = self._body(message)
        # A body that is in one part is read, and found sound, before there is a file.
        first = next(parts, b"")
        name = f"{message.envelope.id}.eml"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=self._directory), "wb") as file:
            try:
                file.write(envelope_fields(message))
                file.write(first)
                file.writelines(parts)
                file.flush()
            except BaseException:
                os.unlink(name, dir_fd=self._directory)
                raise

    def _body(self, message: Message) -> Iterator[bytes]:
        try:
            yield from self._viewer.body(message)
        except (RecordError, IndexDamagedError, OSError) as error:
            raise UnreadableError(str(error)) from error


def envelope_fields(message: Message) -> bytes:
    """The fields in front of a message, CRLF at the end of each line. The size is the last of them.

    A message may begin with anything: fields of the same names, or the continuation of a line. So whoever reads a file
    takes the fields up to X-Relayd-Size, and what is behind that line is the message.
    """
    envelope = message.envelope
    lines = [
        f"X-Relayd-Id: {envelope.id}",
        f"X-Relayd-Sender: <{envelope.sender}>",
        *(_recipient(*pair) for pair in zip(envelope.recipients, message.results, strict=True)),
        f"X-Relayd-Accepted: {_date(envelope.accepted_at)}",
        f"X-Relayd-Account: {_unstructured(envelope.account)}",
        f"X-Relayd-Size: {envelope.size}",
        "",
    ]
    return "\r\n".join(lines).encode()


def _recipient(address: Address, result: Result | None) -> str:
    """The path as it was said, in UTF-8 where it is not ASCII (RFC 6532), and a parameter on each line behind it."""
    if result is None:
        return f"X-Relayd-Recipient: <{address}>;\r\n state=queued"
    parameters = [f"state={result.state.value}", f"attempts={result.attempts}", f'at="{_date(result.at)}"']
    if not result.state.final:
        parameters.append(f'due="{_date(result.due)}"')
    parameters.append(_parameter("reply", str(result.reply)))
    if result.host:
        parameters.append(_parameter("host", result.host))
    return ";\r\n ".join([f"X-Relayd-Recipient: <{address}>", *parameters])


def _parameter(name: str, text: str) -> str:
    """A parameter, its value cut at _OCTETS: between quotes (RFC 2045 §5.1), or percent-encoded (RFC 2231 §4).

    No backslash is written: not every parser knows what stands behind two of them.
    """
    if _is_plain(text) and _ESCAPED.isdisjoint(text):
        return f'{name}="{text[:_OCTETS]}"'
    return f"{name}*=UTF-8''{_cut(quote(character, safe='') for character in text)}"


def _cut(characters: Iterable[str]) -> str:
    kept, octets = [], 0
    for character in characters:
        octets += len(character)
        if octets > _OCTETS:
            break
        kept.append(character)
    return "".join(kept)


def _unstructured(text: str) -> str:
    """As it is, or in encoded words (RFC 2047)."""
    if _is_plain(text) and len(text) <= _OCTETS and "=?" not in text and text == text.strip():
        return text
    return Header(text, "utf-8", header_name="X-Relayd-Account").encode(linesep="\r\n")


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _date(at: float) -> str:
    return received.date(min(at, _LATEST))
