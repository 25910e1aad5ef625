"""What one site takes: connections at once, messages a second, and nothing at all while it is not reached.

Owns what attempts showed of that. Knows neither entries nor slots; `site_queue` makes it where there is something to
learn.
"""

from __future__ import annotations

from relayd.message.site import Terms, Way
from relayd.scheduler.feedback import (
    BROKEN,
    CROWDED,
    SERVED,
    SLOWED,
    UNREACHABLE,
    Aspect,
    Change,
    Report,
    Trouble,
)
from relayd.scheduler.lease import Lease
from relayd.scheduler.rate import Rate
from relayd.scheduler.window import Window

FIRST_PROBE, LONGEST_PROBE = 60.0, 900.0
"""Seconds until a dead site is tried again; doubled each time that fails."""

MAX_WAYS = 1000
"""Ways remembered of an outage, to be woken when it ends."""


class Outage:
    """Of a dead site: when it is probed next (monotonic), and what was heard last."""

    __slots__ = ("_wait", "probe", "trouble")

    def __init__(self, now: float, trouble: Trouble) -> None:
        self.probe = now
        self.trouble = trouble
        self._wait = FIRST_PROBE

    def failed(self, report: Report, now: float) -> None:
        """Not reached again: wait for longer, but no longer than the mail that is at hand would."""
        self.probe = now + min(self._wait, report.step)
        self.trouble = report.trouble or self.trouble
        self._wait = min(2 * self._wait, LONGEST_PROBE)


class Limits:
    """Window, pace and health; the site is dead exactly while `outage` is set. All is O(1).

    With a lease the window is the broker's, and so is a configured pace: nothing starts before there is a share of it.
    """

    __slots__ = ("_failures", "_ways", "outage", "rate", "window")

    def __init__(self, terms: Terms, now: float, lease: Lease | None = None) -> None:
        self.window = Window(terms.connections) if lease is None else lease
        self.rate = Rate(terms.messages_per_second, now)
        self.rate.lapsed = lease is not None and bool(terms.messages_per_second)
        self.outage: Outage | None = None
        self._failures = 0.0
        self._ways: dict[Way, None] = {}
        """Those whose mail waits for the site to be reached."""

    @property
    def is_blank(self) -> bool:
        """Whether nothing was learned."""
        return not self._failures and self.outage is None and self.rate.limit is None and self.window.is_blank

    def learn(self, report: Report, busy: int, now: float) -> tuple[Change, ...]:
        """One of `busy` attempts under way ended so; what changed by that."""
        size, limit, outage, ways = self.window.size, self.rate.limit, self.outage, self._ways
        signal = report.signal
        if signal is SERVED:
            if self._failures:
                self._recover()
            self.window.served(busy, now)
            self.rate.served(now)
        elif signal is SLOWED:
            self._recover()
            self.rate.refused(now)
        elif signal is UNREACHABLE or (signal is CROWDED and self.window.is_alone(busy)):
            self._fail(report, now)
        elif signal is CROWDED:
            if self.outage is not None:
                self._recover()  # it serves other workers of ours
            self.window.refused(busy, now)
        elif signal is BROKEN:
            self.window.failed()
        if self.window.size == size and self.rate.limit == limit and self.outage is outage:
            return ()
        woken = tuple(ways) if outage is not None and self.outage is None else ()
        changes = (
            Change(Aspect.WINDOW, size, self.window.size),
            Change(Aspect.RATE, limit, self.rate.limit),
            Change(Aspect.HEALTH, outage is None, self.outage is None, woken),
        )
        return tuple(change for change in changes if change.previous != change.limit)

    def put_off(self, way: Way) -> None:
        """Mail of a way waits for the site to be reached."""
        if len(self._ways) < MAX_WAYS:
            self._ways[way] = None

    def _recover(self) -> None:
        self._failures = 0.0
        self._ways = {}
        if self.outage is not None:
            self.outage = None
            self.window.restart()

    def _fail(self, report: Report, now: float) -> None:
        if report.way is not None:
            self.put_off(report.way)
        if self.outage is None:
            # Dead after a cohort (Postfix's default_destination_concurrency_failed_cohort_limit).
            self._failures += 1 / self.window.cohort
            self.window.failed()
            if self._failures > 0.999 and report.trouble is not None:
                self.outage = Outage(now, report.trouble)
        if self.outage is not None and now >= self.outage.probe:  # what had begun before it was dead is no probe
            self.outage.failed(report, now)
