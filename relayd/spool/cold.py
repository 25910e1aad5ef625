"""The messages of a shard that rest on disk alone, seen from the event loop.

Owns how many these are, and what agrees between the index and the ledger, which has what is in memory. `mover` brings
messages here, `queue` takes them back as they come due. Made by `shard`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from relayd import log, metrics
from relayd.spool import journal
from relayd.spool.index import Found, Index, IndexDamagedError
from relayd.spool.index_thread import IndexThread
from relayd.spool.journal import RecordError
from relayd.spool.ledger import Ledger
from relayd.spool.records import Message
from relayd.spool.store import Full, StoreError

T = TypeVar("T")


class Cold:
    """The messages in a shard's index.

    Invariants: `count` is exact whenever the event loop runs, but for a moment after a renewal; a message taken into
    memory is there once; one call at a time, and what follows it on the loop before its next await comes before the
    next call. Costs: due, of_domains and page O(returned), find and body O(log n), whatever is stored.
    """

    def __init__(self, directory: Path, shard: int) -> None:
        self.count = 0
        """Messages that are in the index alone."""
        self.held = 0
        """Of these, those that are held."""
        self.oldest: float | None = None
        """As `look_back` saw it."""
        self.ledger = Ledger()
        """As it was recovered; `adopt` sets it."""
        self.segments = directory / "journal"
        self._shard = shard
        self._thread = IndexThread(directory, shard)
        self._turn = asyncio.Lock()
        self._unreadable: set[str] = set()
        """Messages of the index whose heads make no sense here. They stay there, and keep nobody else."""

    # --- opening and closing --------------------------------------------------------------------------------------

    async def open(self) -> int:
        """Open the index, made anew from what can be read where it is damaged; the newest segment it has taken."""
        return await self.call(_taken)

    async def renew(self) -> int:
        """Make the index anew from what can be read; the newest segment it has taken, 0 as a rule."""
        await self._thread.renew()
        return await self.call(_taken)

    def known(self, names: Iterable[str]) -> Iterable[str]:
        """Of these, the messages in the index. Blocking; for recovery, while nothing else uses the index."""
        return self._thread.index().get_many(names).keys()

    def __contains__(self, name: object) -> bool:
        """Whether a message lives, in memory or at rest. Blocking; for the start, as `known`. OSError."""
        if name in self.ledger:
            return name in self.ledger.messages
        try:
            return isinstance(name, str) and name in self.known([name])
        except IndexDamagedError as error:
            raise OSError(errno.EIO, str(error)) from error

    async def adopt(self, ledger: Ledger) -> None:
        """Take over a ledger fresh from recovery: what the journal says of messages in the index is applied to them.

        IndexDamagedError: then nothing was taken over; a ledger of another recovery is to follow `renew`.
        """
        found = await self._thread.run(lambda index: index.get_many(ledger.strays))
        self.ledger = ledger
        for message in filter(None, map(self._message, found.values())):
            ledger.reconcile(message)
        ledger.strays.clear()
        ledger.replaying = False
        self._thread.opened_anew = True
        await self._agree()

    def abandon(self) -> None:
        """Opening failed: let the thread end."""
        self._thread.abandon()

    async def close(self) -> None:
        """Close the index behind what is under way."""
        await self._thread.close()

    # --- back into memory -----------------------------------------------------------------------------------------

    async def due(self, before: float, *, lanes: int, each: int, full: Full) -> list[Message]:
        """See `Rest.due`."""

        def find(index: Index) -> list[Found]:
            return index.due(before, lanes=lanes, each=each, skip=self._skips, full=full)

        return self._adopted(await self.call(find))

    async def of_domains(self, domains: Sequence[str], limit: int) -> list[Message]:
        """See `Rest.of_domains`."""
        return self._adopted(await self.call(lambda index: index.of_domains(domains, limit, skip=self._skips)))

    async def take(self, name: str) -> Message | None:
        """See `Rest.take`."""
        found = await self.call(lambda index: index.get(name))
        return next(iter(self._adopted([found])), None) if found else None

    async def find(self, name: str) -> Message | None:
        """See `Rest.find`."""
        found = await self.call(lambda index: index.get(name))
        return None if found is None or name in self.ledger else self._message(found)

    async def page(self, after: int, limit: int) -> tuple[int, list[Message]]:
        """See `Rest.page`."""
        found = await self.call(lambda index: index.page(after, limit))
        messages = (self._message(one) for one in found if one.id not in self.ledger)
        return (found[-1].number if found else 0), list(filter(None, messages))

    async def look_back(self) -> None:
        """See `Rest.look_back`."""
        found = await self.call(lambda index: index.oldest())
        message = None if found is None else self._message(found)
        self.oldest = None if message is None else message.envelope.accepted_at

    async def body(self, name: str) -> bytes:
        """See `Rest.body`; checked."""

        def read(index: Index) -> bytes:
            place = self.ledger.place(name)
            return index.body(name) if place is None else journal.body_at(self.segments, place)

        try:
            return await self.call(read)
        except (KeyError, RecordError) as error:
            raise StoreError(f"{name}: the body cannot be read: {error}") from error

    async def call(self, work: Callable[[Index], T], *, writing: bool = False) -> T:
        """Run `work` on the index's thread. StoreError for trouble with the disk or the index.

        It runs again, on an index made anew, where the index turns out to be damaged. Cancelled, it still ends.
        """
        async with self._turn:
            try:
                try:
                    await self._agree()
                    return await self._thread.run(work, writing=writing)
                except IndexDamagedError as error:
                    log.alert("index damaged", shard=self._shard, error=str(error))
                await self._thread.renew()
                await self._agree()
                return await self._thread.run(work, writing=writing)
            except (OSError, IndexDamagedError) as error:
                raise StoreError(f"{self.segments.parent}: {error}") from error

    # --- parts ----------------------------------------------------------------------------------------------------

    async def _agree(self) -> None:
        """Count anew once an index was opened, and have what it has lost of the messages in memory written again."""
        if not self._thread.opened_anew:
            return
        names = self.ledger.indexed | self.ledger.gone
        count, held, rows = await self._thread.run(lambda index: (index.count, index.held, index.get_many(names)))
        self.ledger.reindex(rows)
        self.count = count - len(rows)
        self.held = held - sum(row.held for row in rows.values())
        self._thread.opened_anew = False

    def _skips(self, name: str) -> bool:
        return name in self.ledger or name in self._unreadable

    def _adopted(self, found: Iterable[Found]) -> list[Message]:
        messages = [message for message in filter(None, map(self._message, found)) if self.ledger.adopt(message)]
        self.count -= len(messages)
        self.held -= sum(message.held for message in messages)
        return messages

    def _message(self, found: Found) -> Message | None:
        try:
            return journal.from_head(found.head, self._shard)
        except RecordError as error:
            if found.id not in self._unreadable:
                self._unreadable.add(found.id)
                metrics.quarantined.inc()
                log.quarantined(self._shard, found.id, 0, len(found.head), str(error))
            return None


def _taken(index: Index) -> int:
    return index.taken
