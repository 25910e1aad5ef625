"""The connections to a site that one of several workers may have: what stands in its `window`'s place.

Owns what the worker holds, and what it has to tell the broker of it. Knows neither entries nor how messages travel;
`limits` reports to it as to a window, `leased_sites` settles it.
"""

from __future__ import annotations

import sys

import msgspec

from relayd.message.site import Site
from relayd.scheduler.lease_messages import Back, Broken, Crowded, Request, Want
from relayd.scheduler.rate import NEVER
from relayd.scheduler.window import START

FIRST_PATIENCE, LONGEST_PATIENCE = 10, 1280
"""Messages served with all connections in use after which the broker is told; doubled while it grants none for that."""

SPARE = 1.0
"""Seconds for which connections that are not needed any more are kept: one that has carried as many messages as it may
is nearly always followed by another."""

_ALL = sys.maxsize


class Lease(msgspec.Struct, eq=False, gc=False):
    """Connections that are this worker's until it gives them back.

    Invariants: slots in use and connections (those being dialled, idle or closing, too) are no more than `held`, and
    the broker counts no fewer than `held` as this worker's. Who has a slot and no idle connection for it finds room for
    a new one, even if others are put back later. `held` grows by a grant alone. What is recalled, was refused or was
    never needed is given back once it is neither in use nor open, and so is an only one; others when that has been so
    for SPARE. One wish at a time is with the broker. All is O(1).

    size: slots that may be in use. open: connections there are. shared: others hold some. look: when the lease is
    looked at again. asked, renews: whether a share of the pace was asked for, and when it is asked for again. spare:
    until when those are kept that are not needed any more; NEVER while there are none.
    """

    site: Site
    size: int = 0
    held: int = 0
    open: int = 0
    shared: bool = False
    look: float = NEVER
    asked: bool = False
    renews: float = 0.0
    spare: float = NEVER
    _most: int = _ALL
    """What was recalled to."""
    _wanted: int = 0
    """As the broker was told."""
    _crowded: int = 0
    _broken: int = 0
    _back: bool = False
    _needed: int = 0
    """Connections, before some became spare."""
    _served: int = 0
    _patience: int = FIRST_PATIENCE

    # --- as a window ------------------------------------------------------------------------------------------------

    @property
    def cohort(self) -> int:
        """Attempts whose failing in a row says that it is the site."""
        return max(self.size, min(START, self.site.terms.connections))

    @property
    def is_blank(self) -> bool:
        """What is learned here, the broker remembers."""
        return True

    def is_alone(self, busy: int) -> bool:
        """Whether the only one of `busy` slots in use is the machine's only connection, too."""
        return busy == 1 and not self.shared

    def served(self, busy: int, _now: float) -> None:
        """An attempt went well while `busy` slots were in use, its own too."""
        # Of a window of which there is no more to be had: one that is not wanted says nothing.
        if busy >= self.size and self.held < self._wanted:
            self._served += 1

    def failed(self) -> None:
        """An attempt came to nothing."""
        self._broken += 1

    def refused(self, _busy: int, _now: float) -> None:
        """A connection was one too many: it goes back."""
        self._crowded += 1
        self._resize()

    def restart(self) -> None:
        """The site is back after an outage."""
        self._back = True

    # --- with the broker --------------------------------------------------------------------------------------------

    @property
    def is_void(self) -> bool:
        """Whether the broker knows of nothing here, and is to be told of nothing."""
        return not (self.held or self._wanted or self.asked or self._broken or self._back)

    def is_settled(self, *, waits: bool) -> bool:
        """Whether `settle` would have nothing to tell, which can be seen at a glance. waits: some mail does."""
        if self.size != self.held or self._served >= self._patience:
            return False
        if self.open != self.held and self.spare == NEVER:
            return False
        if self._broken or self._back or self.site.terms.messages_per_second:
            return False
        if waits:  # and the broker knows, or there is no more to be had
            return self._wanted > self.held or self.held >= self.site.terms.connections
        return self.held > 0 or not self._wanted

    def granted(self, more: int, *, shared: bool) -> None:
        """So many more, and what was recalled stays."""
        self.held += more
        self.shared = shared
        self._most = _ALL
        if more:
            self._patience = FIRST_PATIENCE
        self._resize()

    def recalled(self, most: int) -> None:
        """Others need it: no more than so many."""
        self._most = most
        self._resize()

    def settle(
        self, busy: int, idle: int, now: float, *, waits: bool, blocked: bool, keeps: bool = True
    ) -> list[Request]:
        """Give back what is not needed; what the broker is to be told. To be called again when `spare` has come.

        busy: slots in use. idle: connections that nobody uses. waits: mail could start now as far as time decides.
        blocked: it has no slot to start in. keeps: mail may come that could.
        """
        told: list[Request] = []
        if self._broken:
            told.append(Broken(self.site, self._broken))
        if self._back:
            told.append(Back(self.site))
        self._broken, self._back = 0, False
        # A slot in use may have found no idle connection, before those came that there are now: it needs room for one
        # more. Or it has not looked yet, and will need none.
        needed = max(busy + idle, self.open)
        # An only one goes back at once: others may be without any.
        if needed >= self._needed or now >= self.spare or self._needed == 1 or not keeps:
            self._needed, self.spare = needed, NEVER
        elif self.spare == NEVER:
            self.spare = now + SPARE
        kept = self.size if waits else min(self.size, self._needed)
        returned = self.held - min(self.held, max(kept, needed))
        if crowded := min(self._crowded, returned):
            told.append(Crowded(self.site, crowded))
            self._crowded -= crowded
            self.held -= crowded
            returned -= crowded
        wanted = self._wish(self.held - returned, waits=waits, blocked=blocked)
        impatient = self._served >= self._patience
        if returned or wanted != self._wanted or impatient:
            if impatient:
                self._patience = min(2 * self._patience, LONGEST_PATIENCE)
            told.append(Want(self.site, wanted, returned, self._served))
            self.held -= returned
            self._wanted, self._served = wanted, 0
        self._resize()
        return told

    def _wish(self, kept: int, *, waits: bool, blocked: bool) -> int:
        """What to want in all. A wish that is with the broker is taken back only together with what was held for it."""
        if blocked and self._wanted <= kept:
            # Twice as many, as nobody counts what waits: what comes and is not needed goes back at once.
            return min(max(2 * kept, 1), self.site.terms.connections)
        if not waits and (kept < self.held or not kept):
            return kept
        return self._wanted

    def _resize(self) -> None:
        self.size = max(0, min(self.held - self._crowded, self._most))
