"""Outages of minutes and of days, at their real length in virtual time: nothing bounces early, nothing comes as a herd.

The DNS and the next hops are real; the time is not, and the disk only where mail waits for days. Figures are printed (`pytest -s`), bounds asserted.
"""

from __future__ import annotations

import asyncio
import collections

import aiodns
import pytest

from relayd import metrics
from relayd.message.site import Terms
from relayd.outbound.resolving import AT_ONCE, PATIENCE
from tests.fakes.dns_server import DnsServer
from tests.fakes.limited_peer import LimitedPeer
from tests.fakes.memory_store import MemoryStore
from tests.fakes.sink import OK, Sink
from tests.fakes.virtual_clock import START

MESSAGES, DOMAINS = 2000, 200
OUTAGE = 600.0
HOUR, DAY = 3600.0, 86_400.0
SENDERS = 24
LONGEST_PROBE = 15 * 60.0
"""Seconds between two attempts at a next hop that cannot be reached: the last one comes no later after expiry."""
HERD = 0.03
"""The largest part of all messages that may be tried in one second after the return, where time alone spreads them."""

SERVICE = 0.1
"""Seconds the next hop takes for a message: what its connections let through is a bound, too."""

WINDOW = Terms().connections

NAMES = [f"d{number}.example" for number in range(DOMAINS)]


class Peer(LimitedPeer):
    """Refuses for the moment as long as `greylisting`. tried: transactions by the second they began in.

    arrived: when each of `received` did, in seconds of the clock.
    """

    greylisting = False

    def __init__(self) -> None:
        super().__init__(service=SERVICE)
        self.tried: collections.Counter[int] = collections.Counter()
        self.arrived: list[float] = []

    def sender(self, session) -> bytes:
        self.tried[int(asyncio.get_running_loop().time())] += 1
        return b"450 4.7.1 Greylisted\r\n" if self.greylisting else OK

    def message(self, received) -> bytes:
        self.arrived.append(asyncio.get_running_loop().time() - START)
        return super().message(received)

    @property
    def addresses(self) -> list[str]:
        """Of all messages taken."""
        return [address for message in self.received for address in message.addresses]


@pytest.fixture
async def peer():
    async with Peer() as peer:
        yield peer


@pytest.fixture
async def dns(monkeypatch):
    """Answers within no time: it stands still for a moment while c-ares, a thread, has a question.

    Its records are valid for 0 s: c-ares keeps others by its own clock. relayd makes 30 of them.
    """
    ask = aiodns.DNSResolver.query_dns

    def query_dns(self, host, qtype):
        return asyncio.get_running_loop().stand_still(ask(self, host, qtype), 0.05)

    monkeypatch.setattr(aiodns.DNSResolver, "query_dns", query_dns)
    async with DnsServer() as server:
        for name in NAMES:
            server.add(name, "MX", "10 mx.example", ttl=0)
        server.add("mx.example", "A", "127.0.0.1", ttl=0)
        yield server


@pytest.fixture
async def through_dns(clock, dns, peer, relay):
    return await relay(nameserver=dns.address, port=peer.port, private_next_hops=("127.0.0.0/8",), store=MemoryStore())


def results() -> dict[str, float]:
    """Deliveries so far, by result."""
    return {
        result: metrics.REGISTRY.get_sample_value("relayd_deliveries_total", {"result": result}) or 0.0
        for result in ("delivered", "deferred", "failed")
    }


def since(before: dict[str, float]) -> dict[str, float]:
    return {result: count - before[result] for result, count in results().items()}


def recipient(number: int) -> str:
    return f"u{number}@{NAMES[number % DOMAINS]}"


async def arrive(relay, clock, numbers: range, seconds: float) -> None:
    """Messages come evenly, or all at once."""
    for number in numbers:
        await relay.submit(recipient(number))
        if seconds:
            await clock.forward(seconds / len(numbers))


def show(clock, peer, messages: int, ended: float, tried: dict[int, int]) -> float:
    """Print the figures; the share of all messages tried in the worst second."""
    after = {second: count for second, count in peer.tried.items() if second not in tried}
    worst = max(after.values()) / messages
    text = f"{messages} messages: drained {clock.now - ended:.0f} s after the return, at most {worst:.2%} in one second"
    print(text)  # noqa: T201  # the figure
    return worst


async def live_through(relay, clock, peer, begin, end, herd: float, messages: int = MESSAGES) -> None:
    """Half of the messages arrive in one instant before an outage and are put off, the others while it lasts."""
    before = results()
    peer.greylisting = True
    await arrive(relay, clock, range(messages // 2), 0)
    await clock.until(lambda: since(before)["deferred"] == messages // 2, 60)
    peer.greylisting = False
    await clock.forward(60)  # what was known of the DNS has ended
    await begin()
    await arrive(relay, clock, range(messages // 2, messages), OUTAGE)
    await end()
    ended, tried = clock.now, dict(peer.tried)
    assert peer.received == []
    during = since(before)
    assert (during["delivered"], during["failed"]) == (0, 0)
    assert during["deferred"] >= messages
    await clock.until(lambda: relay.empty, 2 * OUTAGE)
    assert since(before)["failed"] == 0
    assert sorted(peer.addresses) == sorted(map(recipient, range(messages)))
    assert show(clock, peer, messages, ended, tried) <= herd
    assert peer.most <= WINDOW


async def test_ten_minutes_without_dns(through_dns, clock, dns, peer):
    async def begin():
        for name in (*NAMES, "mx.example"):
            dns.fail(name, "SERVFAIL")

    async def end():
        dns._codes.clear()

    await live_through(through_dns, clock, peer, begin, end, HERD)


async def test_ten_minutes_in_which_the_dns_is_silent(through_dns, clock, dns, peer):
    """Every question waits for its time-out, and a little in real time for c-ares: fewer messages do."""

    async def begin():
        for name in (*NAMES, "mx.example"):
            dns.drop(name)

    async def end():
        dns._dropped.clear()

    await live_through(through_dns, clock, peer, begin, end, herd=0.1, messages=100)


async def test_ten_minutes_without_the_next_hop(through_dns, clock, dns, peer):
    async def begin():
        await peer.__aexit__()

    async def end():
        await peer.__aenter__()

    # Its return may wake all that waited for it: then the window alone says how fast.
    await live_through(through_dns, clock, peer, begin, end, WINDOW / SERVICE / MESSAGES)


async def test_six_days_without_the_next_hop_end_in_one_notification_for_each_message(clock, peer, relay, monkeypatch):
    # Often enough for mail that is brought in a minute ahead, and spares a million looks.
    monkeypatch.setattr("relayd.outbound.feed.INTERVAL", 50.0)
    monkeypatch.setattr("relayd.spool.keeper.TICK", 50.0)
    async with Sink() as gone:
        pass
    relay = await relay(routes={"sender.example": [peer], "*": [gone]})
    before, accepted = results(), {}
    for number in range(SENDERS):
        sender = f"a{number}@sender.example"
        accepted[sender] = clock.now
        await relay.submit(recipient(number), sender=sender)
        await clock.forward(HOUR)
    assert relay.queue.resting > SENDERS // 2
    await clock.forward(6 * DAY - SENDERS * HOUR)
    assert sorted(peer.addresses) == sorted(accepted)
    told = dict(zip(peer.addresses, peer.arrived, strict=True))
    # Judged by a probe that is made after its time; it is looked at again a while after that.
    assert all(5 * DAY <= told[sender] - accepted[sender] <= 5 * DAY + 2 * LONGEST_PROBE for sender in accepted)
    assert all(b"Status: 5.4.7\r\n" in message.content for message in peer.received)
    assert relay.empty
    assert (since(before)["delivered"], since(before)["failed"]) == (SENDERS, SENDERS)


async def test_mail_that_waited_for_a_site_waits_for_nothing_else_when_it_is_back(through_dns, clock, peer):
    """What was known of its domains has ended meanwhile, and no other mail comes."""
    await peer.__aexit__()
    await arrive(through_dns, clock, range(20), 0)
    await clock.forward(HOUR)
    await peer.__aenter__()
    await clock.until(lambda: peer.received, LONGEST_PROBE + 2)
    await clock.until(lambda: through_dns.empty, 30)


async def test_silent_name_servers_do_not_keep_other_domains_waiting(through_dns, clock, dns, peer):
    """Those that are asked for at once are all silent; room is made after a second, and the other one is next."""
    silent = [f"silent-{number}.example" for number in range(AT_ONCE)]
    for name in silent:
        dns.drop(name)
    for name in silent:
        await through_dns.submit(f"u@{name}")
    begun = clock.now
    await through_dns.submit(recipient(0))
    await clock.until(lambda: peer.received, PATIENCE + SERVICE + 0.5)
    assert clock.now - begun >= PATIENCE, "the others were asked for, and not answered"
