"""The unit of scheduling: one message's recipients in one domain that are tried together.

Made by the dispatcher, moved by the scheduler. Compared and hashed by identity: two attempts for the same recipients
are two entries.
"""

import msgspec

from relayd.message.envelope import Envelope


class Entry(msgspec.Struct, eq=False, gc=False):
    """Recipients of `message` in one domain, with their common fate so far.

    domain: the route key. recipients: indices into message.recipients. attempts: made so far. due: monotonic seconds
    before which it must not start. state: one of `census`, written by the scheduler alone.
    """

    message: Envelope
    domain: str
    recipients: tuple[int, ...]
    attempts: int = 0
    due: float = 0.0
    state: int = 0
