"""From outcomes to the durable record, and what follows once it is durable: log, metrics, the next attempt.

Owns backoff, expiry and when a sender is told. Order is the design (I10): results and the notification they cause are
one record, and nothing counts or follows before that record is stored. The dispatcher calls it after each attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from random import Random

import msgspec

from relayd import clock, log, metrics
from relayd.config import schema
from relayd.message import dsn
from relayd.message.outcome import Outcome, Verdict
from relayd.message.site import USUAL, Terms
from relayd.outbound import bounce, patterns
from relayd.scheduler.backoff import Backoff
from relayd.scheduler.entry import Entry
from relayd.smtp import reply
from relayd.smtp.address import NULL
from relayd.spool.queue import Queue
from relayd.spool.records import DEFERRED, DELIVERED, EXPIRED, FAILED, Accepted, Message, Result, Settled, State

_STATES = {Verdict.DELIVERED: DELIVERED, Verdict.FAILED: FAILED, Verdict.DEFERRED: DEFERRED}

_LOST = (FAILED, EXPIRED)

_COUNTERS = {
    DELIVERED.value: metrics.delivered,
    DEFERRED.value: metrics.deferred,
    FAILED.value: metrics.failed,
    EXPIRED.value: metrics.failed,
}

Ended = Callable[[Entry, tuple[Result, ...]], None]


class Timing(msgspec.Struct, frozen=True, gc=False):
    """When mail that is deferred is tried again, beyond what the schedule says.

    terms: of its site. no_later: wall time at which it is tried at the latest. judged_at: wall time of the attempt that
    the outcomes tell of, where that was another entry's: mail expires by an attempt after its time, so what is past it
    waits for `judged_next` at the latest.
    """

    terms: Terms = USUAL
    no_later: float = math.inf
    judged_at: float = math.inf
    judged_next: float = math.inf


USUALLY = Timing()


class Settling:
    """`settle` takes one attempt's outcomes; `ended` is called, once, when they are durable. O(recipients)."""

    def __init__(self, hostname: str, settings: schema.Delivery, queue: Queue, random: Random) -> None:
        self._hostname = hostname
        self._max_age = settings.max_age
        self._usual = Backoff(settings.retry_schedule)
        self._backoffs: dict[tuple[float, ...], Backoff] = {(): self._usual}  # as many as are configured
        self._queue = queue
        self._random = random
        self.ended: Ended = lambda _entry, _results: None

    def step(self, entry: Entry, terms: Terms) -> float:
        """Seconds after which an entry that is deferred now is tried again, at the earliest."""
        return self._backoff(terms).delay(entry.attempts + 1, 0.0)

    def tells(self, entry: Entry, outcomes: Mapping[int, Outcome]) -> bool:
        """Whether the sender may have to be told of these, so that `settle` needs the header."""
        expired = clock.wall() >= entry.message.accepted_at + self._max_age
        return expired or any(outcome.verdict is Verdict.FAILED for outcome in outcomes.values())

    def settle(
        self, entry: Entry, outcomes: Mapping[int, Outcome], timing: Timing = USUALLY, header: bytes = b""
    ) -> None:
        """Hand the record to the queue, which never loses it. header: of a message whose body is not in memory."""
        message = self._queue.get(entry.message.id)
        if message is None:
            # Removed by the operator during the attempt.
            self.ended(entry, ())
            return
        now = clock.wall()
        results = self._results(entry, outcomes, timing, now)
        if not results:
            return
        failed = [result for result in results if result.state in _LOST]
        notification = None
        if failed and message.envelope.sender != NULL:
            if isinstance(message.body, bytes):
                header = dsn.header_of(message.body)
            notification = self._notification(message, failed, header, now)
            if notification is None:
                results = _postponed(results, now, now + self._wait(entry, timing.terms))
        settled = Settled(entry.message.id, results, notification)
        self._queue.settle(settled, partial(self._recorded, entry, outcomes, settled))

    def _wait(self, entry: Entry, terms: Terms) -> float:
        return self._backoff(terms).delay(entry.attempts + 1, self._random.random())

    def _backoff(self, terms: Terms) -> Backoff:
        schedule = terms.retry_schedule
        backoff = self._backoffs.get(schedule)
        if backoff is None:
            backoff = self._backoffs[schedule] = Backoff(schedule)
        return backoff

    def _results(
        self, entry: Entry, outcomes: Mapping[int, Outcome], timing: Timing, now: float
    ) -> tuple[Result, ...]:
        attempts = entry.attempts + 1
        later, due = DEFERRED, 0.0
        results = []
        for recipient, outcome in outcomes.items():
            state, until = _STATES[outcome.verdict], 0.0
            if state is DEFERRED:
                if outcome.reply is reply.SHUTTING_DOWN:
                    # What this shutdown cut off was no attempt: the spool still says what it said before.
                    continue
                if not due:
                    # One roll for all, so that recipients deferred together are tried together.
                    later, due = self._later(entry, timing, now)
                state, until = later, due if later is DEFERRED else 0.0
            results.append(Result(recipient, state, attempts, now, until, outcome.reply, outcome.host))
        return tuple(results)

    def _later(self, entry: Entry, timing: Timing, now: float) -> tuple[State, float]:
        """What becomes of who is deferred, and when it is due."""
        expiry = entry.message.accepted_at + self._max_age
        # Judged only here, after an attempt: a clock that jumped ahead costs one attempt, not the message.
        state = EXPIRED if min(now, timing.judged_at) >= expiry else DEFERRED
        # The last attempt is at expiry.
        bound = expiry if now < expiry else timing.judged_next
        return state, max(now, min(now + self._wait(entry, timing.terms), timing.no_later, bound))

    def _notification(self, message: Message, failed: list[Result], header: bytes, now: float) -> Accepted | None:
        """None, by a bug alone: the failure must then wait, because its sender would never hear of it."""
        try:
            queue_id = self._queue.new_id(beside=message.envelope.id)
            return bounce.notification(message, failed, header, hostname=self._hostname, queue_id=queue_id, now=now)
        except Exception:  # noqa: BLE001  # a message whose bounce cannot be made is kept (I9)
            log.bug("bounce", id=message.envelope.id)
            metrics.bugs.inc()
            return None

    def _recorded(self, entry: Entry, outcomes: Mapping[int, Outcome], settled: Settled) -> None:
        """The record is durable: now it counts."""
        envelope = entry.message
        failed = 0
        for result in settled.results:
            age = result.at - envelope.accepted_at
            state = result.state.value
            _COUNTERS[state].inc()
            failed += result.state in _LOST
            category = "" if result.state is DELIVERED else _refused(result.reply)
            if result.state is not DEFERRED:
                metrics.delivery_seconds.observe(age)
            log.attempted(
                envelope,
                envelope.recipients[result.recipient],
                outcomes[result.recipient],
                state=state,
                attempts=result.attempts,
                delay=age,
                category=category,
            )
        if failed:
            self._told(settled, envelope.sender, failed)
        self.ended(entry, settled.results)

    def _told(self, settled: Settled, sender: str, failed: int) -> None:
        if settled.notification is not None:
            metrics.notifications.inc()
            log.notified(settled.message, settled.notification.envelope.id, sender)
        else:
            metrics.notifications_dropped.inc()
            log.unnotified(settled.message, failed)


def _postponed(results: tuple[Result, ...], now: float, due: float) -> tuple[Result, ...]:
    """Results that end nothing."""
    return tuple(
        result
        if result.state not in _LOST
        else Result(result.recipient, DEFERRED, result.attempts, now, due, result.reply, result.host)
        for result in results
    )


def _refused(answer: reply.Reply) -> str:
    """Count why, and say it."""
    category = patterns.category(None, answer).value
    metrics.refused[category].inc()
    return category
