"""The store against a plain model of it: whatever fails and wherever it ends, under any order hypothesis can find.

Nothing acknowledged is missing, nothing done comes back, results never go back, bodies are the same octets, and what is
counted is what is there. Faults are those of the file layer: a call that fails once, and an index that refuses to move.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from relayd import log
from relayd.spool import index_file, keeper, mover, writer
from relayd.spool.index import Index
from relayd.spool.records import Accepted, Message, Record, Result, State
from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreError
from tests.fakes.mail import accepted, result, settled

SEGMENT = 2048
FAULTS = (("writev",), ("pwrite",), ("fdatasync",), ("fsync",), ("writev", "ftruncate"), ("fdatasync", "ftruncate"))
"""Calls that fail once, each."""

T = TypeVar("T")


@contextmanager
def unsynced() -> Iterator[None]:
    """No disk is waited for, the index moves two messages at a time, and nothing begins by itself."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(index_file, "SYNCHRONOUS", "OFF"))
        patches.enter_context(patch.object(mover, "MOVED_AT_ONCE", 2))
        patches.enter_context(patch.object(keeper, "TICK", 3600.0))
        patches.enter_context(patch.object(writer, "RESERVE", 4096))
        patches.enter_context(patch.object(writer, "ROOM", bytes(4096)))
        for call in ("fsync", "fdatasync"):
            patches.enter_context(patch.object(os, call, lambda _descriptor: None))
        for event in ("alert", "quarantined"):
            patches.enter_context(patch.object(log, event, lambda *_, **__: None))
        yield


def once(real: Callable[..., object], error: int) -> Callable[..., object]:
    """A call that fails the first time."""
    failures = iter([True])

    def fails(*arguments: object) -> object:
        if next(failures, False):
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    return fails


def snapshot(directory: Path, target: Path) -> None:
    """Copy a shard as it is now. A segment may be unlinked meanwhile, as nothing needs it: then once more."""
    for _ in range(100):
        try:
            shutil.copytree(directory, target)
        except shutil.Error:
            shutil.rmtree(target)
        else:
            return
    raise AssertionError(f"{directory} never stands still")


class Live:
    """A message of the model. sure: acknowledged. results: the latest that were; maybe: those whose commit failed."""

    def __init__(self, record: Accepted, *, sure: bool) -> None:
        self.record = record
        self.sure = sure
        self.results: list[Result | None] = [None] * len(record.envelope.recipients)
        self.maybe: list[Result] = []


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.exit = ExitStack()
        self.exit.enter_context(unsynced())
        self.root = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.exit.callback(shutil.rmtree, self.root)
        self.loop = asyncio.new_event_loop()
        self.exit.callback(self.loop.close)
        self.directories = iter(range(10**6))
        self.directory = self.root / str(next(self.directories))
        self.numbers = iter(range(10**6))
        self.attempts = 0
        self.model: dict[str, Live] = {}
        self.done: set[str] = set()
        self.opened()

    def run(self, work: Coroutine[None, None, T]) -> T:
        return self.loop.run_until_complete(self.finished(work))

    async def finished(self, work: Coroutine[None, None, T]) -> T:
        """What follows a commit is waited for as well, so that the same calls always leave the same files."""
        async with asyncio.timeout(20):
            try:
                return await work
            finally:
                if hasattr(self, "store"):
                    await self.store._quiet.wait()

    # --- the store's life

    def opened(self) -> None:
        self.store = JournalStore(self.directory, 0, segment_octets=SEGMENT)
        self.refused: set[str] = set()
        self.store.idle = lambda message: message not in self.refused
        self.run(self.store.open())
        self.check()
        self.settle_doubts()

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.opened()

    @rule()
    def crash(self) -> None:
        """The files as they are, opened by somebody else; of the store nothing more is heard."""
        self.directory = self.root / str(next(self.directories))
        snapshot(self.store._directory, self.directory)
        self.run(self.store.close())
        self.opened()

    @rule(moves=st.integers(0, 3))
    def crash_while_moving(self, moves: int) -> None:
        """As above, with so many transactions of a move on disk."""
        self.directory = self.root / str(next(self.directories))
        move, made = Index.move, []

        def copied(index: Index, *arguments: object) -> None:
            if len(made) == moves:
                snapshot(self.store._directory, self.directory)
            made.append(True)
            move(index, *arguments)

        with patch.object(Index, "move", copied):
            self.run(self.store.seal())
        if not self.directory.exists():
            snapshot(self.store._directory, self.directory)
        self.run(self.store.close())
        self.opened()

    # --- what is asked of it

    def commit(self, *records: Record) -> bool:
        try:
            self.run(self.awaited(records))
        except StoreError:
            return False
        return True

    async def awaited(self, records: tuple[Record, ...]) -> None:
        await self.store.commit(records)

    @rule(octets=st.sampled_from([0, 1, 300, 300, 3000]), recipients=st.integers(1, 3), number=st.integers(1, 4))
    def accept(self, octets: int, recipients: int, number: int) -> None:
        new = [accepted(next(self.numbers), octets=octets, recipients=recipients) for _ in range(number)]
        sure = self.commit(*new)
        for record in new:
            self.model[record.envelope.id] = Live(record, sure=sure)
        assert all((record.envelope.id in self.store.messages) == sure for record in new)

    @precondition(lambda self: self.store.messages)
    @rule(data=st.data(), final=st.booleans(), all_of_them=st.booleans(), notified=st.booleans())
    def settle(self, data: st.DataObject, final: bool, all_of_them: bool, notified: bool) -> None:
        message = data.draw(st.sampled_from(sorted(self.store.messages)))
        live = self.model[message]
        self.attempts += 1
        open_ones = [
            n for n, old in enumerate(self.store.messages[message].results) if old is None or not old.state.final
        ]
        chosen = open_ones if all_of_them else open_ones[:1]
        state = State.FAILED if final else State.DEFERRED
        results = tuple(result(n, state, self.attempts) for n in chosen)
        note = accepted(next(self.numbers), octets=200) if notified else None
        sure = self.commit(settled(int(live.record.envelope.accepted_at), *results, notification=note))
        if note is not None:
            self.model[note.envelope.id] = Live(note, sure=sure)
        if not sure:
            live.maybe += results
            return
        for one in results:
            live.results[one.recipient] = one
        if all(one is not None and one.state.final for one in live.results):
            self.done.add(message)
            del self.model[message]
            assert message not in self.store.messages

    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        names = sorted(self.store.messages)
        self.refused = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
        self.run(self.store.seal())
        assert self.refused <= self.store.messages.keys()
        self.refused = set()

    @rule(each=st.integers(1, 5))
    def due(self, each: int) -> None:
        before = self.store.rest.count
        found = self.run(self.store.rest.due(1e12, lanes=1, each=each, full=lambda _domain, _account: False))
        assert len(found) == min(each, before)
        assert self.store.rest.count == before - len(found)
        assert all(self.store.messages[message.envelope.id] is message for message in found)

    # --- and what goes wrong

    @rule(calls=st.sampled_from(FAULTS), error=st.sampled_from([errno.EIO, errno.ENOSPC]), data=st.data())
    def fault_in_a_commit(self, calls: tuple[str, ...], error: int, data: st.DataObject) -> None:
        """Whether what it was for is durable is in doubt until the next start."""
        with ExitStack() as patches:
            for call in calls:
                patches.enter_context(patch.object(os, call, once(getattr(os, call), error)))
            if self.store.messages and data.draw(st.booleans()):
                self.settle(data, data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans()))
            else:
                self.accept(300, 1, 2)
        self.commit()

    @rule(move=st.integers(0, 3), done=st.booleans())
    def fault_in_moving(self, move: int, done: bool) -> None:
        """One of the transactions fails; when `done`, only its end was not told."""
        real, moves = Index.move, iter(range(10**6))

        def fails(index: Index, *arguments: object) -> None:
            fault = next(moves) == move
            if done or not fault:
                real(index, *arguments)
            if fault:
                raise OSError(errno.EIO, "Input/output error")

        with patch.object(Index, "move", fails), suppress(StoreError):
            self.run(self.store.seal())

    @rule()
    def fault_in_files(self) -> None:
        """No file of the process may grow: SQLite finds out by itself."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with suppress(StoreError):
                self.run(self.store.seal())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.commit()

    @rule()
    def fault_in_removing(self) -> None:
        """Segments cannot be removed though nothing needs them any more."""
        unlink = Path.unlink

        def fails(path: Path, *, missing_ok: bool = False) -> None:
            if path.suffix == ".log":
                raise OSError(errno.EIO, "Input/output error")
            unlink(path, missing_ok=missing_ok)

        with patch.object(Path, "unlink", fails):
            self.run(self.store.seal())

    # --- what always holds

    @rule()
    def check(self) -> None:
        found = self.run(self.everything())
        for message, live in self.model.items():
            assert message in found or not live.sure or live.maybe, f"{message} was acknowledged and is missing"
        for message, (now, body) in found.items():
            assert message not in self.done, f"{message} is done and came back"
            live = self.model[message]
            assert now.envelope == live.record.envelope
            assert body == live.record.body
            for recipient, is_ in enumerate(now.results):
                allowed = [live.results[recipient], *(one for one in live.maybe if one.recipient == recipient)]
                assert is_ in allowed, f"{is_} is none of {allowed}"

    def settle_doubts(self) -> None:
        """Behind a start what was in doubt is so or not, for ever."""
        found = self.run(self.everything())
        for message in [message for message in self.model if message not in found]:
            self.done.add(message)
            del self.model[message]
        for message, (now, _) in found.items():
            live = self.model[message]
            live.sure, live.results, live.maybe = True, list(now.results), []

    async def everything(self) -> dict[str, tuple[Message, bytes]]:
        found = [*self.store.messages.values()]
        after, page = await self.store.rest.page(0, 3)
        resting = 0
        while after:
            found += page
            resting += len(page)
            after, page = await self.store.rest.page(after, 3)
        assert resting == self.store.rest.count, "what is counted is not what is there"
        names = [message.envelope.id for message in found]
        assert len(names) == len(set(names)), "in memory and at rest"
        bodies = [await self.store.rest.body(name) for name in names]
        return {name: (message, body) for name, message, body in zip(names, found, bodies, strict=True)}

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.reopen()
            self.run(self.store.seal())
            self.check()
            self.run(self.store.close())
        finally:
            self.exit.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
