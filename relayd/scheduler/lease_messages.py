"""What a worker and the machine's broker say to each other about a site: values, and nothing that acts.

Workers report what they could use, give back, and how the site took it; the broker grants, recalls and shares out. What
is granted and what is given back are differences, so that messages that cross each other on their way do no harm; what
is wanted and what is recalled to are totals. `lease` and `broker` make them, a stream carries them in order.
"""

from __future__ import annotations

import msgspec

from relayd.message.site import Site


class Want(msgspec.Struct, frozen=True, tag=True, gc=False):
    """From a worker: it could use so many `connections` in all, and gives back `returned` of those that it holds.

    served: messages that the site took while all that it held was in use, since it last said so.
    """

    site: Site
    connections: int
    returned: int = 0
    served: int = 0


class Crowded(msgspec.Struct, frozen=True, tag=True, gc=False):
    """From a worker: so many of its connections were refused as too many. It gives them back."""

    site: Site
    connections: int


class Broken(msgspec.Struct, frozen=True, tag=True, gc=False):
    """From a worker: so many attempts came to nothing, without a word of the site."""

    site: Site
    attempts: int


class Back(msgspec.Struct, frozen=True, tag=True, gc=False):
    """From a worker: the site is reached again after an outage."""

    site: Site


class Pace(msgspec.Struct, frozen=True, tag=True, gc=False):
    """From a worker: it has mail for a site with a configured pace, and needs a share of that, or its own renewed."""

    site: Site


class Grant(msgspec.Struct, frozen=True, tag=True, gc=False):
    """To a worker: it holds so many `more`, and may keep what it was to give back and still has.

    shared: whether other workers hold some, too.
    """

    site: Site
    more: int
    shared: bool = False


class Recall(msgspec.Struct, frozen=True, tag=True, gc=False):
    """To a worker: it is to hold no more than so many `connections`, as soon as it can."""

    site: Site
    connections: int


class Share(msgspec.Struct, frozen=True, tag=True, gc=False):
    """To a worker: it may start so many messages a second, until then (monotonic, the same in all processes)."""

    site: Site
    per_second: float
    until: float


AT_ONCE = 100
"""Messages that are handed over together at most, as what carries them bounds the size of a frame."""

Request = Want | Crowded | Broken | Back | Pace
"""What workers send."""

Reply = Grant | Recall | Share
"""What the broker sends."""
