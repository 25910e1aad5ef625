"""What is written to a spool: two records, and what they add up to."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from relayd.message.envelope import Envelope
from relayd.smtp.reply import Reply


class State(enum.Enum):
    """Where a recipient's delivery stands, durably."""

    DEFERRED = "deferred"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing more happens for the recipient."""
        return self is not State.DEFERRED


# A member's own name: looking one up in its class costs more than most that is done with a recipient's state.
DEFERRED, DELIVERED, FAILED, EXPIRED = State

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Bounds are checked where a record is read back: no NaN and no infinity comes out of a damaged file."""


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One recipient after an attempt: `recipient` indexes Envelope.recipients; `due` is wall seconds when DEFERRED."""

    recipient: Count
    state: State
    attempts: Count
    at: Seconds
    due: Seconds
    reply: Reply
    host: str = ""


class Filed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A large body, in a file of its own: `bodies/` of the message's shard, named by the message's id (`bodies`)."""

    octets: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    crc: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """A message taken: written before its 250. `results` is not empty where it stands for what came before."""

    envelope: Envelope
    body: bytes | Filed
    results: tuple[Result, ...] = ()


class Settled(msgspec.Struct, frozen=True, gc=False):
    """Outcomes of one attempt, with the notification they cause: one record, so that neither exists alone."""

    message: str
    results: tuple[Result, ...]
    notification: Accepted | None = None


class Held(msgspec.Struct, frozen=True, gc=False):
    """The operator holds a message back, or lets it go on."""

    message: str
    held: bool


Record = Accepted | Settled | Held


class Message(msgspec.Struct, gc=False):
    """A live message: what was accepted and the latest result of each recipient (None before its first attempt).

    body: None when the octets are on disk alone; `Store.body` reads them.
    """

    envelope: Envelope
    body: bytes | Filed | None
    results: list[Result | None]
    held: bool = False

    @classmethod
    def of(cls, accepted: Accepted) -> Message:
        """The message an Accepted record begins."""
        results: list[Result | None] = [None] * len(accepted.envelope.recipients)
        message = cls(accepted.envelope, accepted.body, results)
        if accepted.results:
            message.apply(accepted.results)
        return message

    def apply(self, results: tuple[Result, ...]) -> None:
        """Take newer results. O(len(results)). A final result is never replaced; unknown recipients are ignored."""
        for result in results:
            if result.recipient >= len(self.results):
                continue
            current = self.results[result.recipient]
            if current is None or current.state is DEFERRED:
                self.results[result.recipient] = result

    @property
    def done(self) -> bool:
        """Whether every recipient has reached its end. O(recipients)."""
        for result in self.results:  # noqa: SIM110  # a generator costs more, and this runs for every outcome
            if result is None or result.state is DEFERRED:
                return False
        return True
