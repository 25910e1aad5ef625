"""A next hop that limits gets what it takes and little more, with a backlog always there: minutes in virtual time.

The bounds are the claim of docs/SCHEDULER.md; benchmarks/shaping.py measures the same against a whole relayd.
"""

from __future__ import annotations

import asyncio

import pytest

from relayd import metrics
from tests.fakes.limited_peer import LimitedPeer, SlidingWindow, TokenBucket
from tests.fakes.memory_store import MemoryStore

BACKLOG = 200
FIRST, LATER, GOODPUT = 0.20, 0.05, 0.90
"""Deferred at most in the first minute and in each later one, and taken at least in each later one, as parts."""


def results() -> tuple[float, float]:
    """Recipients delivered and deferred so far."""
    delivered, deferred = (
        metrics.REGISTRY.get_sample_value("relayd_deliveries_total", {"result": result}) or 0.0
        for result in ("delivered", "deferred")
    )
    return delivered, deferred


class Load:
    """Mail for one site, so much of it that some is always ready."""

    def __init__(self, relay, clock) -> None:
        self._relay = relay
        self._clock = clock
        self.sent: list[str] = []

    async def minute(self) -> tuple[float, float]:
        """Offer mail for a minute; messages delivered, and the part of all attempts that was deferred."""
        before = results()
        for _ in range(60):
            for _ in range(BACKLOG - self._relay.scheduler.counts()["ready"]):
                self.sent.append(f"u{len(self.sent)}@peer.example")
                await self._relay.submit(self.sent[-1])
            await self._clock.forward(1)
        delivered, deferred = (after - former for after, former in zip(results(), before, strict=True))
        return delivered, deferred / (delivered + deferred)


async def shaped(relay, clock, peer, limit: float, minutes: int = 3) -> None:
    """Minutes under load keep the bounds; then everything arrives, each message once."""
    load = Load(relay, clock)
    for minute in range(minutes):
        delivered, deferred = await load.minute()
        text = f"minute {minute + 1}: {deferred:.1%} deferred, {delivered / 60 / limit:.1%} of the limit delivered"
        print(text)  # noqa: T201  # the figures
        assert deferred <= (LATER if minute else FIRST)
        assert delivered / 60 >= GOODPUT * limit or not minute
    await clock.until(lambda: relay.empty, 3600)
    assert sorted(address for message in peer.received for address in message.addresses) == sorted(load.sent)


async def test_a_limit_of_connections_is_found_and_kept(clock, relay):
    async with LimitedPeer(connections=5, service=0.1) as peer:
        relay = await relay(routes={"*": [peer]}, store=MemoryStore())
        await shaped(relay, clock, peer, 5 / 0.1)


@pytest.mark.parametrize("law", [SlidingWindow, TokenBucket])
async def test_a_limit_of_messages_a_second_is_found_and_kept(clock, relay, law):
    async with LimitedPeer(law=law(50), service=0.01) as peer:
        relay = await relay(routes={"*": [peer]}, store=MemoryStore())
        await shaped(relay, clock, peer, 50)


async def test_sessions_that_the_next_hop_ends_early_cost_no_attempt(clock, relay):
    async with LimitedPeer(session=7) as peer:
        relay = await relay(routes={"*": [peer]}, store=MemoryStore())
        before = results()
        names = [f"u{number}@peer.example" for number in range(500)]
        await asyncio.gather(*map(relay.submit, names))
        await clock.until(lambda: relay.empty, 60)
        delivered, deferred = (after - former for after, former in zip(results(), before, strict=True))
        assert (delivered, deferred) == (500, 0)
        assert peer.refused > 0


async def test_a_window_that_grows_is_used_though_no_more_mail_comes(clock, relay):
    async with LimitedPeer(service=0.5) as peer:
        relay = await relay(routes={"*": [peer]}, store=MemoryStore(), connections=10)
        await asyncio.gather(*(relay.submit(f"u{number}@peer.example") for number in range(150)))
        await clock.until(lambda: relay.empty, 60)
        assert peer.most == 10
