"""A store without a disk: the same contract as `JournalStore`, and faults on request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from relayd.spool import journal
from relayd.spool.records import Accepted, Message, Record
from relayd.spool.store import Recovered, StoreError, StoreLockedError


class Disk:
    """What outlives a MemoryStore: hand it to the next one."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.epoch = 0
        self.owned = False


class MemoryStore:
    """failing: every commit ends with StoreError while set. held: no commit ends before `release`."""

    def __init__(self, shard: int = 0, disk: Disk | None = None) -> None:
        self.shard = shard
        self.epoch = 0
        self.disk = Disk() if disk is None else disk
        self.failing = False
        self.held = False
        self.attempts: list[Sequence[Record]] = []
        self._messages: dict[str, Message] = {}
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[None]]] = []
        self._open = False

    @property
    def messages(self) -> Mapping[str, Message]:
        return self._messages

    @property
    def load(self) -> int:
        return len(self._waiting)

    async def open(self) -> Recovered:
        if self.disk.owned:
            raise StoreLockedError("the disk belongs to another store")
        self.disk.owned = self._open = True
        self.disk.epoch += 1
        self.epoch = self.disk.epoch
        for record in self.disk.records:
            self._apply(record)
        ordered = sorted(self._messages.items(), key=lambda pair: pair[1].envelope.accepted_at)
        self._messages = dict(ordered)
        return Recovered(list(self._messages.values()))

    def commit(self, batch: Sequence[Record]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        for record in batch:
            journal.encode(record)
        if not self._open:
            done.set_exception(StoreError("closed"))
            return done
        self.attempts.append(batch)
        self._waiting.append((batch, done))
        loop.call_soon(self._end)
        return done

    def release(self) -> None:
        """End what was held."""
        self.held = False
        self._end()

    async def close(self) -> None:
        self.held = False
        self._end()
        self._open = self.disk.owned = False

    def _end(self) -> None:
        if self.held:
            return
        waiting, self._waiting = self._waiting, []
        for batch, done in waiting:
            if self.failing:
                done.set_exception(StoreError("the disk is broken"))
                continue
            for record in batch:
                self.disk.records.append(record)
                self._apply(record)
            done.set_result(None)

    def _apply(self, record: Record) -> None:
        if isinstance(record, Accepted):
            self._messages.setdefault(record.envelope.id, Message.of(record))
            return
        message = self._messages.get(record.message)
        if message is not None:
            message.apply(record.results)
            if message.done:
                del self._messages[record.message]
        if record.notification is not None:
            self._apply(record.notification)
