"""One listening socket: takes connections off it, and pauses while descriptors are spent.

Not the event loop's own server: out of descriptors, asyncio's logs an error for each waiting client and comes back for
more, and uvloop's closes them unanswered. Here they wait in the kernel's backlog. Knows nothing of SMTP.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from relayd import log
from relayd.inbound.headcount import Headcount

BACKLOG = 1024
"""Connections the kernel may keep waiting for us."""

_BURST = 64
"""Connections taken in one go at most, so that the loop gets to serve them."""

_LOOKS, _INTERVAL = 10, 0.001
"""How often, each so many seconds, it is looked whether another process has taken a connection that was left to it …"""

_LEFT = 16
"""… and so many are taken in one go when it has not: it may be hung."""

_SPENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Calls `welcome(socket, peer)` for each connection, on the event loop. The socket is then the callee's."""

    def __init__(
        self,
        sock: socket.socket,
        welcome: Callable[[socket.socket, object], None],
        pause: float,
        headcount: Headcount,
    ) -> None:
        """`pause`: seconds without accepting while descriptors are spent. `headcount`: with who accepts here too."""
        self._socket = sock
        self._welcome = welcome
        self._pause = pause
        self._headcount = headcount
        self._resume: asyncio.TimerHandle | None = None
        self._looks = 0
        """How many are left; 0 while nothing is left to another process."""
        self._alerted = False

    def start(self) -> None:
        """Begin to accept."""
        self._socket.listen(BACKLOG)
        self._listen()

    def stop(self) -> None:
        """Accept no more and close the socket; what waits is reset by the kernel, unless others share the socket."""
        if self._resume:
            self._resume.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def look(self) -> None:
        """Connections have ended: perhaps there is nothing to be left to another process any more."""
        if self._looks and not self._headcount.leaves():
            self._listen()

    def _ready(self) -> None:
        if self._headcount.leaves():
            self._leave(_LOOKS)
        else:
            self._take(_BURST, self._headcount.leaves)

    def _leave(self, looks: int) -> None:
        self._looks = looks
        self._rest(_INTERVAL, self._look)

    def _look(self) -> None:
        if not self._headcount.leaves():
            self._listen()
        elif self._looks > 1:
            self._leave(self._looks - 1)
        else:
            self._listen()
            self._take(_LEFT, lambda: False)

    def _take(self, most: int, enough: Callable[[], bool]) -> None:
        for _ in range(most):
            try:
                connection, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(error)
                return
            self._alerted = False
            connection.setblocking(False)
            self._welcome(connection, peer)
            if enough():
                return

    def _wait(self, error: OSError) -> None:
        """Try again later; other errors than spent resources are as little the client's fault."""
        if not self._alerted:
            what = "descriptors or memory spent" if error.errno in _SPENT else "accept failed"
            log.alert(f"{what}, new connections wait", reason=error.strerror)
            self._alerted = True
        self._rest(self._pause, self._listen)

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._resume = loop.call_later(seconds, then)

    def _listen(self) -> None:
        self._looks = 0
        if self._resume:
            self._resume.cancel()
        asyncio.get_running_loop().add_reader(self._socket, self._ready)
