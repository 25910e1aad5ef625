"""What keeps the contract of `store.Store`: the journal with its index, and the tests' fake; and how their disk breaks."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from relayd.spool.index import Index
from relayd.spool.records import Message
from relayd.spool.shard import JournalStore
from relayd.spool.store import Store
from tests.fakes.memory_store import Disk, MemoryStore

SHARD = 3


class Engine:
    """Makes stores over one and the same disk."""

    def make(self) -> Store:
        raise NotImplementedError

    def broken(self, store: Store) -> contextlib.AbstractContextManager[None]:
        """A block in which no commit can succeed."""
        raise NotImplementedError

    def moving(self, store: Store) -> contextlib.AbstractAsyncContextManager[None]:
        """A block in which `seal` has begun to move messages and does not get on; it has ended behind the block."""
        raise NotImplementedError

    async def opened(self) -> Store:
        store = self.make()
        await store.open()
        return store

    async def reopened(self, store: Store) -> Store:
        await store.close()
        return await self.opened()


class JournalEngine(Engine):
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._monkeypatch = monkeypatch

    def make(self) -> Store:
        return JournalStore(self._directory, SHARD, lock_seconds=0.1)

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        """Every write of the process to a file fails with EFBIG: a real fault that needs no rights."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @contextlib.asynccontextmanager
    async def moving(self, store: Store) -> AsyncIterator[None]:
        begun, go_on = threading.Event(), threading.Event()
        move = Index.move

        def held(*arguments: object) -> None:
            begun.set()
            assert go_on.wait(20), "nobody let the index's thread go on"
            move(*arguments)

        with self._monkeypatch.context() as patch:
            patch.setattr(Index, "move", held)
            sealing = asyncio.ensure_future(store.seal())
            try:
                assert await asyncio.to_thread(begun.wait, 20), "nothing moves"
                yield
            finally:
                go_on.set()
            await sealing


class MemoryEngine(Engine):
    def __init__(self) -> None:
        self._disk = Disk()

    def make(self) -> Store:
        return MemoryStore(SHARD, self._disk)

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        assert isinstance(store, MemoryStore)
        store.failing = True
        yield
        store.failing = False

    @contextlib.asynccontextmanager
    async def moving(self, store: Store) -> AsyncIterator[None]:
        assert isinstance(store, MemoryStore)
        store.gate = asyncio.Event()
        sealing = asyncio.ensure_future(store.seal())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            store.gate.set()
            store.gate = None
        await sealing


def not_full(_domain: str, _account: str) -> bool:
    return False


async def due(
    store: Store,
    before: float = 1e12,
    *,
    lanes: int = 100,
    each: int = 1000,
    full: Callable[[str, str], bool] = not_full,
) -> list[str]:
    """The ids of what is taken into memory."""
    found = await store.rest.due(before, lanes=lanes, each=each, full=full)
    assert all(store.messages[message.envelope.id] is message for message in found)
    return [message.envelope.id for message in found]


async def resting(store: Store, limit: int = 100) -> list[Message]:
    """What is at rest, in order of arrival."""
    found: list[Message] = []
    after, page = await store.rest.page(0, limit)
    while after:
        found += page
        after, page = await store.rest.page(after, limit)
    assert len(found) == store.rest.count
    return found


async def bodies(store: Store) -> dict[str, bytes]:
    """Every live message of a store, in memory and at rest, and its body wherever that is."""
    live = [*store.messages.values(), *await resting(store)]
    found = {}
    for message in live:
        name = message.envelope.id
        assert name not in found, "in memory and at rest"
        found[name] = message.body if isinstance(message.body, bytes) else await store.rest.body(name)
    return found
