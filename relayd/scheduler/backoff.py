"""How long to wait before the next attempt: the configured schedule with jitter, the last wait repeating.

Pure: the dice are an argument. The dispatcher asks after each attempt that left recipients deferred.
"""

JITTER = 0.08
"""The configured waits are promised to ±10 %; timers and a busy loop need the rest."""


class Backoff:
    """The waits between attempts. Jitter keeps what failed together (an outage) from coming back together."""

    __slots__ = ("_jitter", "_schedule")

    def __init__(self, schedule: tuple[float, ...], jitter: float = JITTER) -> None:
        """`schedule`: seconds, at least one. `jitter`: the part by which a wait may be shorter or longer, 0 to 1."""
        if not schedule:
            raise ValueError("empty retry schedule")
        self._schedule = schedule
        self._jitter = jitter

    def delay(self, attempts: int, roll: float) -> float:
        """Seconds until the next attempt after `attempts` (1 or more) were made; `roll` is uniform in [0, 1). O(1)."""
        if attempts < 1:
            raise ValueError("no attempt was made yet")
        step = self._schedule[min(attempts, len(self._schedule)) - 1]
        return step * (1 + self._jitter * (2 * roll - 1))
