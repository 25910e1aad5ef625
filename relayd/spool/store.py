"""The protocol between the queue and an engine that keeps it: batches in, batches out, one shard, one owner.

Nothing above it may assume a local file: the embedded engine is `shard.JournalStore`, the tests' fake keeps the same
contract, and an engine for several machines fits behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
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

    shard: int
    epoch: int
    """Grows with each owner; a store refuses what a former owner sends."""

    async def open(self) -> Recovered:
        """Become the owner. StoreLockedError after a bounded wait, FormatError, or OSError."""

    def commit(self, batch: Sequence[Record]) -> Awaitable[None]:
        """Hand over at once; the awaitable ends when the batch is durable, or with StoreError. Joins other batches."""

    async def close(self) -> None:
        """Finish what was handed over, release the shard."""
