"""The queue: what inbound and outbound talk to. A message enters by `accept`, its outcomes by `settle`.

Owns the stores of the shards and the memory of live bodies. Knows nothing of SMTP, sites or due times: `added`, set by
`service`, tells whoever schedules. Runs on the event loop, and nothing awaits between looking and acting.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path

from relayd import clock, log, metrics
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.spool.memory import Memory
from relayd.spool.records import Accepted, Message, Settled
from relayd.spool.repair import Repair
from relayd.spool.store import Store, StoreError

SPACE_INTERVAL = 1.0
"""Seconds for which an answer about free space holds."""

SHORT_LINE = 100
"""Batches waiting for a shard up to which it takes all new mail. Two shards for 20 clients cost 18 % more CPU."""

ENTROPY_OCTETS = 5120
"""Randomness fetched at a time: for 512 ids."""

INODE_RESERVE = 1000
"""Free inodes below which no mail is taken; a segment needs one."""


class Queue:
    """Accepted mail, durable from the return of `accept` until its last recipient is settled.

    Invariants: a message is in `messages` exactly from its commit to its last outcome's commit, whatever becomes of
    the client (I6); an outcome handed to `settle` is retried until it is durable; the octets of each live body are
    counted in `memory` once. accept, get, oldest O(1); settle O(recipients settled); messages O(n log n).
    """

    def __init__(
        self,
        stores: Sequence[Store],
        memory: Memory,
        *,
        directory: Path | None,
        disk_reserve: int,
        draining: Container[int] = (),
    ) -> None:
        """`draining`: shards that keep what they hold until it is done, and take nothing new."""
        self.added: Callable[[Message], None] = _not_wired
        """Told of each message right after its commit, on the event loop; set before `open`."""
        self.healthy = True
        """False from a failed commit until one succeeds: nothing is accepted and no new delivery starts."""
        self._stores = tuple(stores)
        self._accepting = tuple(store for store in stores if store.shard not in draining)
        self._repairs = {store.shard: Repair(store, self._judge) for store in stores}
        self.memory = memory
        self._held: dict[str, int] = {}
        self._directory = directory
        self._disk_reserve = disk_reserve
        self._space_known_until = 0.0
        self._space = True
        self._random = bytearray()
        self._opened = False

    async def open(self) -> list[Message]:
        """Open every store; the recovered messages, oldest first. Whatever a store raises, with all closed again."""
        outcomes = await asyncio.gather(*map(_open, self._stores), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            await asyncio.gather(*(store.close() for store in self._stores), return_exceptions=True)
            raise errors[0]
        self._opened = True
        messages = list(self.messages())
        for message in messages:
            self._hold(message)
        self._judge()
        return messages

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

    def new_id(self, beside: str = "") -> str:
        """An unused queue id, in the first shard whose line is short, else the one with the shortest.

        One process fills one shard as long as its disk keeps up: groups are larger, and a second writer thread takes
        its turns from the event loop. `beside`: in the shard of this message, where one record can hold its outcomes
        and the notification of them.
        """
        shard = queue_id.shard_of(beside) if beside else self._shortest_line().shard
        return queue_id.compose(shard, self._entropy())

    def _shortest_line(self) -> Store:
        for store in self._accepting:
            if store.load < SHORT_LINE:
                return store
        return min(self._accepting, key=_load)

    def _entropy(self) -> bytes:
        """Ten octets nobody can guess; from the system in bulk, as each call lets go of the interpreter."""
        if not self._random:
            self._random = bytearray(os.urandom(ENTROPY_OCTETS))
        octets = bytes(self._random[-10:])
        del self._random[-10:]
        return octets

    def accept(self, envelope: Envelope, body: bytes) -> asyncio.Future[None]:
        """Make a message durable; StoreError, here or later, when it is not (it may be found after a crash, I3).

        The memory taken for `body` is the queue's from here on. The future is the caller's: to cancel it changes
        nothing else.
        """
        repair = self._repairs[queue_id.shard_of(envelope.id)]
        if not self.healthy:
            self.memory.give(len(body))
            raise StoreError("the spool cannot commit at present")
        try:
            committed = repair.store.commit((Accepted(envelope, body),))
        except BaseException:
            self.memory.give(len(body))
            raise
        answer: asyncio.Future[None] = committed.get_loop().create_future()
        committed.add_done_callback(partial(self._accepted, repair, envelope.id, len(body), answer))
        return answer

    def _accepted(
        self, repair: Repair, name: str, octets: int, answer: asyncio.Future[None], committed: asyncio.Future[None]
    ) -> None:
        error = committed.exception()
        if error is not None:
            self.memory.give(octets)
            repair.failed(error)
            if not answer.done():
                answer.set_exception(error)
            return
        repair.succeeded()
        self._held[name] = octets
        if not answer.done():
            answer.set_result(None)
        self.added(repair.store.messages[name])

    def settle(self, settled: Settled, recorded: Callable[[], None]) -> None:
        """Record outcomes, however long the disk refuses; then `recorded` is called, behind `added` for a notification.

        The slot of the connection is free at once; the recipient's next step waits for `recorded` (I10).
        """
        shard = queue_id.shard_of(settled.message)
        if settled.notification is not None and queue_id.shard_of(settled.notification.envelope.id) != shard:
            raise ValueError("a notification belongs in the shard of the message it tells of")
        repair = self._repairs[shard]
        repair.settle(settled, partial(self._settled, repair.store, settled, recorded))

    def _settled(self, store: Store, settled: Settled, recorded: Callable[[], None]) -> None:
        if settled.message not in store.messages:
            self.memory.give(self._held.pop(settled.message, 0))
        try:
            if settled.notification is not None:
                notification = store.messages[settled.notification.envelope.id]
                self._hold(notification)
                self.added(notification)
        finally:
            recorded()

    def _hold(self, message: Message) -> None:
        self.memory.force(len(message.body))
        self._held[message.envelope.id] = len(message.body)

    def _judge(self) -> None:
        self.healthy = all(repair.healthy for repair in self._repairs.values())
        metrics.spool_healthy.set(self.healthy)

    def get(self, name: str) -> Message | None:
        """The live message with this queue id; None when there is none, or the text is no id."""
        try:
            store = self._repairs[queue_id.shard_of(name)].store
        except (KeyError, ValueError):
            return None
        return store.messages.get(name)

    def messages(self) -> Iterable[Message]:
        """A snapshot of the live messages, oldest first."""
        live = [message for store in self._stores for message in store.messages.values()]
        return sorted(live, key=lambda message: message.envelope.accepted_at)

    def oldest(self) -> float | None:
        """Wall time at which the oldest live message was accepted; None when the queue is empty. O(shards)."""
        first = (next(iter(store.messages.values()), None) for store in self._stores)
        return min((message.envelope.accepted_at for message in first if message is not None), default=None)

    def has_disk_space(self) -> bool:
        """Whether the spool's disk has more free than the reserve, in octets and inodes; looked at once a second."""
        now = clock.monotonic()
        if self._directory is not None and now >= self._space_known_until:
            self._space_known_until = now + SPACE_INTERVAL
            self._space = _has_space(self._directory, self._disk_reserve)
        return self._space


async def _open(store: Store) -> None:
    started = clock.monotonic()
    recovered = await store.open()
    metrics.quarantined.inc(recovered.quarantined)
    metrics.torn.inc(recovered.torn)
    seconds = clock.monotonic() - started
    log.recovered(store.shard, len(recovered.messages), recovered.quarantined, recovered.torn, seconds)


def _has_space(directory: Path, reserve: int) -> bool:
    try:
        status = os.statvfs(directory)
    except OSError:
        # A disk that does not say is not one to take mail for (I4).
        return False
    # Some file systems make inodes as they go and report none at all.
    inodes = not status.f_files or status.f_favail >= INODE_RESERVE
    return inodes and status.f_bavail * status.f_frsize >= reserve


def _load(store: Store) -> int:
    return store.load


def _not_wired(message: Message) -> None:
    raise RuntimeError(f"message {message.envelope.id}: nobody was told where to schedule it")
