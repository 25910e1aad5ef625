"""Connections that are kept: reused, found dead, found out of step, and let go."""

import asyncio
import time

import pytest

from relayd import clock, metrics
from relayd.message.outcome import Verdict
from relayd.outbound import pool as pooling
from relayd.outbound.attempt import Attempt
from relayd.outbound.pool import Pool
from tests.fakes.smtp_peer import DROP, SILENCE
from tests.integration.outbound.rig import BODY, envelope, site_of

DELIVERED, DEFERRED = Verdict.DELIVERED, Verdict.DEFERRED


async def test_a_connection_is_used_again(start, carrier):
    peer = await start()
    for _ in range(5):
        assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert len(peer.sessions) == 1
    assert len(peer.messages) == 5
    assert metrics.outbound_connections._value.get() >= 1


async def test_an_unfinished_transaction_is_reset_before_the_next(start, carrier):
    peer = await start({"RCPT": ["550 5.1.1 no"]})
    await carrier.carry(peer)
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert peer.sessions[0].verbs() == ["EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA"]


async def test_a_connection_whose_rset_fails_is_not_kept(start, carrier):
    peer = await start({"RCPT": ["550 5.1.1 no"], "RSET": "503 what"})
    await carrier.carry(peer)
    assert len(carrier.pool) == 0
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert len(peer.sessions) == 2


@pytest.mark.parametrize("last_word", [b"", b"421 4.4.2 idle for too long\r\n"])
async def test_a_connection_closed_while_idle_is_a_free_retry(start, carrier, eventually, last_word):
    """The peer goes away between two messages; whether that is seen before or after MAIL, nobody is deferred."""
    peer = await start({"MAIL": ["250 ok", last_word or DROP]})
    await carrier.carry(peer)
    outcome = (await carrier.carry(peer))[0]
    assert outcome.verdict is DELIVERED
    assert len(peer.sessions) == 2


async def test_a_free_retry_leaves_no_trace_in_the_attempt(start, carrier):
    peer = await start({"MAIL": ["250 ok", "421 4.4.2 idle timeout"]})
    await carrier.carry(peer)
    attempt = Attempt(envelope("b@peer.example"), (0,), BODY)
    await carrier.delivery._carry(site_of(peer), attempt)
    assert attempt.outcomes[0].verdict is DELIVERED
    assert (attempt.lost, attempt.trouble) == (0, None)


async def test_a_421_to_mail_on_a_fresh_connection_is_no_free_retry(start, carrier):
    peer = await start({"MAIL": "421 4.3.2 no"})
    assert (await carrier.carry(peer))[0].verdict is DEFERRED
    assert len(peer.sessions) == 1


async def test_a_pooled_connection_lost_later_counts(start, carrier):
    peer, second = await start({"DATA": ["354 go", DROP]}), await start()
    site = site_of(peer, second)
    await carrier.carry(site)
    assert (await carrier.carry(site))[0].verdict is DELIVERED
    assert (len(peer.sessions), len(second.messages)) == (1, 1)


async def test_two_replies_at_once_end_the_connection_and_never_answer_for_another_message(start, carrier):
    """The stray 250 must not mark the next message delivered (reply desynchronisation)."""
    peer = await start({"DOT": [b"250 first\r\n250 stray\r\n", "554 5.7.1 spam"]})
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert (await carrier.carry(peer))[0].verdict is Verdict.FAILED
    assert len(peer.sessions) == 2


@pytest.mark.parametrize("stray", [b"250 unasked\r\n", b"4", b"\r\n", b"421 4.3.2 bye\r\n"])
async def test_bytes_while_idle_end_the_connection(start, carrier, eventually, stray):
    peer = await start({"DOT": [b"250 ok\r\n"]})
    await carrier.carry(peer)
    connection = next(iter(carrier.pool._idle))
    peer.speak(stray)
    await eventually(lambda: not connection.usable)
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert len(peer.sessions) == 2


async def test_a_reply_before_its_command_is_out_of_step(start, carrier):
    first, second = await start({"EHLO": b"250-x\r\n250 PIPELINING\r\n250 ok\r\n"}), await start()
    assert (await carrier.carry(site_of(first, second)))[0].verdict is DELIVERED
    assert len(second.messages) == 1


async def test_idle_connections_say_quit_and_leave_nothing(start, carrier, eventually):
    peer = await start()
    carrier.pool._max_idle = 0.05
    await carrier.carry(peer)
    assert len(carrier.pool) == 1
    await eventually(lambda: peer.sessions[0].closed)
    assert peer.sessions[0].verbs()[-1] == "QUIT"
    assert (len(carrier.pool), carrier.pool._sites, carrier.pool._timer) == (0, {}, None)


async def test_a_connection_retires_after_its_share_of_messages(start, carrier, eventually):
    peer = await start()
    for _ in range(7):
        await carrier.carry(site_of(peer, messages_per_connection=3))
    assert len(peer.sessions) == 3
    await eventually(lambda: peer.sessions[0].closed)
    assert peer.sessions[0].verbs()[-1] == "QUIT"


async def test_a_connection_retires_with_age(start, carrier, monkeypatch):
    monkeypatch.setattr(pooling, "MAX_AGE", 0.0)
    peer = await start()
    await carrier.carry(peer)
    await carrier.carry(peer)
    assert len(peer.sessions) == 2


def takes(messages, refusal):
    """MAIL as answered by a peer that takes so many in a session."""

    def answer(session, line):
        return "250 ok" if session.verbs().count("MAIL") <= messages else refusal

    return answer


SESSION_LIMITS = [
    "421 4.7.0 Too many messages in this session",
    "451 4.3.2 too many mails in this connection, reconnect",
    "421 Max message per connection reached, closing transmission channel",
    "421 4.3.2 Maximum number of messages per session exceeded",
    "452 4.3.1 message per connection limit reached",
    "550 5.5.0 too many transactions in this session",
]


@pytest.mark.parametrize("capabilities", [("PIPELINING",), (), ("PIPELINING", "CHUNKING")])
@pytest.mark.parametrize("refusal", SESSION_LIMITS)
async def test_how_many_messages_a_session_takes_is_learnt(start, carrier, refusal, capabilities):
    peer = await start({"MAIL": takes(2, refusal)}, capabilities=capabilities)
    outcomes = [(await carrier.carry(peer))[0] for _ in range(7)]
    assert [outcome.verdict for outcome in outcomes] == [DELIVERED] * 7
    # The first session was told so; the others end by themselves.
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [3, 2, 2, 1]


async def test_a_limit_is_learnt_within_one_attempt_too(start, carrier):
    peer = await start({"MAIL": takes(2, SESSION_LIMITS[1])})
    outcomes = await carrier.carry(peer, *[f"u{number}@peer.example" for number in range(220)])
    assert {outcome.verdict for outcome in outcomes.values()} == {DELIVERED}
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [3, 2, 1]
    assert len(peer.recipients) == 220


async def test_connections_open_already_hold_to_a_learnt_limit(start, carrier):
    peer = await start({"MAIL": takes(2, SESSION_LIMITS[0])})
    await asyncio.gather(*(carrier.carry(peer) for _ in range(2)))
    for _ in range(8):
        assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [session.verbs().count("MAIL") for session in peer.sessions].count(3) == 1


async def test_a_learnt_limit_is_forgotten_after_an_hour(start, carrier, monkeypatch):
    peer = await start({"MAIL": takes(2, SESSION_LIMITS[0])})
    for _ in range(4):
        await carrier.carry(peer)
    now = time.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: now() + 3601)
    for _ in range(3):
        assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [3, 2, 3, 1]


@pytest.mark.parametrize("refusal", SESSION_LIMITS)
async def test_a_session_that_takes_no_message_at_all_is_believed(start, carrier, refusal):
    """Else a peer could have itself dialled for ever."""
    peer = await start({"MAIL": refusal})
    assert (await carrier.carry(peer))[0].verdict is not DELIVERED
    assert len(peer.sessions) == 1


@pytest.mark.parametrize(
    "refusal",
    ["450 4.7.1 too many messages, slow down", "451 4.3.0 message limit", "550 5.7.1 connection refused"],
)
async def test_other_refusals_are_no_session_limit(start, carrier, refusal):
    peer = await start({"MAIL": takes(2, refusal)})
    outcomes = [(await carrier.carry(peer))[0] for _ in range(3)]
    assert outcomes[2].verdict is not DELIVERED
    assert len(peer.sessions) == 1


async def test_a_peers_own_limit_ends_the_session_before_it_refuses(start, carrier):
    peer = await start(capabilities=("PIPELINING", "LIMITS MAILMAX=2"))
    for _ in range(5):
        await carrier.carry(peer)
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [2, 2, 1]


async def test_renewed_all_connections_are_replaced(start, carrier, eventually):
    peer, loop = await start(), asyncio.get_running_loop()
    site = site_of(peer)
    await carrier.carry(site)
    carrier.pool.renew()
    assert len(carrier.pool) == 0
    await eventually(lambda: peer.sessions[0].closed)
    one = await carrier.connector.open(site.groups[0][0], "127.0.0.1", site, lambda _: True)
    carrier.pool.renew()
    renewed = loop.time()
    carrier.pool.put(site, one)
    assert len(carrier.pool) == 0, "opened before, put back after"
    await eventually(lambda: loop.time() > renewed)  # one of the same millisecond counts as older
    two = await carrier.connector.open(site.groups[0][0], "127.0.0.1", site, lambda _: True)
    carrier.pool.put(site, two)
    assert carrier.pool.take(site) is two
    two.close()


async def test_idle_for_longer_while_its_site_has_a_backlog(start, carrier, eventually, monkeypatch):
    """Sixfold at most; and each connection as its own site has it."""
    monkeypatch.setattr(pooling, "MAX_BACKLOG_IDLE", 0.6)
    busy, quiet = await start(), await start()
    asked = []

    def backlog(site):
        asked.append(site)
        return site == site_of(busy)

    pool = carrier.pool = carrier.delivery._pool = Pool(backlog, max_idle=0.1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for peer in (busy, quiet, busy):
        await carrier.carry(peer)
    await eventually(lambda: quiet.sessions[0].closed)
    assert not busy.sessions[0].closed
    await eventually(lambda: busy.sessions[0].closed)
    assert loop.time() - begun >= 0.5
    assert asked.count(site_of(quiet)) == 1
    assert (len(pool), pool._sites, pool._timer) == (0, {}, None)


async def test_a_backlog_that_ends_lets_go_in_any_order(start, carrier, eventually):
    peer = await start()
    site = site_of(peer)
    there = [True, False]
    pool = Pool(lambda _: there.pop(0) if there else False, max_idle=0.1)
    one, two = [await carrier.connector.open(site.groups[0][0], "127.0.0.1", site, lambda _: True) for _ in range(2)]
    pool.put(site, one)
    pool.put(site, two)
    await eventually(lambda: not two.usable)
    assert one.usable and len(pool) == 1
    await eventually(lambda: not one.usable)
    assert (len(pool), pool._sites, pool._timer) == (0, {}, None)


async def test_last_in_first_out(start, carrier):
    peer = await start()
    site = site_of(peer)
    pool = Pool()
    one, two = [await carrier.connector.open(site.groups[0][0], "127.0.0.1", site, lambda _: True) for _ in range(2)]
    pool.put(site, one)
    pool.put(site, two)
    assert pool.take(site) is two
    pool.put(site, two)
    two.abort("test")
    assert pool.take(site) is one
    assert pool.take(site) is None
    pool.put(site, one)
    pool.close()
    assert len(pool) == 0
    assert not one.usable


async def test_what_others_need_is_closed_the_longest_idle_first(start, carrier):
    peer = await start()
    site = site_of(peer)
    pool = Pool()
    pool.shed(site, 0)
    opened = [await carrier.connector.open(site.groups[0][0], "127.0.0.1", site, lambda _: True) for _ in range(3)]
    for connection in opened:
        pool.put(site, connection)
    pool.shed(site, 3)
    assert len(pool) == 3
    pool.shed(site, 1)
    assert [connection.usable for connection in opened] == [False, False, True]
    pool.shed(site, 0)
    assert (len(pool), pool._sites) == (0, {})
    pool.close()


async def test_a_peer_that_never_answers_quit_is_cut(start, carrier):
    peer = await start({"QUIT": SILENCE})
    await carrier.carry(peer)
    carrier.pool.close()
    await carrier.connector.close(0.05)
    assert carrier.connector._live == {}


async def test_many_messages_at_once_share_what_is_idle(start, carrier):
    peer = await start()
    for _ in range(3):
        outcomes = await asyncio.gather(*(carrier.carry(peer) for _ in range(10)))
        assert [outcome[0].verdict for outcome in outcomes] == [DELIVERED] * 10
    assert len(peer.sessions) == 10
