"""What the outcomes of an attempt say of the site it went to. Pure: outcomes in, a signal for the scheduler out.

What a reply asks for is `patterns`' to know; here is which of many recipients' replies counts. The dispatcher calls it
after each attempt.
"""

from __future__ import annotations

from collections.abc import Mapping

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.outbound.classify import GREETING
from relayd.outbound.patterns import Effect, category, effect
from relayd.scheduler.feedback import BROKEN, CROWDED, NOTHING, SERVED, SLOWED, UNREACHABLE, Signal

_RANKS = {signal: rank for rank, signal in enumerate((NOTHING, BROKEN, UNREACHABLE, CROWDED, SERVED, SLOWED))}


def signal(outcomes: Mapping[int, Outcome]) -> Signal:
    """What it says, by the recipient whose reply says most. O(recipients), and one look where all was delivered."""
    said = NOTHING
    for outcome in outcomes.values():
        if outcome.verdict is Verdict.DELIVERED and said is SERVED:
            continue
        this = _of(outcome)
        if _RANKS[this] > _RANKS[said]:
            said = this
    return said


def first(outcomes: Mapping[int, Outcome], said: Signal) -> Outcome | None:
    """The first that says so. O(recipients)."""
    return next((outcome for outcome in outcomes.values() if _of(outcome) is said), None)


def demand(outcome: Outcome) -> Effect:
    """What a refusal for now asks of the pace of its site."""
    # Where a whole site refuses, it did so before the first message.
    stage = GREETING if outcome.scope is Scope.SITE else None
    return effect(category(stage, outcome.reply), stage, outcome.reply)


def _of(outcome: Outcome) -> Signal:
    if outcome.verdict is Verdict.DELIVERED:
        return SERVED
    site_wide = outcome.scope is Scope.SITE
    if not outcome.host and (not site_wide or outcome.verdict is Verdict.FAILED):
        return NOTHING  # composed here: our own trouble, the message's, or what the DNS says for good
    if outcome.verdict is Verdict.DEFERRED:
        match demand(outcome):
            case Effect.RATE:
                return SLOWED
            case Effect.CONNECTIONS:
                return CROWDED
    if site_wide:
        return UNREACHABLE
    return BROKEN if outcome.scope is Scope.SESSION else SERVED
