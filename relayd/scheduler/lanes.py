"""How many entries wait, in all and of each lane: what one account has for one domain.

Says how much more may be brought into memory, and how much of it may leave. The scheduler counts, the dispatcher asks.
"""

from __future__ import annotations

from relayd.scheduler.entry import Entry


class Lanes:
    """Counts of entries that are ready or deferred. A lane is kept exactly while one waits in it. All is O(1)."""

    __slots__ = ("_lanes", "total")

    def __init__(self) -> None:
        self.total = 0
        self._lanes: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def of(self, domain: str, account: str) -> int:
        """Entries that wait in a lane."""
        return self._lanes.get((domain, account), 0)

    def enter(self, entry: Entry) -> None:
        """One more waits."""
        lane = (entry.way.domain, entry.message.account)
        self._lanes[lane] = self._lanes.get(lane, 0) + 1
        self.total += 1

    def leave(self, entry: Entry) -> None:
        """It waits no more."""
        lane = (entry.way.domain, entry.message.account)
        left = self._lanes[lane] - 1
        self.total -= 1
        if left:
            self._lanes[lane] = left
        else:
            del self._lanes[lane]
