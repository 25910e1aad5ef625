"""The way of a sealed segment's survivors into the index, and out of memory.

Owns the order: state as of now, one transaction, then memory lets go. What is due, or in work, stays in memory as well.
`keeper` says when; `cold` has the index and its thread.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from relayd import log, metrics
from relayd.smtp.address import route_key
from relayd.spool import journal
from relayd.spool.cold import Cold
from relayd.spool.index import Index, Put, Waiting
from relayd.spool.journal import Place, RecordError
from relayd.spool.ledger import Segment
from relayd.spool.records import Message

MOVED_AT_ONCE = 25
"""Messages of one transaction. Commits wait for its sync, as both are on one disk: with 100, three times as long."""

READS = 3
"""Times that a disk may refuse to read a body before its message moves without it. `keeper` waits in between."""

_Unread = tuple[str, Place, RecordError]


class Mover:
    """Moves one segment at a time.

    Invariant: what a transaction writes is the state of the ledger when it began; what changes meanwhile finds a later
    home. A body that cannot be read is not deleted: its segment is kept. Costs O(messages the segment answers for).
    """

    def __init__(self, cold: Cold, shard: int) -> None:
        self._cold = cold
        self._shard = shard
        self._refused: Counter[str] = Counter()
        """Reads of bodies that the disk refused, by message."""

    async def move(self, segment: Segment, idle: Callable[[str], bool]) -> None:
        """Bring the index up to date with all the segment answers for; forget those that are `idle`. StoreError."""
        segment.moving = True
        try:
            while names := list(islice(segment.live, MOVED_AT_ONCE)):
                await self._move(names, segment)
                self._forget(names, idle)
            await self._cold.call(lambda index: index.move((), (), segment.number), writing=True)
            self._refused.clear()
        finally:
            segment.moving = False

    async def _move(self, names: Sequence[str], segment: Segment) -> None:
        ledger = self._cold.ledger
        puts = [self._put(ledger.messages[name]) for name in names if name in ledger.messages]
        drops = [name for name in names if name not in ledger.messages]
        ledger.move(names)
        try:
            unread = await self._cold.call(partial(self._write, puts, drops), writing=True)
        except BaseException:
            ledger.unmoved(names, segment)
            raise
        ledger.moved(names)
        for name, place, error in unread:
            # The message stays: it is never sent without its body, and when it expires its sender is told.
            segment.kept = True
            log.quarantined(self._shard, name, place.octets, 0, str(error))
            metrics.quarantined.inc()

    def _forget(self, names: Iterable[str], idle: Callable[[str], bool]) -> None:
        ledger = self._cold.ledger
        for name in names:
            if name in ledger.messages and ledger.rests(name) and idle(name):
                held = ledger.messages[name].held
                ledger.evict(name)
                self._cold.count += 1
                self._cold.held += held

    def _put(self, message: Message) -> tuple[Put, Place | None]:
        """What the index is to hold, and where in the journal its body is, if that is the only place."""
        name = message.envelope.id
        place = self._cold.ledger.place(name)
        # What is known to have a row has its body there too, unless the move that should have brought it failed.
        stored = place is None and name in self._cold.ledger.indexed
        body = message.body if isinstance(message.body, bytes) and not stored else None
        place = place if message.body is None else None
        waiting = [] if message.held else _waiting(message)
        return Put(name, journal.head(message), waiting, body, message.held), place

    def _write(self, puts: Sequence[tuple[Put, Place | None]], drops: Sequence[str], index: Index) -> list[_Unread]:
        """On the index's thread; the bodies that could not be read."""
        filled, unread = [], []
        for put, place in puts:
            if place is None:
                filled.append(put)
                continue
            try:
                filled.append(put._replace(body=self._body(put.id, place)))
            except RecordError as error:
                filled.append(put)
                unread.append((put.id, place, error))
        index.move(filled, drops)
        return unread

    def _body(self, name: str, place: Place) -> bytes:
        """RecordError when it is damaged; OSError when it may be read another time."""
        try:
            return journal.body_at(self._cold.segments, place)
        except OSError as error:
            if error.errno == errno.EIO:
                self._refused[name] += 1
                if self._refused[name] >= READS:
                    raise RecordError(str(error)) from error
            raise


def _waiting(message: Message) -> list[Waiting]:
    """The groups of recipients that are still to be tried, a domain each, at the earliest of their due times."""
    envelope = message.envelope
    due: dict[str, float] = {}
    for address, result in zip(envelope.recipients, message.results, strict=True):
        if result is None or not result.state.final:
            when = envelope.accepted_at if result is None else result.due
            domain = route_key(address)
            due[domain] = min(when, due.get(domain, when))
    return [Waiting(domain, envelope.account, when) for domain, when in due.items()]
