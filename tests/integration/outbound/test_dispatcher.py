"""From the commit to the end: entries, retries, expiry, sites, health, drain and bugs, with the real queue on disk."""

import asyncio
import itertools
import sys
import time

import pytest

from relayd import metrics
from relayd.message.outcome import Verdict
from relayd.smtp.reply import Reply
from relayd.spool.records import Result, Settled, State
from tests.fakes.dns_server import DnsServer
from tests.fakes.memory_store import MemoryStore
from tests.fakes.smtp_peer import DROP, SILENCE
from tests.integration.outbound.rig import BODY, QUICK, Relay


def count(name, **labels):
    return metrics.REGISTRY.get_sample_value(f"relayd_{name}_total", labels)


@pytest.fixture
async def dns():
    async with DnsServer() as server:
        yield server


async def test_a_message_goes_out_and_is_gone(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]})
    before = count("deliveries", result="delivered")
    await relay.submit("b@peer.example", "c@peer.example", "d@other.example")
    await eventually(lambda: relay.empty)
    # One message, one domain: a transaction each, over the one connection limit of a shared site.
    assert sorted(len(message.recipients) for message in peer.messages) == [1, 2]
    assert all(message.body == BODY for message in peer.messages)
    assert count("deliveries", result="delivered") - before == 3


async def test_a_thousand_messages_use_few_connections_and_each_arrives_once(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]}, connections=5)
    ids = [f"u{number}@peer.example" for number in range(1000)]
    await asyncio.gather(*(relay.submit(name) for name in ids))
    await eventually(lambda: relay.empty)
    assert sorted(peer.recipients) == sorted(f"RCPT TO:<{name}>" for name in ids)
    assert len(peer.sessions) <= 5 + 1000 // 100


async def test_what_is_deferred_is_tried_again_alone(start, relay, eventually):
    peer = await start({"RCPT": ["250 ok", "450 4.2.1 busy"]})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.1,))
    await relay.submit("a@peer.example", "b@peer.example")
    await eventually(lambda: relay.empty)
    assert [message.recipients for message in peer.messages] == [
        ["RCPT TO:<a@peer.example>"],
        ["RCPT TO:<b@peer.example>"],
    ]


async def test_deferred_mail_is_recorded_with_its_due_time(start, relay, eventually):
    peer = await start({"MAIL": "451 4.7.1 greylisted"})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(100, 200))
    before = count("deliveries", result="deferred")
    name = await relay.submit("a@peer.example")
    await eventually(lambda: count("deliveries", result="deferred") - before == 1)
    result = relay.queue.get(name).results[0]
    assert (result.state, result.attempts) == (State.DEFERRED, 1)
    assert 89 < result.due - result.at < 111
    assert str(result.reply) == "451 4.7.1 greylisted"
    assert relay.scheduler.counts() == {"active": 0, "ready": 0, "deferred": 1, "held": 0}


async def test_deferred_mail_waits_out_a_restart(start, relay, tmp_path, eventually):
    peer = await start({"MAIL": ["451 4.7.1 greylisted"]})
    async with Relay(tmp_path / "spool", routes={"*": [peer]}, retry_schedule=(0.5,)) as first:
        name = await first.submit("a@peer.example")
        await eventually(lambda: first.queue.get(name).results[0])
    assert peer.messages == []
    async with Relay(tmp_path / "spool", routes={"*": [peer]}, retry_schedule=(0.5,)) as second:
        await eventually(lambda: second.empty)
    assert len(peer.messages) == 1


async def test_backoff_follows_the_schedule(start, relay, eventually):
    tried = []

    def refuse(session, line):
        tried.append(time.monotonic())
        return "451 4.7.1 greylisted"

    peer = await start({"MAIL": refuse})
    await (await relay(routes={"*": [peer]}, retry_schedule=(0.1, 0.3))).submit("a@peer.example")
    await eventually(lambda: len(tried) >= 4)
    waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert 0.09 <= waits[0] < 0.25
    assert all(wait >= 0.27 for wait in waits[1:3])


async def test_mail_that_is_too_old_bounces_once_after_one_more_attempt(start, relay, eventually):
    peer = await start({"MAIL": lambda session, line: "250 ok" if "<>" in line else "451 4.7.1 greylisted"})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,), max_age=0.4)
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    assert peer.recipients == ["RCPT TO:<a@sender.example>"]
    dsn = peer.messages[0].body
    assert b"Status: 5.4.7\r\n" in dsn
    assert b"Diagnostic-Code: smtp; 451 4.7.1 greylisted\r\n" in dsn


async def test_old_mail_found_after_a_long_stop_gets_its_attempt_before_it_expires(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]}, max_age=1)
    await relay.submit("b@peer.example", accepted_at=time.time() - 1000)
    await eventually(lambda: relay.empty)
    assert peer.recipients == ["RCPT TO:<b@peer.example>"]


async def test_a_lost_answer_is_tried_again_later(start, relay, eventually):
    peer = await start({"DOT": [DROP]})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,))
    before = count("uncertain_deliveries")
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 1
    assert count("uncertain_deliveries") - before == 1


async def test_a_slow_site_does_not_hold_another(start, relay, eventually):
    slow, quick = await start({"MAIL": SILENCE}), await start()
    relay = await relay(routes={"slow.example": [slow], "*": [quick]}, connections=2)
    for number in range(20):
        await relay.submit(f"u{number}@slow.example")
    await relay.submit("b@quick.example")
    await eventually(lambda: quick.messages, seconds=QUICK.mail / 2)
    assert len(slow.sessions) == 2


async def test_mx_domains_are_resolved_once_and_share_a_site(start, dns, relay, eventually):
    peer = await start()
    for domain in ("one.example", "two.example"):
        dns.add(domain, "MX", "10 mx.example")
    dns.add("mx.example", "A", "127.0.0.1")
    relay = await relay(nameserver=dns.address, port=peer.port, private_next_hops=("127.0.0.0/8",), connections=1)
    for number in range(10):
        await relay.submit(f"u{number}@one.example", f"u{number}@two.example")
    await eventually(lambda: relay.empty)
    assert len(peer.recipients) == 20
    assert len(peer.sessions) == 1
    assert dns.queries[("one.example", "MX")] == 1


async def test_a_domain_that_does_not_exist_bounces_and_dns_trouble_waits(start, dns, relay, eventually):
    peer = await start()
    dns.fail("broken.example", "SERVFAIL")
    relay = await relay(nameserver=dns.address, routes={"sender.example": [peer]})
    gone = await relay.submit("b@gone.example")
    waiting = await relay.submit("b@broken.example")
    await eventually(lambda: peer.messages and relay.queue.get(gone) is None)
    result = await eventually(lambda: relay.queue.get(waiting).results[0])
    assert (result.state, str(result.reply)[:9]) == (State.DEFERRED, "451 4.4.3")
    assert b"Status: 5.1.2" in peer.messages[0].body


async def test_address_literals_are_routed_to_their_address(start, relay, eventually):
    peer = await start()
    relay = await relay(port=peer.port, private_next_hops=("127.0.0.0/8",))
    await relay.submit("b@[127.0.0.1]", "b@[IPv6:::ffff:127.0.0.1]")
    await eventually(lambda: relay.empty)
    assert len(peer.recipients) == 2


async def test_nothing_starts_while_the_spool_cannot_record(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]})
    relay.dispatcher._queue = _Paused(relay.queue)
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.dispatcher._queue.asked > 3)
    assert peer.sessions == []
    relay.dispatcher._queue = relay.queue
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 1


async def test_what_waited_for_a_healthy_spool_goes_on_by_itself(start, relay, eventually):
    """The spool fails during an attempt: its worker takes nothing more, and nothing new comes to wake anyone."""
    goes_on = asyncio.Event()

    async def hold(session, line):
        await goes_on.wait()
        return "250 ok"

    peer = await start({"DOT": hold})
    relay = await relay(routes={"*": [peer]}, connections=1)
    await relay.submit("a@peer.example")
    await relay.submit("b@peer.example")
    await eventually(lambda: peer.sessions and b"hello" in peer.sessions[0].raw)
    relay.dispatcher._queue = _Paused(relay.queue)
    goes_on.set()
    await eventually(lambda: relay.dispatcher._queue.asked > 3)
    assert len(peer.messages) == 1
    relay.dispatcher._queue = relay.queue
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 2


async def test_a_disk_that_stalls_has_only_so_much_sent_that_a_crash_would_send_again(
    start, relay, eventually, monkeypatch
):
    monkeypatch.setattr("relayd.spool.queue.MOST_UNRECORDED", 5)
    peer, store = await start(), MemoryStore()
    relay = await relay(routes={"*": [peer]}, connections=3, store=store)
    relay.dispatcher._running = False
    for number in range(30):
        await relay.submit(f"u{number}@peer.example")
    store.held = True
    relay.dispatcher._queue = watched = _Paused(relay.queue, lambda: relay.queue.pause)
    relay.dispatcher.start()
    await eventually(lambda: relay.scheduler.counts()["active"] == relay.queue.unrecorded >= 5)
    seen = watched.asked
    await eventually(lambda: watched.asked > seen + 10)
    assert len(peer.messages) == relay.queue.unrecorded <= 5 + 3 - 1, "beyond the bound, only what was under way"
    store.release()
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 30
    assert relay.queue.unrecorded == 0


class _Paused:
    """The queue, as a rule after a commit has failed, and how often it was asked whether deliveries may start."""

    def __init__(self, queue, seconds=lambda: 0.02):
        self._queue = queue
        self._seconds = seconds
        self.asked = 0

    def __getattr__(self, name):
        return getattr(self._queue, name)

    @property
    def pause(self):
        self.asked += 1
        return self._seconds()


async def test_draining_lets_attempts_in_flight_end_and_starts_none(start, relay, eventually):
    goes_on = asyncio.Event()

    async def hold(session, line):
        await goes_on.wait()
        return "250 ok"

    peer = await start({"DOT": hold})
    relay = await relay(routes={"*": [peer]}, connections=2)
    names = [await relay.submit(f"u{number}@peer.example") for number in range(10)]
    await eventually(lambda: [b"hello" in session.raw for session in peer.sessions] == [True, True])
    drained = asyncio.create_task(relay.dispatcher.drain(5))
    goes_on.set()
    await drained
    assert len(peer.messages) == 2
    await eventually(lambda: sum(relay.queue.get(name) is not None for name in names) == 8)
    assert [session.verbs()[-1] for session in peer.sessions] == ["QUIT", "QUIT"]
    assert (relay.dispatcher._working, relay.dispatcher._connector._live) == (set(), {})


async def test_workers_without_work_are_kept_for_any_site_but_not_without_bound(start, relay, eventually, monkeypatch):
    monkeypatch.setattr("relayd.outbound.dispatcher.MAX_RESTING", 2)
    one, other = await start(), await start()
    relay = await relay(routes={"one.example": [one], "other.example": [other]})
    for peer, domain in ((one, "one.example"), (other, "other.example")):
        for number in range(10):
            await relay.submit(f"u{number}@{domain}")
        await eventually(lambda peer=peer: len(peer.messages) == 10 and relay.empty)
        await eventually(lambda: len(relay.dispatcher._working) <= 2)
        workers = set(relay.dispatcher._working)
    await relay.submit("last@one.example")
    await eventually(lambda: len(one.messages) == 11)
    assert relay.dispatcher._working == workers != set()
    await relay.dispatcher.drain(1)
    assert relay.dispatcher._working == set()


async def test_a_worker_at_rest_keeps_no_body(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]})
    body = b"Subject: none of its kind\r\n\r\nhello\r\n" * 2
    before = sys.getrefcount(body)
    await relay.submit("b@peer.example", body=body)
    await eventually(lambda: relay.dispatcher._resting and relay.empty)
    assert sys.getrefcount(body) == before


async def test_a_drain_that_runs_out_cuts_and_counts_the_open_dot(start, relay, eventually):
    peer = await start({"DOT": SILENCE})
    stuck = await start({"MAIL": SILENCE})
    relay = await relay(routes={"dot.example": [peer], "*": [stuck]})
    before = count("uncertain_deliveries")
    uncertain, cut = await relay.submit("b@dot.example"), await relay.submit("b@mail.example")
    await eventually(lambda: b"hello" in b"".join(session.raw for session in peer.sessions))
    await eventually(lambda: "MAIL" in "".join(verb for session in stuck.sessions for verb in session.verbs()))
    await relay.dispatcher.drain(0)
    assert count("uncertain_deliveries") - before == 1
    result = await eventually(lambda: relay.queue.get(uncertain).results[0])
    assert result.state is State.DEFERRED
    # What the shutdown cut off was no attempt.
    assert relay.queue.get(cut).results == [None]
    assert relay.dispatcher._connector._live == {}


async def test_a_bug_in_one_message_leaves_the_others_alone(start, relay, eventually):
    peer = await start()
    relay = await relay(routes={"*": [peer]})
    before = count("bugs")
    poison = await relay.submit("b@peer.example", body=b"no end of line")
    fine = await relay.submit("c@peer.example")
    await eventually(lambda: relay.queue.get(fine) is None)
    result = await eventually(lambda: relay.queue.get(poison).results[0])
    assert (result.state, str(result.reply)[:9]) == (State.DEFERRED, "451 4.3.0")
    assert peer.recipients == ["RCPT TO:<c@peer.example>"]
    assert count("bugs") - before == 1


async def test_a_bug_in_reading_a_body_defers(relay, eventually, monkeypatch):
    relay = await relay(routes={"*": [9]}, retry_schedule=(3600,))

    async def broken(_message):
        raise RuntimeError("as if by a bug")

    monkeypatch.setattr(relay.queue, "body", broken)
    before = count("bugs")
    await relay.submit_large("b@peer.example", body=BODY * 10_000)
    await eventually(lambda: relay.scheduler.counts()["deferred"] == 1)
    assert count("bugs") - before == 1


async def test_a_bug_in_settling_puts_the_entry_back(start, relay, eventually, monkeypatch):
    monkeypatch.setattr("relayd.outbound.conclusion.BUG_PAUSE", 0.05)
    peer = await start()
    relay = await relay(routes={"*": [peer]})
    settle, failures = relay.dispatcher._conclusion._settling.settle, iter([True])

    def fail_once(*arguments, **settings):
        if next(failures, False):
            raise RuntimeError("bug")
        settle(*arguments, **settings)

    monkeypatch.setattr(relay.dispatcher._conclusion._settling, "settle", fail_once)
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 2


async def test_a_bug_in_routing_defers(start, relay, eventually, monkeypatch):
    relay = await relay()

    async def broken(domain):
        raise RuntimeError("bug")

    monkeypatch.setattr(relay.resolver, "mail_hosts", broken)
    name = await relay.submit("b@peer.example")
    result = await eventually(lambda: relay.queue.get(name).results[0])
    assert (result.state, str(result.reply)[:9]) == (State.DEFERRED, "451 4.3.0")


async def test_mail_that_ended_elsewhere_during_its_attempt_is_let_go(start, relay, eventually):
    names: list[str] = []

    async def end(session, line):
        result = Result(0, State.FAILED, 1, time.time(), 0.0, Reply(554, "", "removed by the operator"))
        gone = asyncio.Event()
        relay.queue.settle(Settled(names[0], (result,)), gone.set)
        await gone.wait()
        return "450 4.0.0 later"

    peer = await start({"DOT": end})
    relay = await relay(routes={"*": [peer]})
    names.append(await relay.submit("b@peer.example"))
    await eventually(lambda: relay.empty)
    assert len(peer.sessions) == 1


async def test_verdicts_have_a_state_each():
    from relayd.outbound.settling import _STATES

    assert set(_STATES) == set(Verdict)
