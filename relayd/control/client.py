"""The control socket's client, for commands: one request, one answer, blocking.

Knows where the socket is and how long to wait. NoServerError tells the caller to look into the spool itself.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TypeVar

import msgspec

from relayd.control.protocol import Answer, Request, socket_address

_SECONDS = 60
_MAX_ANSWER = 1 << 30

T = TypeVar("T")


class NoServerError(Exception):
    """No relayd is running on this spool."""


class ControlError(Exception):
    """The server refused the request, or its answer made no sense; the text says why."""


def ask(spool: Path, request: Request, kind: type[T]) -> T:
    """The result of `request` as a `kind`. NoServerError, ControlError, or OSError (TimeoutError) on broken I/O."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        try:
            with socket_address(spool) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoServerError from None
        connection.sendall(msgspec.json.encode(request) + b"\n")
        with connection.makefile("rb") as stream:
            line = stream.readline(_MAX_ANSWER)
    return _result(line, kind)


def _result(line: bytes, kind: type[T]) -> T:
    try:
        answer = msgspec.json.decode(line, type=Answer)
        if answer.ok:
            return msgspec.json.decode(answer.result, type=kind)
    except msgspec.DecodeError as error:
        raise ControlError(f"unreadable answer: {error}") from error
    raise ControlError(answer.error)
