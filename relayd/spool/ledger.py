"""What the records of a shard's journal add up to: the messages in memory, and the segment that answers for each.

Pure, and the same for recovery and for the running shard, so that both judge alike. Owned by the event loop. Knows that
there is an index, which messages are in it as well, and nothing of how it is written (`shard` moves them there).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

import msgspec

from relayd.spool.journal import Place
from relayd.spool.records import Accepted, Filed, Held, Message, Record, Settled


class Segment(msgspec.Struct, eq=False):
    """A segment on disk. since: monotonic seconds at which it was begun, or found.

    kept: it goes into the quarantine, not away. moving: its survivors are on their way into the index.
    live: the messages it answers for: what it, or a later one, says of them is not in the index yet. Among them are
    those that are done, and have a row in the index that has to go.
    """

    number: int
    octets: int = 0
    since: float = 0.0
    live: dict[str, None] = msgspec.field(default_factory=dict)
    kept: bool = False
    moving: bool = False


class Ledger:
    """The messages in memory and their segments.

    Invariants: a message with changes that the index lacks has one home, the oldest segment since which it lacks them;
    every segment from the oldest home on is on disk. Segments go strictly oldest first: a later one may hold the
    outcomes of an earlier one's messages, and without it they would rise again. All operations are O(records).
    """

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.segments: deque[Segment] = deque()
        self.indexed: set[str] = set()
        """Of `messages`, those that have a row in the index as well."""
        self.gone: set[str] = set()
        """Messages that are done, and whose row in the index is still there."""
        self.replaying = True
        self.strays: dict[str, tuple[list[Settled | Held], Segment]] = {}
        """While a journal is replayed: what it says of messages that are not in it, so they must be in the index."""
        self._home: dict[str, Segment] = {}
        self._places: dict[str, Place] = {}

    def grow(self, number: int, octets: int, now: float = 0.0) -> Segment:
        """The newest segment, begun (`now`) if it is new, at its present size."""
        if not self.segments or self.segments[-1].number != number:
            self.segments.append(Segment(number, since=now))
        segment = self.segments[-1]
        segment.octets = octets
        return segment

    def __contains__(self, name: object) -> bool:
        """Whether it knows better than the index what became of the message."""
        return name in self.messages or name in self.gone

    def apply(self, record: Record, segment: Segment, place: Place | None) -> None:
        """Take a durable record of `segment`; `place` is where its body lies, if it has one."""
        if isinstance(record, Accepted):
            self._accept(record, segment, place)
            return
        self._change(record, segment)
        if isinstance(record, Held):
            return
        # The notification counts even where the message it tells of is long gone.
        if record.notification is not None:
            self._accept(record.notification, segment, place)

    def place(self, name: str) -> Place | None:
        """Where the journal has the body; None when it is in the index, or in a file of its own."""
        return self._places.get(name)

    # --- segments -----------------------------------------------------------------------------------------------

    def removable(self) -> list[Segment]:
        """The segments, oldest first, that nothing needs; never the newest: its number must not be used again."""
        segments = []
        for segment in self.segments:
            if segment.live or segment.moving or segment is self.segments[-1]:
                break
            segments.append(segment)
        return segments

    def remove(self, segment: Segment) -> None:
        """The oldest segment is gone from the journal."""
        assert self.segments.popleft() is segment, "segments go oldest first"

    # --- the index ----------------------------------------------------------------------------------------------

    def move(self, names: Iterable[str]) -> None:
        """The state of these as of now is being written to the index: later changes find a later home."""
        for name in names:
            self._leave(name)
            if name in self.messages:
                self.indexed.add(name)

    def unmoved(self, names: Iterable[str], segment: Segment) -> None:
        """That failed: the segment answers for them again."""
        for name in names:
            self._leave(name)
            if name in self.messages or name in self.gone:
                self._enter(name, segment)

    def moved(self, names: Iterable[str]) -> None:
        """It is durable: the index has their bodies, and those that were done before are in it no more."""
        for name in names:
            if name in self.messages:
                self._places.pop(name, None)
            elif name not in self._home:
                self.gone.discard(name)

    def reindex(self, present: Container[str]) -> None:
        """The index is another, and has only these of `indexed`: the others have to be written to it again."""
        for name in [name for name in self.indexed if name not in present]:
            self.indexed.discard(name)
            if name not in self._home:
                self._enter(name, self.segments[-1])

    def rests(self, name: str) -> bool:
        """Whether the index has the message as it is."""
        return name in self.indexed and name not in self._home

    def evict(self, name: str) -> None:
        """Forget a message that rests."""
        assert self.rests(name), "the index lacks changes"
        del self.messages[name]
        self.indexed.discard(name)

    def adopt(self, message: Message) -> bool:
        """Take a message from the index into memory; False when it is there already, or done."""
        name = message.envelope.id
        if name in self:
            return False
        self.messages[name] = message
        self.indexed.add(name)
        return True

    def reconcile(self, message: Message) -> None:
        """After a replay: a message of the index that the journal knows too, by its outcomes or by moving half way."""
        name = message.envelope.id
        if name in self.messages:
            self.indexed.add(name)
            return
        stray = self.strays.pop(name, None)
        if stray is None or not self.adopt(message):
            return
        records, segment = stray
        for record in records:
            self._change(record, segment)

    # --- records ------------------------------------------------------------------------------------------------

    def _accept(self, accepted: Accepted, segment: Segment, place: Place | None) -> None:
        name = accepted.envelope.id
        known = self.messages.get(name)
        if known is not None:
            # Committed again after a failure that was none: it may have outcomes by now.
            if known.envelope == accepted.envelope:
                known.apply(accepted.results)
            return
        if name in self.gone:
            return
        message = Message.of(accepted)
        if accepted.results and message.done:
            return
        self.messages[name] = message
        if place is not None and not isinstance(accepted.body, Filed):
            self._places[name] = place
        self._enter(name, segment)

    def _change(self, record: Settled | Held, segment: Segment) -> None:
        name = record.message
        message = self.messages.get(name)
        if message is not None:
            self._apply(name, message, record, segment)
        elif self.replaying and name not in self.gone:
            self.strays.setdefault(name, ([], segment))[0].append(record)

    def _apply(self, name: str, message: Message, record: Settled | Held, segment: Segment) -> None:
        if isinstance(record, Held):
            message.held = record.held
        else:
            message.apply(record.results)
        if not message.done:
            if name not in self._home:
                self._enter(name, segment)
            return
        del self.messages[name]
        self._places.pop(name, None)
        if name not in self.indexed:
            self._leave(name)
            return
        self.indexed.discard(name)
        self.gone.add(name)
        if name not in self._home:
            self._enter(name, segment)

    def _enter(self, name: str, segment: Segment) -> None:
        self._home[name] = segment
        segment.live[name] = None

    def _leave(self, name: str) -> None:
        home = self._home.pop(name, None)
        if home is not None:
            del home.live[name]
