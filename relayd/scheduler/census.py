"""How many messages are in each state, kept exact by every move of an entry and read in O(1).

A message may have entries in several states; it counts once, in the first of active, ready, deferred, held that any of
them is in. Knows message ids and states only; the scheduler calls it.
"""

GONE = 0
HELD, DEFERRED, READY, ACTIVE = (1 << bits for bits in (0, 32, 64, 96))
"""States of an entry, each a weight: a message's entries add up to one integer whose highest field names its state."""

_NAMES = ("held", "deferred", "ready", "active")


class Census:
    """Counts of messages by state.

    Invariants: a message has a tally exactly while it has an entry; the counts add up to the number of tallies. A
    message has fewer than 2**32 entries, so that no field runs over into the next. move is O(1), counts O(1).
    """

    __slots__ = ("_counts", "_tallies")

    def __init__(self) -> None:
        self._tallies: dict[str, int] = {}
        self._counts = [0] * (len(_NAMES) + 1)

    def __len__(self) -> int:
        return len(self._tallies)

    def move(self, message: str, old: int, new: int) -> None:
        """One entry of the message goes from state `old` to `new`; GONE is outside."""
        before = self._tallies.get(message, 0)
        after = before - old + new
        # bit_length 1..32 is held, 33..64 deferred and so on; index 0 collects what is not in the queue.
        self._counts[before.bit_length() + 31 >> 5] -= 1
        self._counts[after.bit_length() + 31 >> 5] += 1
        if after:
            self._tallies[message] = after
        else:
            del self._tallies[message]

    def counts(self) -> dict[str, int]:
        """Messages by the name of their state."""
        return dict(zip(_NAMES, self._counts[1:], strict=True))
