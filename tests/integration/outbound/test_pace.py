"""How the dispatcher takes what sites say: fewer connections, a slower pace, an outage, and its end."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from relayd.message.site import Way
from tests.fakes.smtp_peer import SmtpPeer

CROWDED = "421 4.7.0 Too many concurrent connections from your address"


def limited(connections: int):
    """Greets so many at once, and tells the others that these are too many."""
    peer: list[SmtpPeer] = []

    def greet(session, line):
        open_ones = [one for one in peer[0].sessions if not one.closed and "QUIT" not in one.verbs()]
        return "220 peer.example" if len(open_ones) <= connections else CROWDED

    return {"GREETING": greet}, peer


async def test_one_connection_too_many_costs_no_attempt(start, relay, eventually, events):
    script, peers = limited(3)
    peers.append(peer := await start(script))
    relay = await relay(routes={"*": [peer]}, retry_schedule=(300,))
    await asyncio.gather(*(relay.submit(f"u{number}@peer.example") for number in range(200)))
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 200
    assert not events("deferred")
    assert events("window")[0]["reply"] == CROWDED


async def test_a_site_without_room_for_one_defers(start, relay, eventually, events):
    peer = await start({"GREETING": CROWDED})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(300,))
    await relay.submit("b@peer.example")
    await eventually(lambda: events("deferred"))
    assert events("deferred")[0]["attempts"] == 1


async def test_a_rate_that_is_refused_slows_the_site_and_nothing_else(start, relay, eventually, events):
    peer = await start({"MAIL": ["250 ok"] * 10 + ["450 4.7.1 Rate limit exceeded, slow down"]})
    other = await start()
    relay = await relay(routes={"quick.example": [other], "*": [peer]}, retry_schedule=(0.2,), connections=1)
    for number in range(13):
        await relay.submit(f"u{number}@peer.example")
        await relay.submit(f"u{number}@quick.example")
    await eventually(lambda: len(other.messages) == 13)
    await eventually(lambda: events("rate"))
    change = events("rate")[0]
    assert change["previous"] is None
    assert 1 < change["limit"] < 10
    assert "slow down" in change["reply"]
    await eventually(lambda: relay.empty)


async def test_a_configured_rate_is_kept_from_the_first_message(start, relay, eventually):
    times: list[float] = []

    def take(session, line):
        times.append(time.monotonic())
        return "250 ok"

    peer = await start({"MAIL": take})
    relay = await relay(routes={"*": [peer]}, pace=20.0)
    for number in range(10):
        await relay.submit(f"u{number}@peer.example")
    await eventually(lambda: relay.empty)
    assert times[-1] - times[0] >= 9 / 20 - 0.05


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def quick_probes(monkeypatch):
    monkeypatch.setattr("relayd.scheduler.limits.FIRST_PROBE", 0.3)
    monkeypatch.setattr("relayd.scheduler.limits.LONGEST_PROBE", 0.3)


@pytest.mark.usefixtures("quick_probes")
async def test_mail_for_a_dead_site_is_put_off_untried_and_woken_when_it_is_back(start, relay, eventually, events):
    port = closed_port()
    relay = await relay(routes={"*": [port]}, retry_schedule=(0.3, 3600))
    for number in range(30):
        await relay.submit(f"u{number}@peer.example")
    await eventually(lambda: events("health"))
    await eventually(lambda: len(events("deferred")) >= 29)
    untried = [line for line in events("deferred") if "Not tried now" in line["reply"]]
    assert untried
    assert all("refused" in line["reply"] for line in untried), "what was heard last is told"
    # What was put off a second time is due in an hour: only its being woken delivers it now.
    await eventually(lambda: sum(line["attempts"] == 2 for line in events("deferred")) >= 20)
    peer = await start(port=port)
    await eventually(lambda: len(peer.messages) == 30)
    assert len(set(peer.recipients)) == 30
    assert events("health")[-1]["limit"] == 1
    await eventually(lambda: relay.empty)


@pytest.mark.usefixtures("quick_probes")
async def test_mail_at_rest_is_woken_too(start, relay, eventually, events, monkeypatch):
    monkeypatch.setattr("relayd.outbound.feed.INTERVAL", 0.01)
    port = closed_port()
    relay = await relay(routes={"*": [port]}, retry_schedule=(0.3, 3600))
    for number in range(30):
        await relay.submit(f"u{number}@peer.example")
    await eventually(lambda: sum(line["attempts"] == 2 for line in events("deferred")) >= 25)
    await relay.store.seal()
    assert relay.queue.resting >= 20
    peer = await start(port=port)
    await relay.submit("new@peer.example")
    await eventually(lambda: len(peer.messages) == 31)


async def test_what_was_put_off_expires_only_by_an_attempt_after_its_time(start, relay, eventually, events):
    port = closed_port()
    peer = await start()
    relay = await relay(
        routes={"sender.example": [peer], "*": [port]}, retry_schedule=(0.1,), max_age=1.0
    )
    for number in range(10):
        await relay.submit(f"u{number}@peer.example")
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 10
    assert all(b"Action: failed" in message.body for message in peer.messages)
    assert len(events("expired")) == 10


async def test_a_clock_that_jumps_ahead_expires_nothing_that_was_not_tried_since(relay, eventually, events, monkeypatch):
    port = closed_port()
    relay = await relay(routes={"*": [port]}, retry_schedule=(0.05,))
    for number in range(10):
        await relay.submit(f"u{number}@peer.example")
    await eventually(lambda: events("health"))
    state = relay.scheduler.sites.get(await site_of(relay, "peer.example"))
    # No probe from now on: what comes due is put off untried.
    state.outage.probe = float("inf")
    seen = len(events("deferred"))
    monkeypatch.setattr("relayd.clock.wall", lambda: time.time() + 6 * 86400)
    await eventually(lambda: len(events("deferred")) >= seen + 5)
    assert not events("expired")


async def site_of(relay, domain: str):
    return relay.dispatcher._router.known(Way(domain, 0))


@pytest.mark.parametrize("account", ["user:otp", "user:test"])
async def test_interactive_mail_finds_a_slot_where_a_slow_site_is_full(start, relay, eventually, account):
    gate = asyncio.Event()

    async def slow(session, line):
        if "bulk" in line:
            await gate.wait()
        return "250 ok"

    peer = await start({"RCPT": slow})
    relay = await relay(routes={"*": [peer]}, connections=5, interactive_accounts=("user:otp",), interactive_share=0.2)
    await relay.submit("first@peer.example", account="user:otp")
    await eventually(lambda: len(peer.messages) == 1)
    for number in range(20):
        await relay.submit(f"bulk{number}@peer.example")
    await eventually(lambda: sum("bulk" in line for one in peer.sessions for line in one.lines) == 4)
    await relay.submit("second@peer.example", account=account)
    if account == "user:otp":
        await eventually(lambda: len(peer.messages) == 2)
    assert "RCPT TO:<bulk0@peer.example>" not in peer.recipients
    gate.set()
    await eventually(lambda: relay.empty)
