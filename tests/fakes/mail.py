"""Records for tests: messages that can be told apart and checked byte for byte."""

from __future__ import annotations

import hashlib

from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool.records import Accepted, Result, Settled, State


def name(number: int, shard: int = 0) -> str:
    """The queue id of message `number`."""
    return queue_id.compose(shard, number.to_bytes(10, "big"))


def body(number: int, octets: int = 100) -> bytes:
    """A body that follows from its number alone."""
    seed = hashlib.sha256(str(number).encode()).hexdigest().encode()
    return (seed * (octets // len(seed) + 1))[:octets]


def accepted(
    number: int, *, octets: int = 100, recipients: int = 1, shard: int = 0, account: str = "user:alice"
) -> Accepted:
    """Message `number` as it is accepted, at second `number`."""
    envelope = Envelope(
        id=name(number, shard),
        sender=Address("sender@example.org"),
        recipients=tuple(Address(f"r{index}@example.net") for index in range(recipients)),
        account=account,
        accepted_at=float(number),
        size=octets,
    )
    return Accepted(envelope, body(number, octets))


def result(recipient: int = 0, state: State = State.DELIVERED, attempts: int = 1) -> Result:
    """One recipient's result."""
    return Result(recipient, state, attempts, at=10.0, due=20.0, reply=Reply(250, "2.0.0", "ok"), host="mx:25")


def settled(number: int, *results: Result, notification: Accepted | None = None, shard: int = 0) -> Settled:
    """Outcomes of message `number`; delivered to its only recipient unless said otherwise."""
    return Settled(name(number, shard), results or (result(),), notification)
