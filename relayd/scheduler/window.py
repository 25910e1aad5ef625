"""How many connections a site gets at once, from how it takes them.

Pure arithmetic of one site; knows neither replies nor entries. `limits` holds one for each site, or where several
workers share the machine, `broker` does.
"""

from __future__ import annotations

import msgspec

START = 5
"""Connections before anything is known (Postfix's initial_destination_concurrency)."""

FIRST_MEMORY, LONGEST_MEMORY = 60.0, 3600.0
"""Seconds for which a limit that the site spoke of is not tried again; doubled each time it says so again."""


class Window(msgspec.Struct, eq=False, gc=False):
    """Between 1 and `most`, by feedback of 1/N with hysteresis.

    A run of N successes that used the whole window ends with one more; a run of failures begins with one less, and
    takes one more for each N further. Postfix measured, against a server that refuses above a limit, 49.7 % of mail
    deferred with steps of one a delivery and 16.5 % with this (SCHEDULER_README, "Concurrency scheduling"). A limit
    that the site names by refusing a connection is kept to for a while, then tried by one connection. All is O(1).
    """

    _most: int
    size: int = 0
    _credit: float = 0.0
    _debit: float = 0.0
    _named: int = 0
    """The limit the site named last, holding until `_until`."""
    _until: float = 0.0
    _memory: float = FIRST_MEMORY

    def __post_init__(self) -> None:
        self._named = self._most
        self.size = min(START, self._most)

    @property
    def cohort(self) -> int:
        """Attempts whose failing in a row says that it is the site: as many as may be under way, or were at first."""
        return max(self.size, min(START, self._most))

    @property
    def is_blank(self) -> bool:
        """Whether it is as it was at first."""
        usual = self.size == min(START, self._most) and self._named == self._most
        return usual and not (self._credit or self._debit)

    def is_alone(self, busy: int) -> bool:
        """Whether the only one of `busy` connections says what it says."""
        return busy == 1

    def served(self, busy: int, now: float) -> None:
        """An attempt went well while `busy` slots were in use, its own too."""
        self._debit = 0.0
        # A window that is not used up says nothing about what a larger one would meet.
        if busy < self.size or self.size >= self._most:
            return
        self._credit += 1 / self.size
        if self._credit > 0.999 and (self.size < self._named or now >= self._until):
            self.size += 1
            self._credit = 0.0

    def failed(self) -> None:
        """An attempt came to nothing."""
        self._credit = 0.0
        if self._debit <= 0 and self.size > 1:
            self.size -= 1
            self._debit = 1.0
        self._debit -= 1 / self.size

    def refused(self, busy: int, now: float) -> None:
        """One of `busy` connections was one too many."""
        self._credit = 0.0
        self.size = self._named = max(1, min(self.size, busy - 1))
        if now >= self._until:
            # Once for all that were refused together, and longer each time it is said anew.
            self._until = now + self._memory
            self._memory = min(2 * self._memory, LONGEST_MEMORY)

    def restart(self) -> None:
        """The site is back after an outage: begin as with an unknown one."""
        self._credit = self._debit = 0.0
        self.size = min(START, self._most, self._named)
