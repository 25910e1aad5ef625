"""What became of an attempt, as a value: outbound returns it, the scheduler and the spool act on it.

A remote refusal is an `Outcome`; exceptions mean a bug or broken I/O.
"""

from __future__ import annotations

import enum

import msgspec

from relayd.smtp.reply import Reply


class Verdict(enum.Enum):
    """What a reply means for the recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class Scope(enum.Enum):
    """How far a reply reaches."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    SESSION = "session"
    SITE = "site"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The end of one attempt for one recipient.

    reply: the peer's, or one composed here (RFC 3463 code) where no peer answered. host: "name[address]:port" of the
    peer, empty where none was reached. uncertain: the final dot was sent and its answer lost, so the peer may have
    the message already (RFC 1047). final: of a session that did not come about, that no other host is asked.
    """

    verdict: Verdict
    scope: Scope
    reply: Reply
    host: str = ""
    uncertain: bool = False
    final: bool = False
