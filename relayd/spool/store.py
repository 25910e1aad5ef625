"""The protocol between the queue and an engine that keeps it: batches in, batches out, one shard, one owner.

Nothing above it may assume a local file: the embedded engine is `shard.JournalStore`, the tests' fake keeps the same
contract, and an engine for several machines fits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from relayd.spool.bodies import Bodies
from relayd.spool.records import Message, Record


class StoreError(Exception):
    """The store could not make a batch durable; the batch may or may not survive a restart."""


class StoreLockedError(StoreError):
    """Another process owns this shard."""


class FormatError(StoreError):
    """The files were written by a newer relayd; nothing was changed."""


class Recovered(msgspec.Struct):
    """What is in a store's memory when it was opened: messages, oldest first; and ranges that could not be read."""

    messages: list[Message]
    quarantined: int = 0
    torn: int = 0


Full = Callable[[str, str], bool]
"""Of a domain and an account: whether enough of theirs is in memory already."""


class Rest(Protocol):
    """The messages of a store that rest on disk alone. Every method may raise StoreError."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def held(self) -> int:
        """How many of them are held; these are never due."""

    @property
    def oldest(self) -> float | None:
        """Wall time at which the oldest was accepted, or about that, as of the last `look_back`."""

    async def due(self, before: float, *, lanes: int, each: int, full: Full) -> list[Message]:
        """Take into memory messages that have a recipient due at `before` (wall seconds).

        Of at most `lanes` pairs of domain and account that are not `full`, the one due first before the others, at most
        `each`, oldest due first. `full` may be called on another thread. O(returned), whatever rests behind them.
        """

    async def of_domains(self, domains: Sequence[str], limit: int) -> list[Message]:
        """Take into memory at most `limit` messages with a recipient in these, due or not."""

    async def take(self, name: str) -> Message | None:
        """Take one into memory; None when it is not at rest."""

    async def find(self, name: str) -> Message | None:
        """A message as it is, not taken into memory; None when there is none."""

    async def page(self, after: int, limit: int) -> tuple[int, list[Message]]:
        """Messages in order of arrival, not taken into memory, and what to pass as `after` next, 0 at the end."""

    async def look_back(self) -> None:
        """See how old the oldest is, for `oldest`."""

    async def body(self, name: str) -> bytes:
        """The body of any live message whose `Message.body` is None."""


class Store(Protocol):
    """One shard of the queue, owned by one process.

    Invariants: a batch whose commit returned is found again by `open`, whole or not at all, and in order. A commit
    that raised StoreError may be found or not (I3); it is never retried on the same descriptor (I5), and a later
    commit of the same records is harmless: an Accepted or a final Result that repeats changes nothing.
    A live message is in memory or at rest. Some time after its last change `idle` is asked, once, whether nobody holds
    it; then it goes to rest. So what is in memory is bounded by time and number, whatever the queue holds.
    """

    idle: Callable[[str], bool]
    """Asked of a message that may go to rest: True lets it go, and whoever scheduled it has forgotten it."""

    @property
    def rest(self) -> Rest:
        """The messages at rest."""

    @property
    def shard(self) -> int:
        """The number in its messages' ids."""

    @property
    def epoch(self) -> int:
        """Grows with each owner; a store refuses what a former owner sends."""

    @property
    def messages(self) -> Mapping[str, Message]:
        """Messages in memory by id, as far as they are durable: brought up to date before a commit's future ends."""

    @property
    def bodies(self) -> Bodies:
        """Where large bodies are; written before the record that names them, removed when their message is done."""

    @property
    def load(self) -> int:
        """Batches handed over and not yet durable; 0 when idle."""

    @property
    def behind(self) -> float:
        """Seconds for which the oldest of these has waited; 0.0 when idle."""

    async def open(self) -> Recovered:
        """Become the owner. StoreLockedError after a bounded wait, FormatError, or OSError."""

    def commit(self, batch: Sequence[Record]) -> asyncio.Future[None]:
        """Hand over at once; the future ends when the batch is durable, or with StoreError. Joins other batches.

        An empty batch is a probe: it writes and syncs. A record that cannot be encoded raises here, for this batch
        alone. The future belongs to the store: whoever may be cancelled does not await it directly.
        """

    async def seal(self) -> None:
        """Let everything go to rest that may, without waiting for its time. StoreError."""

    async def close(self) -> None:
        """Finish what was handed over, release the shard."""
