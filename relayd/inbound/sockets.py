"""The sockets of the listeners: bound, not yet listening.

Apart from `listener`, because whoever starts several processes binds once for all of them, before root is given up.
Knows nothing of SMTP. Used by listener and supervisor.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from relayd.config.schema import Listener


class ListenerError(OSError):
    """A listener cannot be opened: the text says which and why."""


class Bound(NamedTuple):
    """A socket, and the listener it is for: its place in the configuration."""

    listener: int
    socket: socket.socket


def bind(listeners: Sequence[Listener]) -> list[Bound]:
    """All of them, one for each address a listener's name has; connections are refused until one listens.

    ListenerError, with none left open.
    """
    with contextlib.ExitStack() as undo:
        bound: list[Bound] = []
        for number, listener in enumerate(listeners):
            for sock in _sockets(listener):
                undo.callback(sock.close)
                bound.append(Bound(number, sock))
        undo.pop_all()
    return bound


def _sockets(listener: Listener) -> Iterator[socket.socket]:
    try:
        for family, *_, address in socket.getaddrinfo(listener.bind.host, listener.bind.port, type=socket.SOCK_STREAM):
            yield _socket(family, address)
    except OSError as error:
        raise ListenerError(f"listener {listener.bind}: {error.strerror or error}") from None


def _socket(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
