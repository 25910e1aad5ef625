"""The thread of a shard's index, and the index itself while it can be opened: what blocks does so here, in order.

Called by `cold`, which tells it what to do with the index and decides what follows from trouble with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from relayd.spool import renewal
from relayd.spool.index import Index, IndexDamagedError
from relayd.spool.threads import Threads

T = TypeVar("T")


class IndexThread:
    """Jobs run one after the other, each with an open index. OSError and IndexDamagedError are as they are raised.

    Invariant: an index that could not be written is not written to again (I5); what only reads may go on with it. A job
    whose caller is cancelled ends all the same.
    """

    def __init__(self, directory: Path, shard: int) -> None:
        self.opened_anew = False
        """Whether it was opened since this was last set to False: it may have less in it than before."""
        self._directory = directory
        self._shard = shard
        self._index: Index | None = None
        self._thread = Threads(1, f"{directory.name}-index")

    async def run(self, work: Callable[[Index], T], *, writing: bool = False) -> T:
        """Do it on the thread, with the index, opened if it is not."""
        return await self._job(partial(self._work, work, writing))

    async def renew(self) -> None:
        """Make the index anew from what can be read of it."""
        await self._job(self._renew)

    def index(self) -> Index:
        """The index, opened if it is not. Blocking; for the start, while nothing runs."""
        if self._index is None:
            self._index = renewal.open_or_renew(self._directory, self._shard)
            self.opened_anew = True
        return self._index

    async def close(self) -> None:
        """Close the index behind what is under way."""
        await self._job(self._shut)
        self._thread.close()

    def abandon(self) -> None:
        """Wait for the thread to end. Blocking."""
        self._thread.join()
        self._shut()

    async def _job(self, job: Callable[[], T]) -> T:
        return await asyncio.shield(self._thread.call(job))

    def _work(self, work: Callable[[Index], T], writing: bool) -> T:  # noqa: FBT001  # as `run` has it
        if writing and self._index is not None and self._index.broken:
            self._shut()
        return work(self.index())

    def _renew(self) -> None:
        self._shut()
        self._index = renewal.renew(self._directory, self._shard)
        self.opened_anew = True

    def _shut(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            # What it cannot bring into the file stays in its log.
            with contextlib.suppress(OSError, IndexDamagedError):
                index.close()
