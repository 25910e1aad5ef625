"""What is remembered for a while and then forgotten, so much of it at most.

Pure: the time is a function. `hosts` remembers what hosts have shown, `connector` where TLS was broken and what the
operator was told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Latest(Generic[K, V]):
    """Values of the `size` keys that were set last. All O(1)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """The value set last."""
        return self._kept.get(key)

    def set(self, key: K, value: V) -> None:
        """The one set longest ago makes room."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def drop(self, key: K) -> None:
        """Also one that is not there."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


class Recent:
    """A set whose members leave `seconds` after they were added, or when `size` others came after them. All O(1)."""

    def __init__(self, seconds: float, size: int, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._now = now
        self._until: Latest[Hashable, float] = Latest(size)

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: Hashable) -> bool:
        until = self._until.get(key)
        if until is not None and until <= self._now():
            self._until.drop(key)
            return False
        return until is not None

    def add(self, key: Hashable) -> None:
        """Remember it from now on."""
        self._until.set(key, self._now() + self._seconds)

    def drop(self, key: Hashable) -> None:
        """Forget it, if it is there."""
        self._until.drop(key)

    def clear(self) -> None:
        """Forget all."""
        self._until.clear()
