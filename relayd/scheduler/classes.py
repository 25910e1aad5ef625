"""Interactive, normal and low mail of one site: who goes first, and that nobody waits for ever.

Owns the order among classes; inside a class `fair_queue` gives accounts their turns. Knows nothing of slots or time:
the scheduler calls it, and keeps a `reserve` of each window for what is interactive. Sources: RFC 6710 §5 (a server may
treat the nineteen priorities as fewer) and Appendix B (MIXER has three: non-urgent, normal, urgent).
"""

from __future__ import annotations

import enum
from collections.abc import Container
from typing import NamedTuple

import msgspec

from relayd.message.envelope import Envelope
from relayd.scheduler.entry import Entry
from relayd.scheduler.fair_queue import FairQueue

YIELDING = 10
"""Of so many entries, taken while several classes wait, the highest class leaves one to another."""

REMEMBERED = 600.0
"""Seconds for which a site keeps its reserve after the last interactive entry was seen there."""


class Interactive(NamedTuple):
    """What is interactive beside mail with a priority above 0, and the share of each window that it is kept."""

    accounts: Container[str] = frozenset()
    share: float = 0.0


class PriorityClass(enum.Enum):
    """How urgent an entry is, highest first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    LOW = "low"


# A member's own name: looking one up in its class costs more than the rest of `class_of`.
INTERACTIVE, NORMAL, LOW = PriorityClass


def class_of(message: Envelope, interactive: Container[str]) -> PriorityClass:
    """The class of a message; `interactive`: accounts all of whose mail is.

    What is below 0 rounds up to one low class and what is above it to one urgent class (RFC 6710 §5).
    """
    if message.priority > 0 or message.account in interactive:
        return INTERACTIVE
    return NORMAL if message.priority == 0 else LOW


def reserve(window: int, share: float) -> int:
    """Slots of a window, of `window` in all, that only interactive entries may use; `share`: 0 (none at all) to 0.9.

    The share rounded down, which is never all of it, but at least one where the window has two.
    """
    return max(int(window * share), 1) if share and window > 1 else 0


class ClassQueue(msgspec.Struct, eq=False, gc=False):
    """Up to three fair queues, the highest first: as `FairQueue`, and what is interactive can be taken alone.

    Invariants: an entry is in the queue of its class, and in there accounts take turns. While a class waits, `pop`
    takes at most 20 entries of the others before the next of its own, 10 where only one other class has mail, and 1
    where none above it has. Queues that absorb one another are made with the same accounts. push, pop, pop_interactive,
    restore and remove are O(1), absorb is O(entries of accounts in both).
    """

    _accounts: Container[str] = ()
    """All of whose mail is interactive; not copied, so that queues share them."""
    # Of many sites, few ever have two entries wait, or one that is not normal: what is for those is made for them.
    _alone: Entry | None = None
    """The only entry, a normal one; as long as there is no queue for it."""
    _normal: FairQueue | None = None
    _others: _Contest | None = None

    def __bool__(self) -> bool:
        if self._normal is None:
            return self._alone is not None
        others = self._others
        return bool(self._normal) if others is None else any(others.ranks)

    def __contains__(self, entry: Entry) -> bool:
        return entry is self._alone if self._normal is None else entry in self._of(entry)

    @property
    def interactive_waits(self) -> bool:
        """Whether `pop_interactive` has something to give."""
        return self._others is not None and bool(self._others.interactive)

    def push(self, entry: Entry) -> None:
        """Add at the end of its account's entries in its class."""
        message = entry.message
        if message.priority or message.account in self._accounts:
            self._of(entry).push(entry)
        elif self._normal is not None:  # `class_of`, without the call: nearly all mail is normal
            self._normal.push(entry)
        elif self._alone is None:
            self._alone = entry
        else:
            self._queue().push(entry)

    def pop(self) -> Entry:
        """Take the next entry; KeyError when empty."""
        if (entry := self._alone) is not None:
            self._alone = None
            return entry
        if self._others is None:
            return self._queue().pop()
        return self._others.next().pop()

    def pop_interactive(self) -> Entry:
        """Take the next interactive entry, outside of the turns that classes take; KeyError when there is none."""
        if self._others is None:
            raise KeyError("no interactive entry")
        return self._others.interactive.pop()

    def restore(self, entry: Entry) -> None:
        """Put one that was popped back in front of its class; the turn it had is used up."""
        self._of(entry).restore(entry)

    def remove(self, entry: Entry) -> None:
        """Take an entry out of the middle. KeyError when it is not here."""
        self._of(entry).remove(entry)

    def absorb(self, other: ClassQueue) -> None:
        """Take all entries of `other`, which is empty afterwards. Whose turn it is here stays."""
        if other._others is not None:
            for mine, theirs in zip(self._contest().ranks, other._others.ranks, strict=True):
                mine.absorb(theirs)
        elif other._normal is not None:
            self._queue().absorb(other._normal)
        elif other:
            self.push(other.pop())

    def _of(self, entry: Entry) -> FairQueue:
        kind = class_of(entry.message, self._accounts)
        if kind is NORMAL:
            return self._queue()
        contest = self._contest()
        return contest.interactive if kind is INTERACTIVE else contest.low

    def _queue(self) -> FairQueue:
        """Of what is normal, made if need be."""
        if self._normal is None:
            self._normal = FairQueue()
            if self._alone is not None:
                self._normal.push(self._alone)
                self._alone = None
        return self._normal

    def _contest(self) -> _Contest:
        if self._others is None:
            self._others = _Contest(self._queue())
        return self._others


class _Contest:
    """Three classes, and whose turn it is. _oldest: their queues, that which had its last turn longest ago first."""

    __slots__ = ("_oldest", "_yield_in", "interactive", "low", "ranks")

    def __init__(self, normal: FairQueue) -> None:
        self.interactive = FairQueue()
        self.low = FairQueue()
        self.ranks = (self.interactive, normal, self.low)
        self._oldest = [*reversed(self.ranks)]
        self._yield_in = YIELDING

    def next(self) -> FairQueue:
        """The queue whose turn it is: the highest that waits, but every tenth time that which had none for longest.

        Not the lowest each tenth time: the middle class would wait for ever between two that are always busy. A turn
        is one only where several classes wait. When none does, the queue is an empty one.
        """
        waiting = [queue for queue in self.ranks if queue]
        if len(waiting) < 2:
            return waiting[0] if waiting else self.low
        self._yield_in -= 1
        if self._yield_in:
            chosen = waiting[0]
        else:
            self._yield_in = YIELDING
            chosen = next(queue for queue in self._oldest if queue)
        self._oldest.remove(chosen)
        self._oldest.append(chosen)
        return chosen
