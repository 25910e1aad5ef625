"""Idle connections, waiting for the next message to their site. Decides at once and does no I/O of its own to decide.

Owns when a connection is too old, too used or too long idle. Knows nothing of what is said on it. `delivery` takes and
puts back; one timer closes what stays idle.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from relayd.message.site import Site
from relayd.outbound.connection import Connection

MAX_AGE = 300.0
"""Seconds a connection is used after it was opened (Postfix's smtp_connection_reuse_time_limit)."""

MAX_IDLE = 5.0
"""Seconds a connection may wait for the next message …"""

MAX_BACKLOG_IDLE = 30.0
"""… and while its site has mail that is not ready yet: longer, and many servers would close it themselves."""


class Pool:
    """Last in, first out for each site: the connection used last is the least likely to have been closed by its peer.

    Invariants: a connection is either with one delivery or here, never both; a site is remembered exactly while a
    connection of it is here; the timer runs while a connection is here. take and put are O(1).
    """

    def __init__(self, backlog: Callable[[Site], bool] = lambda _: False, max_idle: float = MAX_IDLE) -> None:
        """backlog: whether the site will have more mail soon; asked when a connection of it has been idle for long."""
        self._backlog = backlog
        self._max_idle = max_idle
        # Connections in the order in which they were put back.
        self._sites: dict[Site, dict[Connection, None]] = {}
        # Site, end of the wait, its beginning: in the order of their ends, as each is a max_idle after being put here.
        self._idle: dict[Connection, tuple[Site, float, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._renewed = -math.inf
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, site: Site) -> Connection | None:
        """The site's connection used last that is still usable, or None."""
        while (waiting := self._sites.get(site)) is not None:
            connection = next(reversed(waiting))
            self._forget(connection, site)
            if connection.usable:
                return connection
        return None

    def put(self, site: Site, connection: Connection) -> None:
        """A delivery is done with a usable connection: keep it, or close it when it has served long enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._closed or self._worn(connection, now):
            connection.close()
            return
        self._sites.setdefault(site, {})[connection] = None
        self._idle[connection] = (site, now + self._max_idle, now)
        if self._timer is None:
            self._timer = loop.call_later(self._max_idle, self._reap)

    def idle(self, site: Site) -> int:
        """How many of the site's connections are here."""
        return len(self._sites.get(site, ()))

    def shed(self, site: Site, keep: int) -> None:
        """Close the site's connections that have been idle for longest, all but so many. O(those of the site)."""
        idle = [*self._sites.get(site, ())]
        for connection in idle[: max(0, len(idle) - keep)]:
            self._forget(connection, site)
            connection.close()

    def renew(self) -> None:
        """Close every connection opened before now, idle ones at once, others when put back: after a reload."""
        self._renewed = asyncio.get_running_loop().time()
        self._close_idle()

    def close(self) -> None:
        """QUIT on everything idle, and on whatever is put back from now on."""
        self._closed = True
        self._close_idle()

    def _worn(self, connection: Connection, now: float) -> bool:
        return (
            connection.transactions >= connection.limit
            or now - connection.opened >= MAX_AGE
            or connection.opened <= self._renewed
        )

    def _close_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._sites.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self, connection: Connection, site: Site) -> None:
        del self._idle[connection]
        waiting = self._sites[site]
        del waiting[connection]
        if not waiting:
            del self._sites[site]

    def _reap(self) -> None:
        """Close what has been idle for too long, O(closed or kept on); wait for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        while self._idle:
            connection, (site, until, since) = next(iter(self._idle.items()))
            if until > now:
                self._timer = loop.call_at(until, self._reap)
                return
            if self._stays(connection, site, now, since):
                del self._idle[connection]
                self._idle[connection] = (site, now + self._max_idle, since)
            else:
                self._forget(connection, site)
                connection.close()

    def _stays(self, connection: Connection, site: Site, now: float, since: float) -> bool:
        """Whether an idle connection waits for longer than usual."""
        within = now + self._max_idle <= since + MAX_BACKLOG_IDLE and now - connection.opened < MAX_AGE
        return within and connection.usable and self._backlog(site)
