"""One site as the scheduler sees it: what waits for it, what it is given at once, and how it has been.

Owns the site's slots, window, pace and outage. Knows neither other sites nor replies; `sites` holds them and gives them
turns.
"""

from __future__ import annotations

from relayd.message.site import Site, Way
from relayd.scheduler.classes import INTERACTIVE, REMEMBERED, ClassQueue, Interactive, class_of, reserve
from relayd.scheduler.entry import Entry
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
from relayd.scheduler.rate import Rate
from relayd.scheduler.window import Window

FIRST_PROBE, LONGEST_PROBE = 60.0, 900.0
"""Seconds until a dead site is tried again; doubled each time that fails."""

MAX_WAYS = 1000
"""Ways remembered of an outage, to be woken when it ends."""

NEVER = float("inf")


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


class SiteQueue:
    """A site's ready entries, its slots in use, and its limits.

    Invariants: a slot is taken only while fewer are in use than the window is wide, and by mail that is not interactive
    only while such mail leaves those free that are kept; a site is dead exactly while `outage` is set, and then one
    slot is used at a time, for a probe, at or after `outage.probe`. All is O(1).
    """

    __slots__ = (
        "_failures",
        "_interactive",
        "_urgent",
        "_urgent_until",
        "_ways",
        "busy",
        "entries",
        "outage",
        "parked",
        "rate",
        "site",
        "window",
    )

    def __init__(self, site: Site, interactive: Interactive, now: float) -> None:
        self.site = site
        self.entries = ClassQueue(interactive.accounts)
        self.busy = 0
        self.window = Window(site.terms.connections)
        self.rate = Rate(site.terms.messages_per_second, now)
        self.outage: Outage | None = None
        self.parked = NEVER
        """When `sites` looks at it again."""
        self._interactive = interactive
        self._urgent = 0
        """Slots in use by interactive mail."""
        self._urgent_until = 0.0
        """Until when slots are kept for interactive mail; 0 for none."""
        self._failures = 0.0
        self._ways: dict[Way, None] = {}
        """Those whose mail waits for the site to be reached."""

    @property
    def opens(self) -> float:
        """When the next entry may start as far as time decides; NEVER while something else has to happen before."""
        if not self.entries:
            return NEVER
        if self.outage is not None:
            return NEVER if self.busy else self.outage.probe
        free = self.window.size - self.busy
        if free <= 0 or (self._urgent_until and self._keeps(free) and not self.entries.interactive_waits):
            return NEVER
        return self.rate.next

    def saw_interactive(self, now: float) -> None:
        """Interactive mail has come: for a while, slots are kept for more of it."""
        self._urgent_until = now + REMEMBERED

    def start(self, now: float) -> Entry:
        """The next entry; it takes a slot. To be called when it `opens`."""
        keeps = self._urgent_until and self._keeps(self.window.size - self.busy) and self.outage is None
        entry = self.entries.pop_interactive() if keeps else self.entries.pop()
        self.busy += 1
        if self._urgent_until:
            self._urgent += self._is_interactive(entry)
        self.rate.start(now)
        return entry

    def ended(self, entry: Entry, report: Report, now: float) -> tuple[Change, ...]:
        """An attempt for an entry ended, and its slot is free; what changed by that."""
        size, limit, outage, ways = self.window.size, self.rate.limit, self.outage, self._ways
        signal = report.signal
        if signal is SERVED:
            if self._failures:
                self._recover()
            self.window.served(self.busy, now)
            self.rate.served(now)
        elif signal is SLOWED:
            self._recover()
            self.rate.refused(now)
        elif signal is UNREACHABLE or (signal is CROWDED and self.busy == 1):
            self._fail(report, now)
        elif signal is CROWDED:
            self.window.refused(self.busy, now)
        elif signal is BROKEN:
            self.window.failed()
        self.busy -= 1
        if self._urgent:
            self._urgent -= self._is_interactive(entry)
        if self._urgent_until < now:
            self._urgent_until = 0.0
        if self.window.size == size and self.rate.limit == limit and self.outage is outage:
            return ()
        woken = tuple(ways) if outage is not None and self.outage is None else ()
        changes = (
            Change(Aspect.WINDOW, size, self.window.size),
            Change(Aspect.RATE, limit, self.rate.limit),
            Change(Aspect.HEALTH, outage is None, self.outage is None, woken),
        )
        return tuple(change for change in changes if change.previous != change.limit)

    def _keeps(self, free: int) -> bool:
        """Whether the slots that are free are kept for interactive mail; those that it uses are part of the reserve."""
        return free + self._urgent <= reserve(self.window.size, self._interactive.share)

    def _is_interactive(self, entry: Entry) -> bool:
        return class_of(entry.message, self._interactive.accounts) is INTERACTIVE

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
