"""One site's configured pace, divided among the workers that have mail for it.

Owns who was promised what and until when. Knows no connections; `broker` has one for each site with a pace.
"""

from __future__ import annotations

import msgspec

SHORTEST_TERM, LONGEST_TERM = 2.0, 60.0
"""Seconds for which a share is good: so long may a worker that comes anew have to wait for its own."""


class Shares(msgspec.Struct, eq=False, gc=False):
    """Shares that end.

    Invariant: what workers may go by at any time adds up to `rate` at most. A share that was made smaller counts as it
    was until it ends, as nobody knows when its worker hears of that. O(workers) each.
    """

    rate: float
    _promises: dict[int, list[tuple[float, float]]] = {}
    """By worker: messages a second, and until when; the last one is what it goes by once it has heard of it."""
    _asking: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(self._promises or self._asking)

    @property
    def term(self) -> float:
        """Seconds for which a share is good: those of two messages, within bounds."""
        return min(max(SHORTEST_TERM, 2 / self.rate), LONGEST_TERM)

    @property
    def next(self) -> float | None:
        """When somebody who asked can be given more, or what is promised may be forgotten."""
        return min((until for promises in self._promises.values() for _, until in promises), default=None)

    def ask(self, worker: int) -> None:
        """A worker needs a share, or its own renewed."""
        self._asking[worker] = None

    def gone(self, worker: int) -> None:
        """It has ended, and starts nothing any more."""
        self._asking.pop(worker, None)
        self._promises.pop(worker, None)

    def give(self, now: float) -> list[tuple[int, float, float]]:
        """Workers that asked, what each gets and until when. Who asks while others have too much left waits."""
        self._expire(now)
        given = []
        fair = self.rate / max(len(self._promises.keys() | self._asking.keys()), 1)
        for worker in tuple(self._asking):
            share = min(fair, self.rate - sum(self._counted(other) for other in self._promises if other != worker))
            if share < fair / 2:
                continue
            del self._asking[worker]
            until = now + self.term
            still = [promise for promise in self._promises.get(worker, ()) if promise[0] > share]
            self._promises[worker] = [*still, (share, until)]
            given.append((worker, share, until))
        return given

    def _counted(self, worker: int) -> float:
        return max(per_second for per_second, _ in self._promises[worker])

    def _expire(self, now: float) -> None:
        for worker, promises in list(self._promises.items()):
            self._promises[worker] = left = [promise for promise in promises if promise[1] > now]
            if not left:
                del self._promises[worker]
