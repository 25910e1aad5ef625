"""Keys that are remembered for a while and then forgotten, so many of them at most.

Pure: the time is a function. `connector` remembers where TLS was broken, and what the operator was told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Recent:
    """A set whose members leave `seconds` after they were added, or when `size` others came after them.

    Everything is O(1); an expired member costs memory until it is asked for or pushed out.
    """

    def __init__(self, seconds: float, size: int, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._size = size
        self._now = now
        self._until: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: Hashable) -> bool:
        until = self._until.get(key)
        if until is not None and until <= self._now():
            del self._until[key]
            return False
        return until is not None

    def add(self, key: Hashable) -> None:
        """Remember it from now on."""
        self._until[key] = self._now() + self._seconds
        self._until.move_to_end(key)
        if len(self._until) > self._size:
            self._until.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._until.clear()
