"""Who is slow, or many, is so at the cost of nobody else: a site that never answers, an account with a mountain of mail."""

from __future__ import annotations

import asyncio
import contextlib

from relayd.message.site import Terms
from tests.fakes.limited_peer import LimitedPeer
from tests.fakes.memory_store import MemoryStore
from tests.fakes.sink import Sink
from tests.fakes.smtp_peer import SILENCE

SITES = 20
HELD = 100
MOUNTAIN = 5000
WINDOW = Terms().connections


async def test_other_sites_are_served_while_one_holds_its_whole_window(clock, start, relay):
    tarpit = await start({"MAIL": SILENCE})
    async with contextlib.AsyncExitStack() as stack:
        sinks = {f"d{number}.example": await stack.enter_async_context(Sink()) for number in range(SITES)}
        routes = {"slow.example": [tarpit], **{domain: [sink] for domain, sink in sinks.items()}}
        relay = await relay(routes=routes, store=MemoryStore())
        for number in range(HELD):
            await relay.submit(f"u{number}@slow.example")
        await clock.until(lambda: tarpit.sessions and relay.scheduler.counts()["active"] == len(tarpit.sessions), 5)
        held = len(tarpit.sessions)
        for number in range(1000):
            await relay.submit(f"u{number}@d{number % SITES}.example")
        # The tarpit gives up nothing yet: in virtual time the others need less than the shortest silence.
        began = clock.now
        await clock.until(lambda: sum(len(sink.received) for sink in sinks.values()) == 1000, 5, step=0.01)
        assert clock.now - began < 1
        assert [len(sink.received) for sink in sinks.values()] == [1000 // SITES] * SITES
        assert not any(session.closed for session in tarpit.sessions)
        assert relay.scheduler.counts() == {"active": held, "ready": HELD - held, "deferred": 0, "held": 0}


async def test_an_account_with_a_mountain_of_mail_delays_another_by_no_more_than_a_window(clock, relay):
    async with LimitedPeer(service=0.05) as peer:
        relay = await relay(routes={"*": [peer]}, store=MemoryStore())
        await asyncio.gather(
            *(relay.submit(f"u{number}@peer.example", account="user:many") for number in range(MOUNTAIN))
        )
        await clock.until(lambda: len(peer.received) > MOUNTAIN // 5, 600, step=0.01)
        passed = []
        for number in range(30):
            before = len(peer.received)
            await relay.submit(f"one{number}@peer.example", account="user:one")
            await clock.until(lambda number=number: f"one{number}@peer.example" in _taken(peer), 600, step=0.01)
            passed.append(_taken(peer).index(f"one{number}@peer.example") - before)
        text = f"passed by {passed} of {MOUNTAIN} messages"
        print(text)  # noqa: T201  # the figure
        assert max(passed) <= WINDOW
        assert len(peer.received) < MOUNTAIN


def _taken(peer: LimitedPeer) -> list[str]:
    return [address for message in peer.received for address in message.addresses]
