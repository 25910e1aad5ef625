"""What follows an attempt: the site's slot is free, its outcomes are recorded, who is deferred is scheduled again.

Owns the order of these, and the tasks that read a header from disk before a sender can be told. `signals` knows what an
outcome says of a site, `settling` what becomes of mail. The dispatcher calls it when an attempt has ended, or when mail
is not to be tried at all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from relayd import clock, log, metrics
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Site
from relayd.outbound.contents import Contents
from relayd.outbound.settling import Settling, Timing
from relayd.outbound.signals import first, signal
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import CROWDED, SERVED, UNREACHABLE, Change, Report, Trouble
from relayd.scheduler.scheduler import MOVED_AT_ONCE, Scheduler
from relayd.smtp import reply
from relayd.spool.queue import Queue
from relayd.spool.records import DEFERRED, Message, Result

PROBE_SECONDS = 60.0
"""Seconds in which a probe has ended, as a rule: what has to be judged by it waits so long at least."""

BUG_PAUSE = 60.0
"""Seconds until an entry is tried again whose outcomes could not be turned into a record."""

_SERVED = Report(SERVED)


class Conclusion:
    """Invariant: an entry handed over is settled or, by a bug, put back, never forgotten. O(recipients)."""

    def __init__(
        self,
        queue: Queue,
        scheduler: Scheduler,
        contents: Contents,
        settling: Settling,
        wake_at: Callable[[float], None],
    ) -> None:
        """wake_at: called with the time (monotonic) at which something is due."""
        self._queue = queue
        self._scheduler = scheduler
        self._contents = contents
        self._settling = settling
        self._wake_at = wake_at
        self.telling: set[asyncio.Task[None]] = set()
        """What reads a header before it settles; whoever ends the work waits for these."""
        # Entries that wait for their site, while the record of that is not durable; True: the site is back.
        self._stalling: dict[Entry, bool] = {}
        settling.ended = self._settled
        self.woken: Callable[[Collection[str]], None] = lambda _domains: None
        """Told of the domains whose mail waited for a site that is back."""

    def attempted(self, site: Site, entry: Entry, outcomes: dict[int, Outcome]) -> None:
        """An attempt is over: its slot is free, and the scheduler is told how the site took it."""
        now = clock.monotonic()
        sites = self._scheduler.sites
        said = signal(outcomes)
        report = _SERVED
        if said is not SERVED:
            teller, step = first(outcomes, said), self._settling.step(entry, site.terms)
            report = Report(said, Trouble(teller, clock.wall()) if teller else None, step, entry.way)
        # Where other sessions go on, one too many was no attempt: the mail is next again, for these.
        again = said is CROWDED and sites.shares(site) and all(o.scope is Scope.SITE for o in outcomes.values())
        if again:
            self._scheduler.restore(site, entry, now)
        changes = sites.release(site, entry, report, now)
        if changes:
            self._changed(site, changes, first(outcomes, said), now)
        if again:
            return
        entry.stalled = said is UNREACHABLE or said is CROWDED
        probe = sites.probe(site) if entry.stalled else None
        no_later = math.inf if probe is None else clock.wall() + probe - now
        self.settle(entry, outcomes, Timing(site.terms, no_later))

    def put_off(self) -> bool:
        """Defer what waits for sites that are dead; whether there may be more of it."""
        barred = self._scheduler.barred()
        if not barred:
            return False  # nearly always, and this is asked for every message
        now = clock.monotonic()
        for site, entry, outage in barred:
            entry.stalled = True
            outcomes = dict.fromkeys(entry.recipients, _not_tried(outage.trouble.outcome))
            judged_next = clock.wall() + max(outage.probe - now, PROBE_SECONDS)
            timing = Timing(site.terms, judged_at=outage.trouble.at, judged_next=judged_next)
            self.settle(entry, outcomes, timing)
        return len(barred) == MOVED_AT_ONCE

    def settle(self, entry: Entry, outcomes: Mapping[int, Outcome], timing: Timing) -> None:
        """See `Settling.settle`. Where a header has to be read before, a task waits for it."""
        if entry.stalled:
            self._stalling[entry] = False
        message = self._queue.get(entry.message.id)
        if message is None or isinstance(message.body, bytes) or not self._settling.tells(entry, outcomes):
            self._contained(entry, outcomes, timing)
        else:
            task = asyncio.get_running_loop().create_task(self._settle_with_header(entry, outcomes, timing, message))
            self.telling.add(task)
            task.add_done_callback(self.telling.discard)

    async def _settle_with_header(
        self, entry: Entry, outcomes: Mapping[int, Outcome], timing: Timing, message: Message
    ) -> None:
        header = await self._contents.header(message)
        self._contained(entry, outcomes, timing, header)

    def _contained(
        self, entry: Entry, outcomes: Mapping[int, Outcome], timing: Timing, header: bytes = b""
    ) -> None:
        try:
            self._settling.settle(entry, outcomes, timing, header)
        except Exception:  # noqa: BLE001  # a poison message must not end the others' mail (I9)
            # The message is still as the spool has it. Tried again later, it may be delivered twice, but is not lost.
            log.bug("settling", id=entry.message.id)
            metrics.bugs.inc()
            self._stalling.pop(entry, None)
            self._put_back(entry, entry.recipients, entry.attempts, clock.monotonic() + BUG_PAUSE)

    def _settled(self, entry: Entry, results: tuple[Result, ...]) -> None:
        """The results of an entry are durable. Who is deferred is in the scheduler again before the entry leaves."""
        woken = entry.stalled and self._stalling.pop(entry, False)
        deferred = [result for result in results if result.state is DEFERRED]
        if deferred:
            recipients = tuple(result.recipient for result in deferred)
            due = clock.monotonic() + (0.0 if woken else deferred[0].due - clock.wall())
            self._put_back(entry, recipients, entry.attempts + 1, due)
        else:
            self._scheduler.finish(entry)

    def _put_back(self, entry: Entry, recipients: tuple[int, ...], attempts: int, due: float) -> None:
        message = self._queue.get(entry.message.id)
        anew = Entry(entry.message, entry.way, recipients, attempts, due, entry.stalled)
        self._scheduler.add(anew, clock.monotonic(), held=message is not None and message.held)
        self._scheduler.finish(entry)
        self._wake_at(due)

    def _changed(self, site: Site, changes: Sequence[Change], outcome: Outcome | None, now: float) -> None:
        for change in changes:
            metrics.site_changed(change.aspect.value, raised=change.raised)
            log.site_changed(site, change.aspect.value, change.previous, change.limit, outcome, raised=change.raised)
            if change.ways:
                self._scheduler.wake(change.ways, now)
                self._stalling |= {entry: True for entry in self._stalling if entry.way in change.ways}
                self.woken({way.domain for way in change.ways})


def _not_tried(last: Outcome) -> Outcome:
    return Outcome(Verdict.DEFERRED, Scope.SITE, reply.shortened(reply.not_tried(last.reply)), last.host)
