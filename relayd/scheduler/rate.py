"""How many messages a second a site gets: as configured, and as learned from its refusals.

Pure arithmetic of one site, with monotonic seconds as arguments; knows neither replies nor entries. `limits` has one
for each site.
"""

from __future__ import annotations

import msgspec

NEVER = float("inf")
"""When what waits for something other than time happens."""

SLACK = 0.01
"""Seconds by which a start may be late and the next one still keep the pace; timers count in milliseconds."""

SLOWEST, FASTEST = 1 / 60, 1000.0
"""Messages a second: one that is learned is no lower, and forgotten above."""

BACK = 0.95
"""After refusals: the part of what was taken meanwhile that is sent from then on."""

MANY = 0.1
"""Refusals for each message taken, above which what was taken decides."""

LEAST = 0.75
"""The part of a rate that one judgement leaves of it, where anything was taken."""

LEAST_AT_FIRST = 10.0
"""Messages a second that a first refusal leaves: where little was sent, what was taken is no measure of the site."""

NEAR = 0.9
"""From this part of the last rate that met refusals, it is approached slowly."""

SLOWLY, QUICKLY = 0.01, 0.25
"""Growth without a refusal: near the last rate that was refused by the second, for five at most; else by interval."""

INTERVAL_MESSAGES = 10
"""Messages after which an interval may be judged, if a second has passed; it is a minute long at most."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds without a message after an interval in which the site took nothing; doubled each time."""


class Rate(msgspec.Struct, eq=False, gc=False):
    """A pace, and what is counted to find it.

    With a limit of r, at most r (T + SLACK) + 1 messages start in any T seconds: there is no burst. A refusal is
    answered at the end of its interval by what the site took in it, less a little; rates that were refused before are
    approached slowly. An interval in which the site took nothing halves the rate and is followed by a pause. O(1).
    """

    _most: float | None
    """Messages a second, as configured; None, or 0 where it is made, for no limit."""
    _begun: float
    _ends: float = 0.0
    limit: float | None = None
    """Messages a second, None for no limit."""
    lapsed: bool = False
    """Whether nothing may start before the next share of a pace that several workers have."""
    until: float = NEVER
    """When the share that there is ends."""
    _left: float = 0.0
    """Of a message, what was still to be waited for when a share ended."""
    next: float = 0.0
    """When the next message may start."""
    _served: int = 0
    _refused: int = 0
    _trailing: float = 0.0
    _knee: float = 0.0
    _pause: float = FIRST_PAUSE

    def __post_init__(self) -> None:
        self.limit = self._most = self._most or None
        self._ends = self._begun + self._interval()

    @property
    def learned(self) -> bool:
        """Whether it is lower than configured."""
        return self.limit != self._most

    def start(self, now: float) -> None:
        """A message starts."""
        if self.limit is not None:
            self.next = max(self.next, now - SLACK) + 1 / self.limit

    def served(self, now: float) -> None:
        """The site took one, or refused it for a reason of its own."""
        self._served += 1
        if now >= self._ends:
            self._judge(now)

    def refused(self, now: float) -> None:
        """The site said that this was too fast."""
        if now < self._begun:
            return  # sent before the pause that is under way
        self._refused += 1
        if not self.learned:
            # Nothing is known yet but what it took within the last second.
            taken = self._served + self._trailing * max(0.0, 1 - (now - self._begun))
            self._slow_down(max(taken, LEAST_AT_FIRST))
            self._stop(now)
        elif now >= self._ends or self._refused >= max(3, self._served / 4):
            self._judge(now)

    def share(self, per_second: float, until: float, now: float) -> None:
        """Of what is configured, so much is for this worker until then.

        What a wait has lasted counts by the share there was: in any T seconds no more start than the shares in these
        T + SLACK seconds add up to, and one.
        """
        assert self._most is not None
        if now >= self.until:
            self.lapse()
        if now >= until:
            return  # it has ended on its way
        if self.lapsed or per_second != self._most:
            left = self._left if self.lapsed else max(0.0, self.next - now) * self._most
            self.limit = per_second if self.limit is None or not self.learned else min(self.limit, per_second)
            self._most = per_second
            self.next = max(now + left / per_second, self._begun)  # or the end of a pause
        self.lapsed, self.until = False, until

    def lapse(self) -> None:
        """The share has ended. Called when it has, before the next message starts."""
        assert self._most is not None
        self._left = max(0.0, self.next - self.until) * self._most
        self.lapsed, self.until = True, NEVER

    def _judge(self, now: float) -> None:
        """The interval is over."""
        seconds = max(now - self._begun, 1e-3)
        if self._refused:
            self._pull_back(seconds, now)
        elif self.learned:
            self._grow(seconds)
        self._begin(now, seconds)

    def _pull_back(self, seconds: float, now: float) -> None:
        assert self.limit is not None
        if not self._served:
            self._slow_down(self.limit / 2)
            self._knee = 0.0  # a quota is spent; nothing is known of the pace
            self._stop(now)
            return
        self._pause = FIRST_PAUSE
        taken = self.limit
        if self._refused > MANY * self._served:
            # Of an interval cut short, or after a pause, what was taken says little: so it is believed within bounds.
            taken = min(taken, max(self._served / seconds, LEAST * taken))
        self._slow_down(taken)
        self._knee = taken

    def _grow(self, seconds: float) -> None:
        assert self.limit is not None
        if self._served < 0.7 * self.limit * seconds:
            return  # less was asked than was allowed
        near = NEAR * self._knee <= self.limit < self._knee / NEAR
        limit = self.limit * (1 + (SLOWLY * min(seconds, 5.0) if near else QUICKLY))
        self._pause = FIRST_PAUSE
        self.limit = self._most if limit >= (self._most or FASTEST) else limit

    def _slow_down(self, taken: float) -> None:
        limit = max(BACK * taken, SLOWEST)
        self.limit = limit if self._most is None else min(limit, self._most)

    def _stop(self, now: float) -> None:
        self.next = max(self.next, now + self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._begin(self.next, 1.0)

    def _begin(self, now: float, seconds: float) -> None:
        self._trailing = self._served / max(seconds, 1.0)
        self._served = self._refused = 0
        self._begun = now
        self._ends = now + self._interval()

    def _interval(self) -> float:
        limit = self.limit
        return 1.0 if limit is None else min(max(INTERVAL_MESSAGES / limit, 1.0), 60.0)
