"""One site as the scheduler sees it: what waits for it, what it is given at once, and what is known of it.

Owns the site's slots. Knows neither other sites nor replies; `sites` holds them and gives them turns, `limits` has what
was learned.
"""

from __future__ import annotations

import msgspec

from relayd.message.site import Site
from relayd.scheduler.classes import INTERACTIVE, REMEMBERED, ClassQueue, Interactive, class_of, reserve
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import NOTHING, SERVED, Change, Report
from relayd.scheduler.limits import Limits, Outage
from relayd.scheduler.rate import NEVER
from relayd.scheduler.window import START


class SiteQueue(msgspec.Struct, eq=False, gc=False):
    """A site's ready entries, its slots in use, and its limits.

    Invariants: a slot is taken only while fewer are in use than the window is wide, and by mail that is not interactive
    only while such mail leaves those free that are kept; while the site is dead, one slot is used at a time, for a
    probe, at or after `outage.probe`. All is O(1).

    entries, interactive: what waits, and who is interactive. limits: given where there are any by
    configuration, else made when the window is used up or the site refuses something; most never do. busy: slots in
    use. parked: when `sites` looks at it again.
    """

    site: Site
    entries: ClassQueue
    interactive: Interactive
    limits: Limits | None
    busy: int = 0
    parked: float = NEVER
    _urgent: int = 0
    """Slots in use by interactive mail."""
    _urgent_until: float = 0.0
    """Until when slots are kept for interactive mail; 0 for none."""

    @property
    def opens(self) -> float:
        """When the next entry may start as far as time decides; NEVER while something else has to happen before."""
        if not self.entries:
            return NEVER
        limits = self.limits
        if limits is None:
            width, opens = START, 0.0
        elif limits.outage is None:
            width, opens = limits.window.size, NEVER if limits.rate.lapsed else limits.rate.next
        else:
            return limits.outage.probe if self.busy < min(limits.window.size, 1) else NEVER
        if self.busy >= width or (self._urgent_until and self._keeps(width) and not self.entries.interactive_waits):
            return NEVER
        return opens

    @property
    def due(self) -> float:
        """When the next entry may start as far as pace and health decide, whatever slots there are; NEVER as above."""
        limits = self.limits
        if not self.entries or limits is None:
            return 0.0 if self.entries else NEVER
        if limits.outage is not None:
            return NEVER if self.busy else limits.outage.probe
        return NEVER if limits.rate.lapsed else limits.rate.next

    @property
    def outage(self) -> Outage | None:
        """Of a dead site."""
        return None if self.limits is None else self.limits.outage

    @property
    def width(self) -> int:
        """Slots there are."""
        return START if self.limits is None else self.limits.window.size

    @property
    def is_blank(self) -> bool:
        """Whether nothing is lost by forgetting it."""
        if self.entries or self.busy or self._urgent_until:
            return False
        return self.limits is None or self.limits.is_blank

    def saw_interactive(self, now: float) -> None:
        """Interactive mail has come: for a while, slots are kept for more of it."""
        self._urgent_until = now + REMEMBERED

    def start(self, now: float) -> Entry:
        """The next entry; it takes a slot. To be called when it `opens`."""
        limits = self.limits
        if self._urgent_until:
            keeps = self.outage is None and self._keeps(self.width)
            entry = self.entries.pop_interactive() if keeps else self.entries.pop()
            self._urgent += self._is_interactive(entry)
        else:
            entry = self.entries.pop()
        self.busy += 1
        if limits is not None:
            limits.rate.start(now)
        return entry

    def ended(self, entry: Entry, report: Report, now: float) -> tuple[Change, ...]:
        """An attempt for an entry ended, and its slot is free; what changed by that."""
        limits, busy = self.limits, self.busy
        self.busy -= 1
        if self._urgent:
            self._urgent -= self._is_interactive(entry)
        if self._urgent_until < now:
            self._urgent_until = 0.0
        if limits is None:
            if busy < START if report.signal is SERVED else report.signal is NOTHING:
                return ()
            limits = self.limits = Limits(self.site.terms, now)
        return limits.learn(report, busy, now)

    def _keeps(self, width: int) -> bool:
        """Whether the slots that are free are kept for interactive mail; those that it uses are part of the reserve."""
        return width - self.busy + self._urgent <= reserve(width, self.interactive.share)

    def _is_interactive(self, entry: Entry) -> bool:
        return class_of(entry.message, self.interactive.accounts) is INTERACTIVE
