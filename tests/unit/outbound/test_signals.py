"""What outcomes say of a site."""

from __future__ import annotations

import pytest

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.outbound.signals import first, signal
from relayd.resolver.mx import NULL_MX
from relayd.scheduler.feedback import NOTHING, SERVED, SLOWED, UNREACHABLE, Signal
from relayd.smtp import reply
from relayd.smtp.reply import Reply

PEER = "mx.example[192.0.2.1]:25"
TAKEN = Outcome(Verdict.DELIVERED, Scope.RECIPIENT, Reply(250, "2.0.0", "Taken"), PEER)
NO_MAILBOX = Outcome(Verdict.FAILED, Scope.RECIPIENT, Reply(550, "5.1.1", "No such mailbox"), PEER)
SLOWER = Outcome(Verdict.DEFERRED, Scope.RECIPIENT, Reply(450, "4.7.1", "Rate limit exceeded, slow down"), PEER)
REFUSED = Outcome(Verdict.DEFERRED, Scope.SITE, reply.unreachable("mx.example", "refused"))
NO_ADDRESS = Outcome(Verdict.FAILED, Scope.SITE, reply.NO_ADDRESS)
CUT = Outcome(Verdict.DEFERRED, Scope.SESSION, reply.SHUTTING_DOWN)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ((), NOTHING),
        ((CUT,), NOTHING),
        ((NO_ADDRESS,), NOTHING),
        ((NULL_MX,), NOTHING),
        ((REFUSED,), UNREACHABLE),
        ((NO_MAILBOX, REFUSED), SERVED),
        ((CUT, TAKEN), SERVED),
        ((TAKEN, SLOWER, NO_MAILBOX), SLOWED),
    ],
)
def test_what_says_most_counts(outcomes: tuple[Outcome, ...], said: Signal) -> None:
    assert signal(dict(enumerate(outcomes))) is said


@pytest.mark.parametrize(
    ("outcomes", "teller"), [((), None), ((TAKEN, NO_MAILBOX, SLOWER), SLOWER), ((CUT, REFUSED), REFUSED)]
)
def test_a_change_is_told_with_the_reply_that_asked_for_it(
    outcomes: tuple[Outcome, ...], teller: Outcome | None
) -> None:
    said = dict(enumerate(outcomes))
    assert first(said, signal(said)) is teller
