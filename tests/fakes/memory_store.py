"""A store without a disk: the same contract as `JournalStore`, and faults on request."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from relayd import clock
from relayd.smtp.address import route_key
from relayd.spool import journal
from relayd.spool.bodies import Bodies
from relayd.spool.records import Accepted, Held, Message, Record
from relayd.spool.store import Full, Recovered, StoreError, StoreLockedError


class Disk:
    """What outlives a MemoryStore: hand it to the next one."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.epoch = 0
        self.owned = False


class MemoryRest:
    """Messages that nobody holds. Bodies are read from the disk's records, as nothing else keeps them for ever."""

    def __init__(self, disk: Disk, awake: dict[str, Message]) -> None:
        self.failing = False
        self._disk = disk
        self._awake = awake
        self._resting: dict[str, tuple[int, Message]] = {}
        self._arrived = 0
        self.oldest: float | None = None

    @property
    def count(self) -> int:
        return len(self._resting)

    @property
    def held(self) -> int:
        return sum(message.held for _, message in self._resting.values())

    def lay(self, name: str) -> None:
        """A message goes to rest."""
        self._arrived += 1
        message = self._awake.pop(name)
        if isinstance(message.body, bytes):
            message.body = None
        self._resting[name] = (self._arrived, message)

    async def due(self, before: float, *, lanes: int, each: int, full: Full) -> list[Message]:
        self._check()
        found: dict[str, Message] = {}
        served: dict[tuple[str, str], int] = {}
        for when, lane, message in self._waiting():
            if when > before or full(*lane) or message.envelope.id in found or served.get(lane, 0) >= each:
                continue
            if lane in served or len(served) < lanes:
                served[lane] = served.get(lane, 0) + 1
                found[message.envelope.id] = message
        return self._woken(found)

    async def of_domains(self, domains: Sequence[str], limit: int) -> list[Message]:
        self._check()
        found = {message.envelope.id: message for _, lane, message in self._waiting() if lane[0] in domains}
        return self._woken(dict(list(found.items())[:limit]))

    async def take(self, name: str) -> Message | None:
        self._check()
        found = {name: self._resting[name][1]} if name in self._resting else {}
        return next(iter(self._woken(found)), None)

    async def find(self, name: str) -> Message | None:
        self._check()
        return copy.deepcopy(self._resting[name][1]) if name in self._resting else None

    async def page(self, after: int, limit: int) -> tuple[int, list[Message]]:
        self._check()
        page = [(number, message) for number, message in self._resting.values() if number > after][:limit]
        return (page[-1][0] if page else 0), [copy.deepcopy(message) for _, message in page]

    async def look_back(self) -> None:
        self._check()
        self.oldest = min((message.envelope.accepted_at for _, message in self._resting.values()), default=None)

    async def body(self, name: str) -> bytes:
        self._check()
        for record in self._disk.records:
            for accepted in (record, getattr(record, "notification", None)):
                if isinstance(accepted, Accepted) and accepted.envelope.id == name and isinstance(accepted.body, bytes):
                    return accepted.body
        raise StoreError("no body")

    def _check(self) -> None:
        if self.failing:
            raise StoreError("the index is broken")

    def _waiting(self) -> list[tuple[float, tuple[str, str], Message]]:
        """What is due, each lane of each message once, the first first."""
        waiting: dict[tuple[str, tuple[str, str]], tuple[float, tuple[str, str], Message]] = {}
        for name, (_, message) in self._resting.items():
            for address, result in zip(message.envelope.recipients, message.results, strict=True):
                if not message.held and (result is None or not result.state.final):
                    when = message.envelope.accepted_at if result is None else result.due
                    lane = (route_key(address), message.envelope.account)
                    known = waiting.get((name, lane))
                    if known is None or when < known[0]:
                        waiting[name, lane] = (when, lane, message)
        return sorted(waiting.values(), key=lambda group: group[0])

    def _woken(self, found: dict[str, Message]) -> list[Message]:
        for name, message in found.items():
            del self._resting[name]
            self._awake[name] = message
        return list(found.values())


class MemoryStore:
    """failing: every commit ends with StoreError while set. held: no commit ends before `release`.

    gate: a move to rest begins, and ends no sooner than this is set.

    directory: for large bodies, which are on a real disk here too; without one, they fail.
    """

    def __init__(self, shard: int = 0, disk: Disk | None = None, directory: Path = Path("/nowhere")) -> None:
        self.bodies = Bodies(directory / "bodies", directory / "quarantine")
        self.shard = shard
        self.epoch = 0
        self.disk = Disk() if disk is None else disk
        self.failing = False
        self.held = False
        self.attempts: list[Sequence[Record]] = []
        self._messages: dict[str, Message] = {}
        self.rest = MemoryRest(self.disk, self._messages)
        self.gate: asyncio.Event | None = None
        self.idle: Callable[[str], bool] = lambda _name: True
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[None], float]] = []
        self._open = False

    @property
    def messages(self) -> Mapping[str, Message]:
        return self._messages

    @property
    def load(self) -> int:
        return len(self._waiting)

    @property
    def behind(self) -> float:
        return clock.monotonic() - self._waiting[0][2] if self._waiting else 0.0

    async def open(self) -> Recovered:
        if self.disk.owned:
            raise StoreLockedError("the disk belongs to another store")
        self.disk.owned = self._open = True
        self.disk.epoch += 1
        self.epoch = self.disk.epoch
        for record in self.disk.records:
            self._apply(record)
        ordered = sorted(self._messages.items(), key=lambda pair: pair[1].envelope.accepted_at)
        self._messages.clear()
        self._messages.update(ordered)
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
        self._waiting.append((batch, done, clock.monotonic()))
        loop.call_soon(self._end)
        return done

    def release(self) -> None:
        """End what was held."""
        self.held = False
        self._end()

    async def seal(self) -> None:
        before = copy.deepcopy(self._messages)
        if self.gate is not None:
            await self.gate.wait()
        for name, message in before.items():
            now = self._messages.get(name)
            if now is not None and (now.results, now.held) == (message.results, message.held) and self.idle(name):
                self.rest.lay(name)

    async def close(self) -> None:
        self.held = False
        self._end()
        self._open = self.disk.owned = False
        self.bodies.close()

    def _end(self) -> None:
        if self.held:
            return
        waiting, self._waiting = self._waiting, []
        for batch, done, _ in waiting:
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
        if isinstance(record, Held):
            if message is not None:
                message.held = record.held
            return
        if message is not None:
            message.apply(record.results)
            if message.done:
                del self._messages[record.message]
        if record.notification is not None:
            self._apply(record.notification)
