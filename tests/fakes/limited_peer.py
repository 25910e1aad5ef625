"""A next hop that limits: connections at once, messages a second, messages a session, and how fast it answers.

Its replies are those of real hosts. It counts by the second what it took and what it refused, and says nothing of how a
client should keep to its limits.

    async with LimitedPeer(connections=5, service=0.05) as peer:
        ...
        sum(second.refused for second in peer.seconds.values())
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.fakes.sink import OK, Received, Session, Sink

TOO_MANY_CONNECTIONS = b"421 4.7.0 Too many connections from your address\r\n"
TOO_MANY_MESSAGES = b"421 4.7.0 Too many messages in this session\r\n"
TOO_FAST = b"450 4.7.1 Rate limit exceeded, slow down\r\n"


class Law(Protocol):
    """Whether one more message may come at `now` (seconds); what may is counted, what may not is not."""

    def admits(self, now: float) -> bool: ...


class SlidingWindow:
    """At most `rate` messages in any second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._admitted: deque[float] = deque()

    def admits(self, now: float) -> bool:
        while self._admitted and self._admitted[0] <= now - 1:
            self._admitted.popleft()
        if len(self._admitted) >= self._rate:
            return False
        self._admitted.append(now)
        return True


class TokenBucket:
    """`rate` messages a second on average; after a quiet second, as many at once."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._at = 0.0

    def admits(self, now: float) -> bool:
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass
class Second:
    """accepted, refused: messages; turned_away: connections. open, most: connections at its end, and at once."""

    accepted: int = 0
    refused: int = 0
    turned_away: int = 0
    open: int = 0
    most: int = 0


class LimitedPeer(Sink):
    """A sink with limits, each of them None for none.

    connections: at once; the next one is greeted with 421. law: of messages a second; above it MAIL is answered 450.
    session: messages of one, then MAIL is answered 421. service: seconds from the end of a message to its answer.
    seconds: what happened, by whole seconds since it first listened, or `restart`; a quiet second is not there.
    """

    def __init__(
        self,
        *,
        connections: int | None = None,
        law: Law | None = None,
        session: int | None = None,
        service: float = 0.0,
        on_message: Callable[[Received], object] | None = None,
    ) -> None:
        super().__init__(on_message)
        self.delay = service
        self.seconds: dict[int, Second] = {}
        self._limit = connections
        self._law = law
        self._session = session
        self._open: set[Session] = set()
        self._began: float | None = None

    async def __aenter__(self):
        if self._began is None:
            self.restart()
        return await super().__aenter__()

    def restart(self) -> None:
        """Count from now on, and forget what was."""
        self._began = asyncio.get_running_loop().time()
        self.seconds = {}

    @property
    def most(self) -> int:
        """Connections that were served at once."""
        return max((second.most for second in self.seconds.values()), default=0)

    @property
    def turned_away(self) -> int:
        """Connections that were greeted with 421."""
        return sum(second.turned_away for second in self.seconds.values())

    @property
    def refused(self) -> int:
        """Messages refused at MAIL."""
        return sum(second.refused for second in self.seconds.values())

    def greeting(self, session: Session) -> bytes:
        if self._limit is not None and len(self._open) >= self._limit:
            self._now.turned_away += 1
            return TOO_MANY_CONNECTIONS
        self._open.add(session)
        now = self._now
        now.open = len(self._open)
        now.most = max(now.most, now.open)
        return super().greeting(session)

    def closed(self, session: Session) -> None:
        self._open.discard(session)
        self._now.open = len(self._open)
        super().closed(session)

    def sender(self, session: Session) -> bytes:
        reply = self._judged(session)
        self._now.refused += reply != OK
        return reply

    def message(self, received: Received) -> bytes:
        self._now.accepted += 1
        return super().message(received)

    def _judged(self, session: Session) -> bytes:
        if self._session is not None and session.messages >= self._session:
            return TOO_MANY_MESSAGES
        if self._law is not None and not self._law.admits(asyncio.get_running_loop().time()):
            return TOO_FAST
        return OK

    @property
    def _now(self) -> Second:
        assert self._began is not None
        at = int(asyncio.get_running_loop().time() - self._began)
        second = self.seconds.get(at)
        if second is None:
            second = self.seconds[at] = Second(open=len(self._open), most=len(self._open))
        return second
