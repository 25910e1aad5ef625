"""What the records of a shard add up to: the live messages, and the segment that holds each.

Pure, and the same for recovery and for the running shard, so that both judge alike. Owned by the event loop.
"""

from __future__ import annotations

from collections import deque

import msgspec

from relayd.spool.records import Accepted, Message, Record, Settled


class Segment(msgspec.Struct, eq=False):
    """A segment on disk. live: octets of the record of each live message it holds. kept: never to be unlinked."""

    number: int
    octets: int = 0
    live: dict[str, int] = msgspec.field(default_factory=dict)
    kept: bool = False


class Ledger:
    """The live messages and their segments.

    Invariants: a live message has one home, the latest segment that holds it whole; every segment from the oldest home
    on is on disk. Segments go strictly oldest first: a later one may hold the outcomes of an earlier one's messages,
    and without it they would rise again. All operations are O(records), `survivors` O(those returned).
    """

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.segments: deque[Segment] = deque()
        self.octets = 0
        """What the segments take on disk."""
        self.live_octets = 0
        """What the live messages' records take of that."""
        self._home: dict[str, Segment] = {}

    def grow(self, number: int, octets: int) -> Segment:
        """The newest segment, begun if it is new, at its present size."""
        if not self.segments or self.segments[-1].number != number:
            self.segments.append(Segment(number))
        segment = self.segments[-1]
        self.octets += octets - segment.octets
        segment.octets = octets
        return segment

    def apply(self, record: Record, octets: int, segment: Segment) -> None:
        """Take a durable record of `octets` in `segment`."""
        if isinstance(record, Accepted):
            self._accept(record, octets, segment)
            return
        self._settle(record)
        # The notification counts even where the message it tells of is long gone.
        if record.notification is not None:
            self._accept(record.notification, octets, segment)

    def removable(self) -> list[int]:
        """The segments, oldest first, that nothing needs; never the newest: its number must not be used again."""
        numbers = []
        for segment in self.segments:
            if segment.live or segment.kept or segment is self.segments[-1]:
                break
            numbers.append(segment.number)
        return numbers

    def remove(self, number: int) -> None:
        """The oldest segment is gone from the disk."""
        segment = self.segments.popleft()
        assert segment.number == number, "segments go oldest first"
        self.octets -= segment.octets

    def survivors(self, limit: int) -> list[Accepted]:
        """Live messages of the oldest segment as they stand, to be carried forward: up to `limit` octets, or one."""
        carried: list[Accepted] = []
        if self.segments[0].kept:
            return carried
        for name, octets in self.segments[0].live.items():
            if carried and octets > limit:
                break
            limit -= octets
            message = self.messages[name]
            results = tuple(result for result in message.results if result is not None)
            carried.append(Accepted(message.envelope, message.body, results))
        return carried

    def _accept(self, accepted: Accepted, octets: int, segment: Segment) -> None:
        name = accepted.envelope.id
        known = self.messages.get(name)
        if known is None:
            known = Message.of(accepted)
            if accepted.results and known.done:
                return
            self.messages[name] = known
        elif known.envelope != accepted.envelope or known.body != accepted.body:
            return
        else:
            # Carried forward, or committed again after a failure that was none: it is whole here too.
            known.apply(accepted.results)
            self._leave(name)
        self._home[name] = segment
        segment.live[name] = octets
        self.live_octets += octets
        # A new message brings no results: it is not asked whether it is done.
        if accepted.results and known.done:
            self._end(name)

    def _settle(self, settled: Settled) -> None:
        message = self.messages.get(settled.message)
        if message is None:
            return
        message.apply(settled.results)
        if message.done:
            self._end(settled.message)

    def _end(self, name: str) -> None:
        del self.messages[name]
        self._leave(name)

    def _leave(self, name: str) -> None:
        self.live_octets -= self._home.pop(name).live.pop(name)
