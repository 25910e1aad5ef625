"""Ready entries whose way leads to no site yet, and which ways have to be asked for.

Owns their order while the DNS is asked. Knows no sites; the scheduler calls it.
"""

from __future__ import annotations

from relayd.message.site import Way
from relayd.scheduler.classes import ClassQueue, Interactive
from relayd.scheduler.entry import Entry


class Unbound:
    """Queues by way; each way is asked for once, until its queue is taken. All is O(1), asked O(returned)."""

    def __init__(self, interactive: Interactive) -> None:
        self._interactive = interactive
        self._queues: dict[Way, ClassQueue] = {}
        self._unasked: dict[Way, None] = {}

    def __len__(self) -> int:
        return len(self._queues) + len(self._unasked)

    def __contains__(self, entry: Entry) -> bool:
        queue = self._queues.get(entry.way)
        return queue is not None and entry in queue

    def push(self, entry: Entry) -> None:
        """An entry waits for its way to be known."""
        queue = self._queues.get(entry.way)
        if queue is None:
            queue = self._queues[entry.way] = ClassQueue(self._interactive.accounts)
            self._unasked[entry.way] = None
        queue.push(entry)

    @property
    def has_more(self) -> bool:
        """Whether there are ways to ask for."""
        return bool(self._unasked)

    def asked(self) -> list[Way]:
        """Ways to ask for, longest waiting first."""
        ways = list(self._unasked)
        self._unasked.clear()
        return ways

    def take(self, way: Way) -> ClassQueue | None:
        """The queue of a way that is known now."""
        self._unasked.pop(way, None)
        return self._queues.pop(way, None)

    def remove(self, entry: Entry) -> None:
        """Take an entry out of the middle."""
        queue = self._queues[entry.way]
        queue.remove(entry)
        if not queue:
            self.take(entry.way)
