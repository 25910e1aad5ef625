"""The protocol between the queue and an engine that keeps it: batches in, batches out, one shard, one owner.

Nothing above it may assume a local file: the embedded engine is `shard.JournalStore`, the tests' fake keeps the same
contract, and an engine for several machines fits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from relayd.spool.records import Message, Record


class StoreError(Exception):
    """The store could not make a batch durable; the batch may or may not survive a restart."""


class StoreLockedError(StoreError):
    """Another process owns this shard."""


class FormatError(StoreError):
    """The files were written by a newer relayd; nothing was changed."""


class Recovered(msgspec.Struct):
    """What a store holds when it is opened: live messages, oldest first, and ranges that could not be read."""

    messages: list[Message]
    quarantined: int = 0
    torn: int = 0


class Store(Protocol):
    """One shard of the queue, owned by one process.

    Invariants: a batch whose commit returned is found again by `open`, whole or not at all, and in order. A commit
    that raised StoreError may be found or not (I3); it is never retried on the same descriptor (I5), and a later
    commit of the same records is harmless: an Accepted or a final Result that repeats changes nothing.
    """

    @property
    def shard(self) -> int:
        """The number in its messages' ids."""

    @property
    def epoch(self) -> int:
        """Grows with each owner; a store refuses what a former owner sends."""

    @property
    def messages(self) -> Mapping[str, Message]:
        """Live messages by id, as far as they are durable: brought up to date just before a commit's future ends."""

    @property
    def load(self) -> int:
        """Batches handed over and not yet durable; 0 when idle."""

    async def open(self) -> Recovered:
        """Become the owner. StoreLockedError after a bounded wait, FormatError, or OSError."""

    def commit(self, batch: Sequence[Record]) -> asyncio.Future[None]:
        """Hand over at once; the future ends when the batch is durable, or with StoreError. Joins other batches.

        An empty batch is a probe: it writes and syncs. A record that cannot be encoded raises here, for this batch
        alone. The future belongs to the store: whoever may be cancelled does not await it directly.
        """

    async def close(self) -> None:
        """Finish what was handed over, release the shard."""
