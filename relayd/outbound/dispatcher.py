"""Makes mail move: entries into the scheduler, work out of it, outcomes into the queue. The only one to talk to it.

Owns the tasks (one for each busy connection slot, some at rest, one for each domain being resolved) and the timer.
Decides without awaiting; knows when something is tried, not how (`delivery`) nor what follows (`conclusion`).
service makes it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Coroutine, Sequence
from random import Random

from relayd import clock, log, metrics
from relayd.config import schema
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Site, Way
from relayd.outbound.addresses import Permitted
from relayd.outbound.conclusion import Conclusion
from relayd.outbound.connector import Connector
from relayd.outbound.contents import Contents
from relayd.outbound.delivery import Delivery
from relayd.outbound.leasing import AskBroker, Leasing
from relayd.outbound.pool import Pool
from relayd.outbound.resolving import Resolving
from relayd.outbound.routing import Router
from relayd.outbound.settling import Settling, Timing
from relayd.resolver.client import Resolver
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import NOTHING, Report
from relayd.scheduler.lease_messages import Reply
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp import reply
from relayd.smtp.address import route_key
from relayd.spool.bodies import Reading
from relayd.spool.queue import Queue
from relayd.spool.records import DEFERRED, Message
from relayd.tls import NextHopContexts

ROUTE_SECONDS = 3600.0
"""How long a domain stays bound to a configured route: a bound on memory, not on truth."""

CUT_SECONDS = 2.0
"""Seconds an attempt may take to end after it was cut, as it has nothing to wait for, and to read a header then."""

MAX_RESTING = 100
"""Workers kept when there is no work for them; beyond, they end. Waking one costs less than starting one."""

_NOTHING = Report(NOTHING)

_INTERNAL_ERROR = Outcome(Verdict.DEFERRED, Scope.MESSAGE, reply.INTERNAL_ERROR)


class Dispatcher:
    """Takes messages, delivers them.

    Invariants: an entry taken or unrouted is settled or, by a bug, put back, never forgotten; nothing starts before
    `start`, while draining, or while the queue does not record outcomes as they come (I5). add is O(recipients), the
    rest O(1) or O(log n) for each entry that moves.
    """

    def __init__(
        self,
        *,
        hostname: str,
        settings: schema.Delivery,
        router: Router,
        connector: Connector,
        queue: Queue,
        scheduler: Scheduler,
        resolver: Resolver,
        random: Random,
        ask_broker: AskBroker | None = None,
    ) -> None:
        """ask_broker: where the scheduler's sites are leased. What the broker says comes to `granted`."""
        self._queue = queue
        self._scheduler = scheduler
        self._router = router
        self._pool = Pool(scheduler.sites.is_backed_up)
        self._connector = connector
        permitted = Permitted(settings.private_next_hops)
        self._delivery = Delivery(self._connector, self._pool, resolver, permitted, random)
        self._contents = Contents(queue)
        settling = Settling(hostname, settings, queue, random)
        self._conclusion = Conclusion(queue, scheduler, self._contents, settling, self._wake_at)
        self._working: set[asyncio.Task[None]] = set()
        self._resolving: set[asyncio.Task[None]] = set()
        self._resting: list[asyncio.Future[tuple[Site, Entry] | None]] = []
        self._questions = Resolving(self._resolve, functools.partial(self._own, self._resolving))
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._running = False
        self._leasing: Leasing | None = None
        if scheduler.leased is not None and ask_broker is not None:
            self._leasing = Leasing(scheduler.leased, self._pool, connector.places, ask_broker, self._wake_for_next)

    def when_woken(self, tell: Callable[[Collection[str]], None]) -> None:
        """Tell of the domains whose mail waited for a site that is back."""
        self._conclusion.woken = tell

    def add(self, message: Message, woken: Collection[str] = ()) -> None:
        """Take a message that is durable, and not here yet: its unfinished recipients wait for their time.

        woken: domains of which whatever waited for their site to be reached is due now.
        """
        try:
            self._add(message, woken)
        except Exception:  # noqa: BLE001  # a poison message stays in the spool, and keeps nobody else from starting
            log.bug("dispatching", id=message.envelope.id)
            metrics.bugs.inc()
        self._pump()

    def _add(self, message: Message, woken: Collection[str] = ()) -> None:
        now = clock.monotonic()
        for (domain, attempts, at, stalled), recipients in _groups(message).items():
            due = 0.0 if stalled and domain in woken else _monotonic(at, now)
            way = self._router.way(message.envelope, domain)
            entry = Entry(message.envelope, way, tuple(recipients), attempts, due, stalled)
            self._scheduler.add(entry, now, held=message.held)

    def reschedule(self, message: Message) -> None:
        """A message is held from now on, released, or recovered: what waits of it is scheduled anew."""
        entries = self._scheduler.recall(message.envelope.id)
        if entries is None:
            self.add(message)
            return
        now = clock.monotonic()
        for entry in entries:
            # A new one, as the heap of deferred ones may still know the old.
            anew = Entry(entry.message, entry.way, entry.recipients, entry.attempts, entry.due, entry.stalled)
            self._scheduler.add(anew, now, held=message.held)
        self._pump()

    def renew(self, contexts: NextHopContexts) -> None:
        """From now on, sessions are opened under these contexts; those that are open serve nobody any more."""
        self._connector.renew(contexts)
        self._pool.renew()

    def granted(self, replies: Sequence[Reply]) -> None:
        """What the machine's broker says of sites."""
        if self._leasing is not None:
            self._leasing.receive(replies)
            self._pump()
            self._leasing.settle()  # whether or not something may start

    def start(self) -> None:
        """Begin to deliver."""
        self._running = True
        self._pump()

    async def drain(self, seconds: float) -> None:
        """Start nothing more; attempts in flight have `seconds` to end. Afterwards every connection is closed.

        What is cut off is deferred; a dot that was not answered by then is a lost answer (I3).
        """
        self._running = False
        if self._leasing is not None:
            self._leasing.starts = False
        self._stop_timer()
        self._pool.close()
        while self._resting:
            self._resting.pop().set_result(None)
        for task in self._resolving:
            task.cancel()
        await _ended(self._working | self._resolving, seconds)
        # What ended last may have left something to tell.
        await _ended(self._conclusion.telling, CUT_SECONDS)
        await self._connector.close(1.0)

    # --- starting work ----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start whatever may start now. Called after anything that could let more start."""
        if not self._running:
            self._wake_for_next()
            return
        now = clock.monotonic()
        if pause := self._queue.pause:
            self._wake_at(now + pause)
            return
        self._scheduler.advance(now)
        self._route(now)
        more = self._conclusion.put_off()
        while (work := self._scheduler.take(now)) is not None:
            if self._resting:
                self._resting.pop().set_result(work)
            else:
                self._own(self._working, self._work(*work))
        if more:
            self._wake_at(now)
        self._wake_for_next()

    def _route(self, now: float) -> None:
        for way in self._scheduler.unbound.asked():
            if (site := self._router.known(way)) is not None:
                self._scheduler.bind(way, site, now + ROUTE_SECONDS, now)
            else:
                self._questions.add(way)
        self._questions.start()

    async def _resolve(self, way: Way) -> bool:
        """Ask where the way leads; whether there was an answer."""
        try:
            found = await self._router.route(way)
        except Exception:  # noqa: BLE001  # one domain's trouble must not end the others' mail
            log.bug("routing", domain=way.domain)
            metrics.bugs.inc()
            found = _INTERNAL_ERROR
        if isinstance(found, Outcome):
            timing = Timing(self._router.terms(way))
            for entry in self._scheduler.unroute(way):
                self._conclusion.settle(entry, dict.fromkeys(entry.recipients, found), timing)
            return found.verdict is not Verdict.DEFERRED
        site, valid = found
        now = clock.monotonic()
        self._scheduler.bind(way, site, now + valid, now)
        return True

    async def _work(self, site: Site, entry: Entry) -> None:
        """One worker: an entry, then its site's next, and when none is ready, whatever `_pump` finds."""
        while True:
            try:
                outcomes = await self._attempt(site, entry)
            except BaseException:
                self._scheduler.sites.release(site, entry, _NOTHING, clock.monotonic())
                raise
            self._conclusion.attempted(site, entry, outcomes)
            work = None
            if pause := self._queue.pause:
                self._wake_at(clock.monotonic() + pause)
            elif self._running:
                work = self._scheduler.take(clock.monotonic(), site)
                if self._scheduler.sites.has_more or self._scheduler.unbound.has_more:
                    self._pump()  # its window has grown, or its return woke mail
                else:
                    self._wake_for_next()
            work = work or await self._rest()
            if work is None:
                return
            site, entry = work

    async def _attempt(self, site: Site, entry: Entry) -> dict[int, Outcome]:
        """Outcomes; none for a message that the operator removed. One whose body cannot be read waits."""
        message = self._queue.get(entry.message.id)
        if message is None:
            return {}
        body = message.body if isinstance(message.body, bytes) else await self._contents.body(message)
        if body is None:
            return dict.fromkeys(entry.recipients, _INTERNAL_ERROR)
        try:
            return await self._delivery.attempt(site, entry, body)
        finally:
            if isinstance(body, Reading):
                body.close()

    async def _rest(self) -> tuple[Site, Entry] | None:
        """Wait to be given work; None when it is time to end."""
        if not self._running or len(self._resting) >= MAX_RESTING:
            return None
        given: asyncio.Future[tuple[Site, Entry] | None] = asyncio.get_running_loop().create_future()
        self._resting.append(given)
        return await given

    # --- tasks and the timer ----------------------------------------------------------------------------------------

    def _own(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            try:
                task.result()
            except asyncio.CancelledError:
                pass  # by drain
            except Exception:  # noqa: BLE001  # contained before; the mail stays in the spool as it was
                log.bug("dispatcher")
                metrics.bugs.inc()
            self._pump()

        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(ended)

    def _wake_for_next(self) -> None:
        """After everything that may start has."""
        if self._leasing is not None:
            self._leasing.settle()
        due = self._scheduler.next
        if due is not None:
            self._wake_at(due)

    def _wake_at(self, when: float) -> None:
        """Pump again at `when` (monotonic), or before."""
        if not self._running or (self._timer is not None and self._timer_at <= when):
            return
        self._stop_timer()
        self._timer_at = when
        # uvloop counts in milliseconds and may wake up to one early.
        delay = max(0.0, when - clock.monotonic()) + 0.001
        self._timer = asyncio.get_running_loop().call_later(delay, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _ended(tasks: set[asyncio.Task[None]], seconds: float) -> None:
    """Wait for tasks; those that are late are cut."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CUT_SECONDS)


def _groups(message: Message) -> dict[tuple[str, int, float, bool], list[int]]:
    """Unfinished recipients by what makes one attempt: domain, attempts so far, due time (wall), whether it stalls."""
    groups: dict[tuple[str, int, float, bool], list[int]] = {}
    for recipient, address in enumerate(message.envelope.recipients):
        result = message.results[recipient]
        if result is None:
            groups.setdefault((route_key(address), 0, 0.0, False), []).append(recipient)
        elif result.state is DEFERRED:
            stalled = reply.is_unreached(result.reply)
            groups.setdefault((route_key(address), result.attempts, result.due, stalled), []).append(recipient)
    return groups


def _monotonic(due: float, now: float) -> float:
    """A wall time as monotonic seconds; 0 stays 0."""
    return now + (due - clock.wall()) if due else 0.0
