"""Who is told that mail failed, and what: one notification for all that ended in one settled entry.

Turns durable results into the report `message.dsn` composes; the dispatcher puts it in the same record as those
results, so that neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from relayd.message import dsn
from relayd.message.envelope import Envelope
from relayd.smtp.address import NULL
from relayd.spool.records import Accepted, Message, Result, State


def notification(
    message: Message, failed: Sequence[Result], header: bytes, *, hostname: str, queue_id: str, now: float
) -> Accepted:
    """The notification to the sender of a message, which must not be the null sender (RFC 5321 §6.1).

    header: the message's.
    """
    original = message.envelope
    if original.sender == NULL:
        raise ValueError("nobody to notify")
    text = dsn.compose(
        dsn.Report(
            id=queue_id,
            hostname=hostname,
            sender=original.sender,
            original=original.id,
            arrived=original.accepted_at,
            at=now,
            failures=tuple(_failure(original, result) for result in failed),
            header=header,
        )
    )
    envelope = Envelope(
        id=queue_id,
        sender=NULL,
        recipients=(original.sender,),
        account="",
        accepted_at=now,
        size=len(text),
        smtputf8=not original.sender.isascii(),
        eightbit=not text.isascii(),
        priority=original.priority,  # RFC 6710 §4.6
    )
    return Accepted(envelope, text)


def _failure(original: Envelope, result: Result) -> dsn.Failure:
    return dsn.Failure(
        recipient=original.recipients[result.recipient],
        status=_status(result),
        reply=result.reply,
        host=result.host.partition("[")[0],
        at=result.at,
    )


def _status(result: Result) -> str:
    """RFC 3463: the peer's own code where it is permanent, "delivery time expired" for what was given up."""
    if result.state is State.EXPIRED:
        return "5.4.7"
    return result.reply.enhanced if result.reply.enhanced.startswith("5") else "5.0.0"
