"""What a reply of a next hop means: the one table, and nothing else decides it.

Pure: a stage and a reply in, a ruling out. `delivery` asks for each reply of a transaction, `connection` for those
before the first one. What the table says about trying again is what keeps mail from being lost or doubled.
"""

from __future__ import annotations

import enum

import msgspec

from relayd.message.outcome import Scope, Verdict
from relayd.smtp.reply import Reply


class Stage(enum.Enum):
    """Where in a session a reply is awaited: what a reader of the log is told, first and last code that goes on."""

    GREETING = "the connection", 220, 220
    EHLO = "EHLO", 250, 259
    STARTTLS = "STARTTLS", 220, 220
    LOGIN = "our credentials", 235, 235
    MAIL = "MAIL", 250, 259
    RCPT = "RCPT", 250, 259
    DATA = "DATA", 354, 354
    DOT = "the message", 250, 259

    def __init__(self, label: str, first: int, last: int) -> None:
        self.label = label
        self.first = first
        self.last = last


# A member's own name: looking one up in its class takes longer than all that a reply is asked.
GREETING, EHLO, STARTTLS, LOGIN, MAIL, RCPT, DATA, DOT = Stage


class Step(enum.Enum):
    """What happens next for the recipients a reply is about."""

    SETTLE = "settle"
    """The attempt is over for them."""
    NEXT_HOST = "next host"
    """The session is over; those unanswered go on to the next host. Without one, the ruling is their outcome."""
    NEW_TRANSACTION = "new transaction"
    """Once more to the same host if the transaction took others before them; else settle."""


class Ruling(msgspec.Struct, frozen=True, array_like=True):
    """What a reply means: the outcome's verdict and scope, and the next step."""

    verdict: Verdict
    scope: Scope
    step: Step
    uncertain: bool = False


_NEXT_HOST = Ruling(Verdict.DEFERRED, Scope.SITE, Step.NEXT_HOST)
_OUR_FAULT = Ruling(Verdict.DEFERRED, Scope.SITE, Step.SETTLE)
_MESSAGE_LATER = Ruling(Verdict.DEFERRED, Scope.MESSAGE, Step.SETTLE)
_MESSAGE_NEVER = Ruling(Verdict.FAILED, Scope.MESSAGE, Step.SETTLE)
_RECIPIENT_LATER = Ruling(Verdict.DEFERRED, Scope.RECIPIENT, Step.SETTLE)
_RECIPIENT_NEVER = Ruling(Verdict.FAILED, Scope.RECIPIENT, Step.SETTLE)
_RECIPIENTS_FULL = Ruling(Verdict.DEFERRED, Scope.RECIPIENT, Step.NEW_TRANSACTION)
_SESSION_OVER = Ruling(Verdict.DEFERRED, Scope.SESSION, Step.NEXT_HOST)
# RFC 1047: the peer may have the message already, so another host in this attempt could make it two.
_UNCERTAIN = Ruling(Verdict.DEFERRED, Scope.SESSION, Step.SETTLE, uncertain=True)

# fmt: off
TABLE: dict[Stage, tuple[Ruling, Ruling, Ruling]] = {
    #          4xx               5xx               connection lost, silence, protocol error, 421
    GREETING: (_NEXT_HOST,       _NEXT_HOST,       _NEXT_HOST),
    EHLO:     (_NEXT_HOST,       _NEXT_HOST,       _NEXT_HOST),
    STARTTLS: (_NEXT_HOST,       _NEXT_HOST,       _NEXT_HOST),
    LOGIN:    (_OUR_FAULT,       _OUR_FAULT,       _NEXT_HOST),
    MAIL:     (_MESSAGE_LATER,   _MESSAGE_NEVER,   _SESSION_OVER),
    RCPT:     (_RECIPIENT_LATER, _RECIPIENT_NEVER, _SESSION_OVER),
    DATA:     (_MESSAGE_LATER,   _MESSAGE_NEVER,   _SESSION_OVER),
    DOT:      (_MESSAGE_LATER,   _MESSAGE_NEVER,   _UNCERTAIN),
}

EXCEPTIONS: dict[tuple[Stage, int], Ruling] = {
    # RFC 5321 §4.5.3.1.10: too many recipients is 452, and 552 from older servers.
    (RCPT, 452): _RECIPIENTS_FULL,
    (RCPT, 552): _RECIPIENTS_FULL,
    # RFC 4954 §6: the peer wants credentials that this relay did not show.
    (MAIL, 530): _OUR_FAULT,
    (MAIL, 535): _OUR_FAULT,
    (MAIL, 538): _OUR_FAULT,
}
# fmt: on


def goes_on(stage: Stage, reply: Reply | None) -> bool:
    """Whether the reply is what the stage hopes for; after the dot that means delivered."""
    return reply is not None and stage.first <= reply.code <= stage.last


def ruling(stage: Stage, reply: Reply | None) -> Ruling:
    """What a reply that does not go on means. None: lost, silent, or not SMTP. O(1)."""
    transient, permanent, lost = TABLE[stage]
    # 2xx and 3xx where they are not expected are protocol errors: the peer and we disagree on where we are.
    if reply is None or reply.code == 421 or reply.code < 400:
        return lost
    return EXCEPTIONS.get((stage, reply.code)) or (transient if reply.code < 500 else permanent)
