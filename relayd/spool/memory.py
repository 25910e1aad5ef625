"""The budget of message bodies held in memory: `limits.memory`, shared by everything in the process.

`Memory` counts octets, whoever they belong to; `Kept` says which of them are bodies of queued messages.
"""

from __future__ import annotations

from relayd.spool.records import Message


class Memory:
    """Octets of bodies. Invariant: `used` is what was taken or forced and not yet given back. O(1)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, octets: int) -> bool:
        """Count a body in, unless that would exceed the limit: then nothing is taken and False returned."""
        if self.used + octets > self.limit:
            return False
        self.used += octets
        return True

    def force(self, octets: int) -> None:
        """Count in what cannot be refused: recovered mail and notifications."""
        self.used += octets

    def give(self, octets: int) -> None:
        """Count a body out."""
        self.used -= octets


class Kept:
    """The bodies of live messages in memory. Invariant: each is counted in the budget, once. O(1)."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._octets: dict[str, int] = {}

    def add(self, name: str, octets: int) -> None:
        """A body that was taken from the budget already."""
        self._octets[name] = octets

    def force(self, message: Message) -> None:
        """A body, if the message has it in memory, that cannot be refused."""
        if isinstance(message.body, bytes):
            self._memory.force(len(message.body))
            self.add(message.envelope.id, len(message.body))

    def drop(self, name: str) -> None:
        """The message has left memory, or the queue."""
        self._memory.give(self._octets.pop(name, 0))
