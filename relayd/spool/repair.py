"""What follows a failed commit: a store's health, the outcomes it still owes a record, and the task that tries again.

Owned by `queue`, one per store. Knows that outcomes must not be lost, not what they mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from relayd import log, metrics
from relayd.spool.records import Settled
from relayd.spool.store import Store

FIRST_DELAY, MOST_DELAY = 0.1, 5.0
"""Seconds between attempts to commit again after a failure: doubled from the first up to the most."""

WAIT_SECONDS = 10.0
"""Longest wait for one commit's end, in repair and at the end; the commit itself goes on."""


class Repair:
    """A store's health, and its outcomes until they are durable.

    Invariants: what `settle` took is either in a commit, or owed and then a task runs that commits it again, on the
    fresh descriptor the store opens (I5). A shard that owes nothing is probed by an empty commit. `changed` is called
    whenever `healthy` changes.
    """

    def __init__(self, store: Store, changed: Callable[[], None]) -> None:
        self.store = store
        self.healthy = True
        self._changed = changed
        self._owed: deque[tuple[Settled, Callable[[], None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._finishing = False

    def settle(self, settled: Settled, durable: Callable[[], None]) -> None:
        """Commit until it succeeds, then call `durable`. A record that cannot be encoded raises, at once."""
        if self.healthy:
            self._commit(settled, durable)
        else:
            self._owed.append((settled, durable))

    def succeeded(self) -> None:
        """A commit ended well."""
        if not self.healthy:
            self.healthy = True
            self._changed()
            log.spool_healthy(self.store.shard)

    def failed(self, error: BaseException) -> None:
        """A commit failed."""
        if self.healthy:
            self.healthy = False
            self._changed()
            log.spool_failed(self.store.shard, str(error))
        if self._task is None and not self._finishing:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def finish(self) -> None:
        """Try once more, behind whatever is in flight; tell of what cannot be recorded."""
        self._finishing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.wait([self._probe()], timeout=WAIT_SECONDS)
        await self._retry()
        if self._owed:
            # As in a crash between the answer and its record (I3), these deliveries may happen again.
            log.alert("outcomes not recorded", shard=self.store.shard, records=len(self._owed))

    def _commit(self, settled: Settled, durable: Callable[[], None]) -> asyncio.Future[None]:
        committed = self.store.commit((settled,))
        committed.add_done_callback(partial(self._committed, settled, durable))
        return committed

    def _committed(self, settled: Settled, durable: Callable[[], None], committed: asyncio.Future[None]) -> None:
        error = committed.exception()
        if error is not None:
            self._owed.append((settled, durable))
            self.failed(error)
        else:
            self.succeeded()
            durable()

    async def _run(self) -> None:
        delay = FIRST_DELAY
        while not self.healthy or self._owed:
            await asyncio.sleep(delay)
            delay = min(2 * delay, MOST_DELAY)
            await self._retry()
        self._task = None

    async def _retry(self) -> None:
        owed, self._owed = self._owed, deque()
        commits = []
        for settled, durable in owed:
            try:
                commits.append(self._commit(settled, durable))
            except Exception:  # noqa: BLE001  # a record that cannot be encoded must not keep the others back
                metrics.bugs.inc()
                log.bug("spool.repair", id=settled.message)
        if not commits and not self.healthy:
            commits.append(self._probe())
        if commits:
            await asyncio.wait(commits, timeout=WAIT_SECONDS)

    def _probe(self) -> asyncio.Future[None]:
        probe = self.store.commit(())
        probe.add_done_callback(self._probed)
        return probe

    def _probed(self, committed: asyncio.Future[None]) -> None:
        error = committed.exception()
        if error is None:
            self.succeeded()
        else:
            self.failed(error)
