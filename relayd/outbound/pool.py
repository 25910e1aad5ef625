"""Idle connections, waiting for the next message to their site. Decides at once and does no I/O of its own to decide.

Owns when a connection is too old, too used or too long idle. Knows nothing of what is said on it. `delivery` takes and
puts back; one timer closes what stays idle.
"""

from __future__ import annotations

import asyncio
from collections import deque

from relayd.message.site import Site
from relayd.outbound.connection import Connection

MAX_TRANSACTIONS = 100
"""Transactions of one connection."""

MAX_AGE = 300.0
"""Seconds a connection is used after it was opened (Postfix's smtp_connection_reuse_time_limit)."""

MAX_IDLE = 5.0
"""Seconds a connection may wait for the next message."""


class Pool:
    """Last in, first out for each site: the connection used last is the least likely to have been closed by its peer.

    Invariants: a connection is either with one delivery or here, never both; a site is remembered exactly while a
    connection of it is here; the timer runs while a connection is here. take and put are O(1).
    """

    def __init__(self, max_idle: float = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._sites: dict[Site, deque[Connection]] = {}
        # In the order they became idle, which is the order in which they expire.
        self._idle: dict[Connection, tuple[Site, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, site: Site) -> Connection | None:
        """The site's connection used last that is still usable, or None."""
        while (waiting := self._sites.get(site)) is not None:
            connection = waiting.pop()
            self._forget(connection, site, waiting)
            if connection.usable:
                return connection
        return None

    def put(self, site: Site, connection: Connection) -> None:
        """A delivery is done with a usable connection: keep it, or close it when it has served long enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._closed or connection.transactions >= MAX_TRANSACTIONS or now - connection.opened >= MAX_AGE:
            connection.close()
            return
        self._sites.setdefault(site, deque()).append(connection)
        self._idle[connection] = (site, now + self._max_idle)
        if self._timer is None:
            self._timer = loop.call_later(self._max_idle, self._reap)

    def close(self) -> None:
        """QUIT on everything idle, and on whatever is put back from now on."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._sites.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self, connection: Connection, site: Site, waiting: deque[Connection]) -> None:
        del self._idle[connection]
        if not waiting:
            del self._sites[site]

    def _reap(self) -> None:
        """Close what has been idle for too long, O(closed); wait for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        while self._idle:
            connection, (site, until) = next(iter(self._idle.items()))
            if until > now:
                self._timer = loop.call_at(until, self._reap)
                return
            waiting = self._sites[site]
            # The one idle longest is the first of its site, too.
            waiting.popleft()
            self._forget(connection, site, waiting)
            connection.close()
