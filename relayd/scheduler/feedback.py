"""What attempts say of a site, and what became of that: values between the dispatcher and the scheduler.

The dispatcher makes a `Signal` of what an attempt ended with, hands it over with the slot, and logs the `Change`s.
"""

from __future__ import annotations

import enum

import msgspec

from relayd.message.outcome import Outcome
from relayd.message.site import Way


class Signal(enum.Enum):
    """How a site took an attempt."""

    SERVED = "served"
    """It answered as a mail server does, whatever it said of the message."""
    SLOWED = "slowed"
    """It wants fewer messages a second."""
    CROWDED = "crowded"
    """It wants fewer connections."""
    BROKEN = "broken"
    """A session came about and was lost."""
    UNREACHABLE = "unreachable"
    """No session came about with any of its hosts, or only one that is of no use to us."""
    NOTHING = "nothing"
    """The trouble was ours: nothing is known of the site."""


# A member's own name, as looking one up in its class takes longer.
SERVED, SLOWED, CROWDED, BROKEN, UNREACHABLE, NOTHING = Signal


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """How an attempt to reach a site ended: its outcome, and when by the wall clock."""

    outcome: Outcome
    at: float


class Report(msgspec.Struct, frozen=True, gc=False):
    """What an attempt says of its site.

    trouble, step, way: where it was UNREACHABLE: how, the seconds after which a probe is due at the latest, and whose
    mail waits for it.
    """

    signal: Signal
    trouble: Trouble | None = None
    step: float = float("inf")
    way: Way | None = None


class Aspect(enum.Enum):
    """What of a site changed."""

    WINDOW = "window"
    """Connections at once."""
    RATE = "rate"
    """Messages a second; None is any number."""
    HEALTH = "health"
    """1 while it is tried, 0 while it is dead and probed."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A site's limit is another. ways: where it came back from an outage, those whose mail waits for that."""

    aspect: Aspect
    previous: float | None
    limit: float | None
    ways: tuple[Way, ...] = ()

    @property
    def raised(self) -> bool:
        """Whether the site gets more than before."""
        return self.limit is None or (self.previous is not None and self.limit > self.previous)
