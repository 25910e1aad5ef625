"""Several relays on one machine keep to its limits together: real sockets, minutes in virtual time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from relayd.outbound.brokerage import Brokerage
from tests.fakes.limited_peer import LimitedPeer, SlidingWindow
from tests.fakes.memory_store import MemoryStore
from tests.integration.outbound.rig import Relay

WORKERS = 4


@pytest.fixture
async def brokerage():
    brokerage = Brokerage()
    yield brokerage
    brokerage.close()


@pytest.fixture
async def workers(tmp_path, brokerage):
    """`a, b, c, d = await workers(...)`: relays that share the machine, with arguments as Relay's."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(**kwargs) -> list[Relay]:
            return [
                await stack.enter_async_context(
                    Relay(tmp_path / str(worker), store=MemoryStore(), brokerage=brokerage, worker=worker, **kwargs)
                )
                for worker in range(WORKERS)
            ]

        yield started


class Listener(LimitedPeer):
    """Counts every connection, also those that it turns away, from its first octet to its last."""

    connected = 0
    most_connected = 0

    def opened(self, session) -> None:
        super().opened(session)
        self.connected += 1
        self.most_connected = max(self.most_connected, self.connected)

    def closed(self, session) -> None:
        super().closed(session)
        self.connected -= 1


async def submit(relays: list[Relay], each: int) -> list[str]:
    sent = []
    for number in range(each):
        for worker, relay in enumerate(relays):
            sent.append(f"u{worker}-{number}@peer.example")
            await relay.submit(sent[-1])
    return sent


def delivered(peer: LimitedPeer) -> list[str]:
    return sorted(address for message in peer.received for address in message.addresses)


def all_empty(relays: list[Relay]) -> bool:
    return all(relay.empty for relay in relays)


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_site_with_fewer_connections_than_workers_never_sees_one_too_many(
    clock, workers, brokerage, connections
):
    async with Listener(connections=connections, service=0.1) as peer:
        relays = await workers(routes={"*": [peer]}, connections=connections)
        sent = await submit(relays, 60)
        await clock.until(lambda: all_empty(relays), 600)
        assert delivered(peer) == sorted(sent)
        assert (peer.turned_away, peer.most_connected) == (0, connections)
        # Three at once, or one, for nearly all of the time.
        assert clock.now < 1.3 * len(sent) * 0.1 / connections
        assert peer.connections < len(sent) / 4, "a turn is more than a message"
        await clock.until(lambda: brokerage.size == 0, 60)


async def test_every_worker_gets_its_turn_while_others_have_mail(clock, workers):
    async with Listener(service=0.1) as peer:
        relays = await workers(routes={"*": [peer]}, connections=3)
        await submit(relays[:3], 500)
        await clock.forward(10)
        await asyncio.gather(*(relays[3].submit(f"last-{number}@peer.example") for number in range(30)))
        before = len(peer.received)
        await clock.until(lambda: sum(address.startswith("last") for address in delivered(peer)) == 30, 60, step=0.1)
        assert len(peer.received) - before <= 30 * WORKERS * 1.5
        assert peer.most_connected == 3


async def test_a_limit_that_the_site_speaks_of_is_learned_for_all(clock, workers):
    async with LimitedPeer(connections=3, service=0.1) as peer:
        relays = await workers(routes={"*": [peer]})
        sent = await submit(relays, 300)
        await clock.forward(5)
        turned_away = peer.turned_away
        assert turned_away <= 20
        await clock.until(lambda: all_empty(relays), 600)
        assert delivered(peer) == sorted(sent)
        assert peer.turned_away - turned_away <= 3, "one more is tried after a minute"


async def test_a_window_is_raised_by_what_all_workers_meet(clock, workers):
    async with Listener(service=0.5) as peer:
        relays = await workers(routes={"*": [peer]}, connections=16)
        sent = await submit(relays, 250)
        await clock.until(lambda: all_empty(relays), 600)
        assert delivered(peer) == sorted(sent)
        assert peer.most_connected == 16
        assert clock.now < 60


async def test_idle_connections_of_one_worker_make_room_for_another(clock, workers):
    async with Listener() as peer:
        relays = await workers(routes={"*": [peer]}, connections=1)
        for number in range(8):
            await relays[number % 2].submit(f"u{number}@peer.example")
            await clock.until(lambda number=number: len(peer.received) == number + 1, 2.1, step=0.01)
        assert peer.most_connected == 1


async def test_a_configured_pace_is_the_machines(clock, workers):
    async with LimitedPeer(law=SlidingWindow(10 + WORKERS + 1)) as peer:
        relays = await workers(routes={"*": [peer]}, pace=10)
        sent = await submit(relays, 50)
        await clock.until(lambda: all_empty(relays), 120)
        assert delivered(peer) == sorted(sent)
        assert 20 <= clock.now < 26
        assert peer.refused == 0


async def test_a_worker_that_drains_gives_its_connections_to_the_others(clock, workers):
    async with Listener(service=0.1) as peer:
        relays = await workers(routes={"*": [peer]}, connections=3)
        await submit(relays[:1], 1000)
        await clock.forward(5)
        await relays[0].dispatcher.drain(1)
        assert len(relays[0].scheduler.sites) == 1, "it holds nothing, though it has mail"
        before = len(peer.received)
        await submit(relays[1:2], 100)
        await clock.until(lambda: relays[1].empty, 5)
        assert len(peer.received) - before == 100
        assert peer.most_connected == 3


async def test_an_outage_ends_for_every_worker(clock, workers, brokerage):
    async with LimitedPeer() as peer:
        pass
    relays = await workers(routes={"*": [peer]})
    sent = await submit(relays, 30)
    await clock.forward(30)
    async with peer:
        await clock.until(lambda: all_empty(relays), 3600)
        assert delivered(peer) == sorted(sent)
        await clock.until(lambda: brokerage.size == 0, 7300)
