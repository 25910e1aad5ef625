"""The queue: what inbound and outbound talk to. A message enters by `accept`, its outcomes by `settle`.

Owns the stores of the shards and the budget of bodies in memory. Knows nothing of SMTP, sites or schedules: `added` and
`dismiss`, set by `service`, tell and ask whoever schedules. Runs on the event loop, and nothing awaits between looking
and acting.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Container, Sequence
from functools import partial
from itertools import chain

from relayd import clock, log, metrics
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.spool.bodies import Reading, Writing
from relayd.spool.memory import Kept, Memory
from relayd.spool.records import Accepted, Filed, Message, Settled
from relayd.spool.repair import Repair
from relayd.spool.space import Space
from relayd.spool.store import Store, StoreError

SHORT_LINE = 100
"""Batches waiting for a shard up to which it takes all new mail. Two shards for 20 clients cost 18 % more CPU."""

UNHEALTHY_PAUSE, BEHIND_PAUSE = 1.0, 0.01
"""Seconds until a failed store, or a slow one, is looked at again for the sake of deliveries."""

STALLED_SECONDS = 10.0
"""A store whose oldest batch has waited for longer takes no new mail: its client would wait, too."""

MOST_UNRECORDED = 500
"""Outcomes that may wait for a slow disk: after a crash that mail is sent again."""

ENTROPY_OCTETS = 5120
"""Randomness fetched at a time: for 512 ids."""

PAGE = 500
"""Messages of a page."""


class Queue:
    """Accepted mail, durable from the return of `accept` until its last recipient is settled.

    Invariants: a message is in the queue exactly from its commit to its last outcome's commit, whatever becomes of the
    client (I6), in memory or at rest; an outcome handed to `settle` is retried until it is durable; the octets of each
    body in memory are counted in `memory` once. accept and get are O(1), settle O(recipients settled), page
    O(messages returned).
    """

    def __init__(
        self,
        stores: Sequence[Store],
        memory: Memory,
        *,
        space: Space | None = None,
        draining: Container[int] = (),
    ) -> None:
        """`draining`: shards that keep what they hold until it is done, and take nothing new."""
        self.added: Callable[[Message], None] = _not_wired
        """Told of each message right after its commit, on the event loop; set before `open`."""
        self.dismiss: Callable[[str], bool] = _nobody_holds
        """Asked of a message in memory that may go to rest: True forgets it, until it is handed out as due."""
        self.healthy = True
        """False from a failed commit until one succeeds: nothing is accepted and no new delivery starts."""
        self.unrecorded = 0
        """Outcomes that are not durable yet: after a crash now these deliveries would be made again (I3)."""
        self._stores = tuple(stores)
        self.rests = [store.rest for store in stores]
        self._accepting = tuple(store for store in stores if store.shard not in draining)
        self._repairs = {store.shard: Repair(store, self._judge) for store in stores}
        for store in stores:
            store.idle = self._idle
        self.memory = memory
        self.space = space or Space((), 0)
        self._kept = Kept(memory)
        self._entropy = _Entropy()
        self._opened = False

    async def open(self) -> list[Message]:
        """Open every store; the messages in memory, oldest first. Whatever a store raises, with all closed again."""
        outcomes = await asyncio.gather(*map(_open, self._stores), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            await asyncio.gather(*(store.close() for store in self._stores), return_exceptions=True)
            raise errors[0]
        self._opened = True
        metrics.spool_healthy.set_function(lambda: not self.trouble)
        messages = [message for store in self._stores for message in store.messages.values()]
        for message in messages:
            self._kept.force(message)
        return sorted(messages, key=lambda message: message.envelope.accepted_at)

    async def close(self) -> None:
        """Record what can still be recorded, then close the stores; StoreError when one does not answer."""
        if not self._opened:
            return
        self._opened = False
        await asyncio.gather(*(repair.finish() for repair in self._repairs.values()))
        results = await asyncio.gather(*(store.close() for store in self._stores), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    @property
    def trouble(self) -> str:
        """Why no message can be made durable now; "" when it can."""
        if not self.healthy:
            return "spool failed"
        for store in self._stores:  # not any(): this is asked for each message
            if store.behind > STALLED_SECONDS:
                return "spool stalled"
        return ""

    @property
    def pause(self) -> float:
        """Seconds for which no delivery is to start, as its outcome would not be recorded, or late; nearly always 0."""
        if not self.healthy:
            return UNHEALTHY_PAUSE
        return BEHIND_PAUSE if self.unrecorded >= MOST_UNRECORDED else 0.0

    def new_id(self, beside: str = "") -> str:
        """An unused queue id, in the first shard whose line is short, else the one with the shortest.

        One process fills one shard as long as its disk keeps up: groups are larger, and a second writer thread takes
        its turns from the event loop. `beside`: in the shard of this message, where one record can hold its outcomes
        and the notification of them.
        """
        shard = queue_id.shard_of(beside) if beside else _shortest_line(self._accepting).shard
        return queue_id.compose(shard, self._entropy.take())

    def store_of(self, name: str) -> Store:
        """The store of a message's shard. KeyError where there is none, ValueError where the text is no id."""
        return self._repairs[queue_id.shard_of(name)].store

    def file(self, name: str) -> Writing:
        """Begin the body file of a message that is too large for memory; `accept` takes what `finish` of it gives."""
        return self.store_of(name).bodies.write(name, self.memory)

    async def body(self, message: Message) -> bytes | Reading:
        """A live message's body, wherever it is; a Reading is the caller's to close.

        BodyError, StoreError, OSError: it cannot be read, for now.
        """
        name, body = message.envelope.id, message.body
        if isinstance(body, bytes):
            return body
        store = self.store_of(name)
        return await (store.rest.body(name) if body is None else store.bodies.read(name, body, self.memory))

    def accept(self, envelope: Envelope, body: bytes | Filed) -> asyncio.Future[None]:
        """Make a message durable; StoreError, here or later, when it is not (it may be found after a crash, I3).

        The memory taken for `body`, or its file, is the queue's from here on. The future is the caller's: to cancel it
        changes nothing else.
        """
        repair = self._repairs[queue_id.shard_of(envelope.id)]
        if not self.healthy:
            _drop(self.memory, repair.store, envelope.id, body)
            raise StoreError("the spool cannot commit at present")
        try:
            committed = repair.store.commit((Accepted(envelope, body),))
        except BaseException:
            _drop(self.memory, repair.store, envelope.id, body)
            raise
        answer: asyncio.Future[None] = committed.get_loop().create_future()
        committed.add_done_callback(partial(self._accepted, repair, envelope.id, body, answer))
        return answer

    def _accepted(
        self,
        repair: Repair,
        name: str,
        body: bytes | Filed,
        answer: asyncio.Future[None],
        committed: asyncio.Future[None],
    ) -> None:
        error = committed.exception()
        if error is not None:
            _drop(self.memory, repair.store, name, body)
            repair.failed(error)
            if not answer.done():
                answer.set_exception(error)
            return
        repair.succeeded()
        message = repair.store.messages[name]
        if isinstance(body, bytes):
            if self.memory.used > self.memory.limit // 2:
                # What is taken in later needs the room more: this one is read back when it is sent.
                message.body = None
                self.memory.give(len(body))
            else:
                self._kept.add(name, len(body))
        if not answer.done():
            answer.set_result(None)
        self.added(message)

    def settle(self, settled: Settled, recorded: Callable[[], None]) -> None:
        """Record outcomes, however long the disk refuses; then `recorded` is called, behind `added` for a notification.

        The slot of the connection is free at once; the recipient's next step waits for `recorded` (I10).
        """
        shard = queue_id.shard_of(settled.message)
        if settled.notification is not None and queue_id.shard_of(settled.notification.envelope.id) != shard:
            raise ValueError("a notification belongs in the shard of the message it tells of")
        repair = self._repairs[shard]
        message = repair.store.messages.get(settled.message)
        filed = message is not None and isinstance(message.body, Filed)
        repair.settle(settled, partial(self._settled, repair.store, settled, filed, recorded))
        self.unrecorded += 1

    def _settled(self, store: Store, settled: Settled, filed: bool, recorded: Callable[[], None]) -> None:  # noqa: FBT001
        self.unrecorded -= 1
        if settled.message not in store.messages:
            self._kept.drop(settled.message)
            if filed:
                store.bodies.remove(settled.message)
        try:
            if settled.notification is not None:
                notification = store.messages[settled.notification.envelope.id]
                self._kept.force(notification)
                self.added(notification)
        finally:
            recorded()

    def _idle(self, name: str) -> bool:
        if not self.dismiss(name):
            return False
        self._kept.drop(name)
        return True

    def _judge(self) -> None:
        self.healthy = all(repair.healthy for repair in self._repairs.values())

    def get(self, name: str) -> Message | None:
        """The message in memory with this queue id; None when there is none, or the text is no id."""
        try:
            store = self.store_of(name)
        except (KeyError, ValueError):
            return None
        return store.messages.get(name)

    # --- at rest ------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Message | None:
        """A live message, in memory or at rest; None when there is none, or the text is no id. StoreError."""
        message = self.get(name)
        if message is not None or not queue_id.is_valid(name) or queue_id.shard_of(name) not in self._repairs:
            return message
        return await self.store_of(name).rest.find(name)

    async def pages(self) -> AsyncIterator[list[Message]]:
        """All live messages, those at rest first, a page at a time. StoreError.

        One that goes to rest, or comes from there, meanwhile may be missing or twice.
        """
        for rest in self.rests:
            after = 0
            while True:
                after, messages = await rest.page(after, PAGE)
                if messages:
                    yield messages
                if not after:
                    break
        live = [message for store in self._stores for message in store.messages.values()]
        live.sort(key=lambda message: message.envelope.accepted_at)
        for start in range(0, len(live), PAGE):
            yield live[start : start + PAGE]
            await asyncio.sleep(0)

    @property
    def resting(self) -> int:
        """How many messages are at rest."""
        return sum(rest.count for rest in self.rests)

    def oldest(self) -> float | None:
        """Wall time at which the oldest live message was accepted; None when the queue is empty. O(in memory)."""
        live = (message.envelope.accepted_at for store in self._stores for message in store.messages.values())
        resting = (rest.oldest for rest in self.rests if rest.count and rest.oldest is not None)
        return min(chain(live, resting), default=None)


class _Entropy:
    """Octets nobody can guess; from the system in bulk, as each call lets go of the interpreter."""

    def __init__(self) -> None:
        self._octets = bytearray()

    def take(self) -> bytes:
        """Ten of them."""
        if not self._octets:
            self._octets = bytearray(os.urandom(ENTROPY_OCTETS))
        octets = bytes(self._octets[-10:])
        del self._octets[-10:]
        return octets


async def _open(store: Store) -> None:
    started = clock.monotonic()
    recovered = await store.open()
    metrics.quarantined.inc(recovered.quarantined)
    metrics.torn.inc(recovered.torn)
    seconds = clock.monotonic() - started
    log.recovered(store.shard, len(recovered.messages), recovered.quarantined, recovered.torn, seconds)


def _drop(memory: Memory, store: Store, name: str, body: bytes | Filed) -> None:
    """Let go of a body that was not accepted. Its record may be found after a crash, but nobody was told 250."""
    if isinstance(body, bytes):
        memory.give(len(body))
    else:
        store.bodies.remove(name)


def _shortest_line(stores: Sequence[Store]) -> Store:
    for store in stores:
        if store.load < SHORT_LINE:
            return store
    return min(stores, key=_load)


def _load(store: Store) -> int:
    return store.load


def _nobody_holds(_name: str) -> bool:
    return True


def _not_wired(message: Message) -> None:
    raise RuntimeError(f"message {message.envelope.id}: nobody was told where to schedule it")
