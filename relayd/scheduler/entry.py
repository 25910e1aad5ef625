"""The unit of scheduling: one message's recipients in one domain that are tried together.

Made by the dispatcher, moved by the scheduler. Compared and hashed by identity: two attempts for the same recipients
are two entries.
"""

import msgspec

from relayd.message.envelope import Envelope
from relayd.message.site import Way


class Entry(msgspec.Struct, eq=False, gc=False):
    """Recipients of `message` in one domain, with their common fate so far.

    way: where they go. recipients: indices into message.recipients. attempts: made so far. due: monotonic seconds
    before which it must not start. stalled: it waits because its site was not reached, and may start when that is.
    state: one of `census`, written by the scheduler alone.
    """

    message: Envelope
    way: Way
    recipients: tuple[int, ...]
    attempts: int = 0
    due: float = 0.0
    stalled: bool = False
    state: int = 0

    @property
    def domain(self) -> str:
        """Of all its recipients."""
        return self.way.domain
