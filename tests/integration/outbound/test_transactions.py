"""One message's way over one connection: recipients, pipelining, capabilities, and the bytes of the body."""

import asyncio

import pytest
from msgspec.structs import replace

from relayd.message.outcome import Scope, Verdict
from relayd.scheduler.entry import Entry
from tests.fakes.smtp_peer import CHUNKING, DROP, SILENCE
from tests.integration.outbound.rig import BODY, envelope, site_of

DELIVERED, DEFERRED, FAILED = Verdict.DELIVERED, Verdict.DEFERRED, Verdict.FAILED

WITHOUT_PIPELINING = ("SIZE 1000000", "8BITMIME", "SMTPUTF8")


EACH_WAY = [("PIPELINING",), (), ("PIPELINING", "CHUNKING"), ("CHUNKING",)]


def verdicts(outcomes):
    return [outcomes[recipient].verdict for recipient in sorted(outcomes)]


@pytest.mark.parametrize("capabilities", EACH_WAY)
async def test_each_recipient_has_its_own_answer(start, carrier, capabilities):
    peer = await start({"RCPT": ["250 ok", "450 4.2.1 busy", "550 5.1.1 unknown"]}, capabilities=capabilities)
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example", "c@peer.example")
    assert verdicts(outcomes) == [DELIVERED, DEFERRED, FAILED]
    assert [outcomes[i].scope for i in (1, 2)] == [Scope.RECIPIENT, Scope.RECIPIENT]
    assert peer.recipients == ["RCPT TO:<a@peer.example>"]


async def test_commands_go_in_one_write_where_pipelining_is_offered(start, carrier):
    peer = await start()
    await carrier.carry(peer, "a@peer.example", "b@peer.example")
    assert peer.sessions[0].ahead == 3


async def test_commands_wait_for_their_answers_where_it_is_not(start, carrier):
    peer = await start(capabilities=WITHOUT_PIPELINING)
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example")
    assert verdicts(outcomes) == [DELIVERED, DELIVERED]
    assert peer.sessions[0].ahead == 0
    assert peer.sessions[0].verbs() == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA"]


async def test_without_pipelining_nothing_follows_a_refused_sender(start, carrier):
    peer = await start({"MAIL": "550 5.7.1 no"}, capabilities=())
    await carrier.carry(peer)
    assert peer.sessions[0].verbs() == ["EHLO", "MAIL", "RSET"]


async def test_354_with_nobody_accepted_gets_the_bare_dot(start, carrier):
    peer = await start({"RCPT": "550 5.1.1 no", "DATA": "354 go", "DOT": "554 5.5.1 nobody"})
    outcomes = await carrier.carry(peer)
    assert verdicts(outcomes) == [FAILED]
    assert b"DATA\r\n.\r\nRSET\r\n" in peer.sessions[0].raw


async def test_354_after_a_refused_sender_ends_the_connection(start, carrier):
    peer = await start({"MAIL": "550 5.7.1 no", "RCPT": "250 ok", "DATA": "354 go"})
    assert verdicts(await carrier.carry(peer)) == [FAILED]
    assert len(carrier.pool) == 0
    assert BODY not in peer.sessions[0].raw


async def test_more_than_fifty_recipients_take_several_transactions_of_one_connection(start, carrier):
    peer = await start()
    names = [f"u{number}@peer.example" for number in range(120)]
    outcomes = await carrier.carry(peer, *names)
    assert verdicts(outcomes) == [DELIVERED] * 120
    assert [len(message.recipients) for message in peer.messages] == [50, 50, 20]
    assert peer.recipients == [f"RCPT TO:<{name}>" for name in names]
    assert len(peer.sessions) == 1


@pytest.mark.parametrize("refusal", ["452 4.5.3 too many recipients", "552 5.5.3 too many recipients"])
async def test_too_many_recipients_go_on_in_a_new_transaction(start, carrier, refusal):
    def ten(session, line):
        return "250 ok" if len(session.recipients) < 10 else refusal

    peer = await start({"RCPT": ten})
    names = [f"u{number}@peer.example" for number in range(25)]
    outcomes = await carrier.carry(peer, *names)
    assert verdicts(outcomes) == [DELIVERED] * 25
    assert [len(message.recipients) for message in peer.messages] == [10, 10, 5]
    # The peer's limit is learnt: the third transaction asks for no more than ten.
    assert peer.sessions[0].verbs().count("RCPT") == 25 + 10 + 5


@pytest.mark.parametrize("capabilities", EACH_WAY)
async def test_one_full_mailbox_is_no_limit_of_the_peer(start, carrier, capabilities):
    """It is answered 452 or 552, too; whoever is taken behind it shows that the peer has not had enough."""

    def full(session, line):
        return "452 4.2.2 mailbox full" if "<u1@" in line else "250 ok"

    peer = await start({"RCPT": full}, capabilities=capabilities)
    outcomes = await carrier.carry(peer, *[f"u{number}@peer.example" for number in range(120)])
    assert verdicts(outcomes) == [DELIVERED, DEFERRED] + [DELIVERED] * 118
    assert [len(message.recipients) for message in peer.messages] == [49, 49, 21]


@pytest.mark.parametrize("refusal", ["452 4.2.2 over quota", "552 Requested mail action aborted: mailbox full"])
async def test_nor_is_a_full_mailbox_in_last_place(start, carrier, refusal):
    peer = await start({"RCPT": ["250 ok", refusal, refusal]})
    assert verdicts(await carrier.carry(peer, "a@peer.example", "b@peer.example")) == [DELIVERED, DEFERRED]
    await carrier.carry(peer, *[f"u{number}@peer.example" for number in range(20)])
    assert [len(message.recipients) for message in peer.messages] == [1, 20]
    assert len(peer.sessions) == 1


async def test_452_for_the_first_recipient_defers(start, carrier):
    peer = await start({"RCPT": ["452 4.2.2 mailbox full", "250 ok"]})
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example")
    assert verdicts(outcomes) == [DEFERRED, DELIVERED]
    assert len(peer.messages) == 1


async def test_only_those_without_an_answer_go_on_to_the_next_host(start, carrier):
    first = await start({"RCPT": ["250 ok", "550 5.1.1 unknown", "450 4.2.1 busy", "421 4.3.2 bye"]})
    second = await start()
    names = [f"{name}@peer.example" for name in "abcde"]
    outcomes = await carrier.carry(site_of(first, second), *names)
    assert verdicts(outcomes) == [DELIVERED, FAILED, DEFERRED, DELIVERED, DELIVERED]
    assert second.recipients == ["RCPT TO:<a@peer.example>", "RCPT TO:<d@peer.example>", "RCPT TO:<e@peer.example>"]


@pytest.mark.parametrize("capabilities", EACH_WAY)
@pytest.mark.parametrize("answer", [b"421 4.7.0 too many recipients\r\n", b"354 what?\r\n"])
async def test_a_session_that_ends_at_rcpt_is_given_no_content(start, carrier, capabilities, answer):
    """Even if the peer talks on: whoever goes on to the next host must not have the message from this one too."""
    first = await start({"RCPT": ["250 ok", answer]}, capabilities=capabilities)
    second = await start()
    outcomes = await carrier.carry(site_of(first, second), "a@peer.example", "b@peer.example")
    assert verdicts(outcomes) == [DELIVERED, DELIVERED]
    assert first.messages == []
    assert second.recipients == ["RCPT TO:<a@peer.example>", "RCPT TO:<b@peer.example>"]


async def test_a_lost_answer_concerns_its_transaction_only(start, carrier):
    first = await start({"DOT": ["250 ok", DROP]})
    second = await start()
    names = [f"u{number}@peer.example" for number in range(120)]
    outcomes = await carrier.carry(site_of(first, second), *names)
    assert verdicts(outcomes) == [DELIVERED] * 50 + [DEFERRED] * 50 + [DELIVERED] * 20
    assert [outcomes[i].uncertain for i in range(120)] == [False] * 50 + [True] * 50 + [False] * 20
    assert len(second.recipients) == 20


async def test_a_peer_that_closes_after_each_message_is_dialled_again(start, carrier):
    peer = await start({"DOT": lambda session, line: b"250 ok\r\n421 enough\r\n"})
    outcomes = await carrier.carry(peer, *[f"u{number}@peer.example" for number in range(120)])
    assert verdicts(outcomes) == [DELIVERED] * 120
    assert len(peer.sessions) == 3


BODIES = [
    b"",
    b"\r\n",
    b".\r\n",
    b"..\r\n.\r\n...\r\n",
    b"Subject: x\r\n\r\n.leading\r\nmid.dle\r\n.\r\n..\r\nend.\r\n",
    b"Subject: x\r\n\r\n" + bytes(byte for byte in range(1, 256) if byte not in b"\r\n") + b"\r\n",
    b"Subject: long\r\n\r\n" + b"x" * 100_000 + b"\r\n",
    b"Subject: big\r\n\r\n" + b".dots everywhere\r\n" * 100_000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{len(body)} octets")
@pytest.mark.parametrize("capabilities", EACH_WAY)
async def test_the_body_arrives_byte_for_byte(start, carrier, body, capabilities):
    peer = await start(capabilities=capabilities)
    assert verdicts(await carrier.carry(peer, body=body)) == [DELIVERED]
    assert peer.messages[0].body == body


@pytest.mark.parametrize("body", [b"no end", b"bare end\n", b"bare end\r", b"a\r\n."])
@pytest.mark.parametrize("capabilities", [("PIPELINING",), CHUNKING])
async def test_a_damaged_body_is_never_sent_and_never_bounces(start, carrier, body, capabilities):
    peer = await start(capabilities=capabilities)
    outcomes = await carrier.carry(peer, body=body)
    assert verdicts(outcomes) == [DEFERRED]
    assert str(outcomes[0].reply).startswith("451 4.3.0")
    assert peer.messages == []
    assert {"DATA", "BDAT"}.isdisjoint(peer.sessions[0].verbs())


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("552 5.3.4 too big", FAILED), ("452 4.3.1 full", DEFERRED), ("421 4.3.2 bye", None), ("250 ok", None)],
)
@pytest.mark.parametrize("capabilities", [("PIPELINING",), CHUNKING])
async def test_what_is_said_in_the_middle_of_a_large_body(start, carrier, said, verdict, capabilities):
    """A refusal counts; a 2xx before the end is no acceptance: nobody can have the message yet, so the next host may."""
    first, second = await start({"BODY": said}, capabilities=capabilities), await start()
    outcomes = await carrier.carry(site_of(first, second), body=(b"x" * 998 + b"\r\n") * 20_000)
    assert verdicts(outcomes) == [verdict or DELIVERED]
    assert first.messages == []
    assert len(second.messages) == (verdict is None)
    assert len(carrier.pool) == (verdict is None)


# --- CHUNKING (RFC 3030) ----------------------------------------------------------------------------------------------

LARGE = b"Subject: large\r\n\r\n" + (b"." + b"x" * 997 + b"\r\n") * 3_000


@pytest.mark.parametrize(("capabilities", "ahead"), [(CHUNKING, 2), (("CHUNKING",), 0)])
async def test_one_chunk_follows_the_answers_where_chunking_is_offered(start, carrier, capabilities, ahead):
    peer = await start(capabilities=capabilities)
    body = b"Subject: dots\r\n\r\n.\r\n..\r\n"
    assert verdicts(await carrier.carry(peer, "a@peer.example", "b@peer.example", body=body)) == [DELIVERED] * 2
    session = peer.sessions[0]
    assert session.verbs() == ["EHLO", "MAIL", "RCPT", "RCPT", "BDAT"]
    assert session.ahead == ahead
    assert session.raw.endswith(b"\r\nBDAT %d LAST\r\n" % len(body) + body)


async def test_messages_by_chunk_share_a_connection(start, carrier):
    peer = await start(capabilities=CHUNKING)
    for body in (BODY, LARGE, BODY):
        await carrier.carry(peer, body=body)
    assert [message.body for message in peer.messages] == [BODY, LARGE, BODY]
    assert len(peer.sessions) == 1


@pytest.mark.parametrize("capabilities", [CHUNKING, ("CHUNKING",)])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
async def test_no_chunk_where_nobody_was_taken(start, carrier, capabilities, verb):
    peer = await start({verb: ["550 5.1.1 no"]}, capabilities=capabilities)
    assert verdicts(await carrier.carry(peer)) == [FAILED]
    assert peer.sessions[0].verbs()[-1] == "RSET"
    assert "BDAT" not in peer.sessions[0].verbs()
    assert verdicts(await carrier.carry(peer)) == [DELIVERED]
    assert len(peer.sessions) == 1


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
async def test_where_bdat_is_unknown_the_same_connection_takes_data(start, carrier, code):
    peer = await start({"BDAT": f"{code} 5.5.1 no BDAT here"}, capabilities=CHUNKING)
    assert verdicts(await carrier.carry(peer, "a@peer.example", "b@peer.example")) == [DELIVERED] * 2
    again = ["RSET", "MAIL", "RCPT", "RCPT", "DATA"]
    assert peer.sessions[0].verbs() == ["EHLO", "MAIL", "RCPT", "RCPT", "BDAT", *again]
    await carrier.carry(peer)
    assert peer.sessions[0].verbs()[-3:] == ["MAIL", "RCPT", "DATA"]
    carrier.pool.renew()
    await carrier.carry(peer)
    assert peer.sessions[1].verbs() == ["EHLO", "MAIL", "RCPT", "DATA"], "known of the host, too"
    assert [message.body for message in peer.messages] == [BODY] * 3


async def test_only_those_taken_are_asked_for_again_where_bdat_is_unknown(start, carrier):
    script = {"BDAT": "502 5.5.1 no", "RCPT": ["250 ok", "550 5.1.1 no", "450 4.2.1 later"]}
    peer = await start(script, capabilities=CHUNKING)
    outcomes = await carrier.carry(peer, *[f"{name}@peer.example" for name in "abc"])
    assert verdicts(outcomes) == [DELIVERED, FAILED, DEFERRED]
    assert peer.recipients == ["RCPT TO:<a@peer.example>"]


@pytest.mark.parametrize("behind", [b"NOOP\r\n" * 20, b"RSET\r\nMAIL FROM:<x@y>\r\n" * 3, b"x" * 990 + b"\r\n", LARGE])
async def test_a_peer_that_takes_the_chunk_for_commands_cannot_pass_their_answers_for_ours(start, carrier, behind):
    """Every line of the message is answered, some with 250; the first line, a trace field, gives it away."""
    peer = await start(capabilities=CHUNKING, knows_bdat=False)
    body = b"Received: from here\r\n" + behind
    assert verdicts(await carrier.carry(peer, body=body)) == [DELIVERED]
    assert [message.body for message in peer.messages] == [body]
    assert peer.sessions[1].verbs()[:4] == ["EHLO", "MAIL", "RCPT", "DATA"]
    assert len(peer.sessions) == 2


async def test_a_connection_lost_in_the_chunk_leaves_no_doubt(start, carrier):
    first, second = await start({"BODY": DROP}, capabilities=CHUNKING), await start(capabilities=CHUNKING)
    outcome = (await carrier.carry(site_of(first, second), body=LARGE * 5))[0]
    assert (outcome.verdict, outcome.uncertain) == (DELIVERED, False)
    assert (first.messages, [message.body for message in second.messages]) == ([], [LARGE * 5])


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("capabilities", "end"), [((), b".\r\n"), (("CHUNKING",), b"")])
async def test_cut_off_behind_the_last_octet_is_uncertain(start, carrier, eventually, body, capabilities, end):
    peer = await start({"DOT": SILENCE, "BDAT": SILENCE}, capabilities=capabilities)
    attempt = asyncio.ensure_future(carrier.carry(peer, body=body))

    def all_there():
        raw = peer.sessions[0].raw if peer.sessions else b""
        return len(raw) > len(body) and raw.endswith(body[-5:] + end)

    await eventually(all_there)
    attempt.cancel()
    assert (await attempt)[0].uncertain


@pytest.mark.parametrize("capabilities", [("PIPELINING",), CHUNKING])
async def test_cut_off_as_the_answer_arrives_the_answer_counts(start, carrier, eventually, capabilities):
    """Else the message would be delivered once more."""
    peer = await start({"DOT": SILENCE, "BDAT": SILENCE}, capabilities=capabilities)
    attempt = asyncio.ensure_future(carrier.carry(peer, *[f"u{number}@peer.example" for number in range(60)]))
    await eventually(lambda: peer.sessions and peer.sessions[0].raw.endswith(b"hello\r\n" + (b"" if "CHUNKING" in capabilities else b".\r\n")))
    (protocol,) = carrier.connector._live
    protocol.data_received(b"250 2.0.0 taken\r\n")
    attempt.cancel()
    outcomes = await attempt
    assert verdicts(outcomes) == [DELIVERED] * 50 + [DEFERRED] * 10
    assert not any(outcome.uncertain for outcome in outcomes.values())
    assert len(peer.sessions) == 1 and not carrier.pool._idle


async def test_cut_off_before_the_last_octet_is_not(start, carrier, eventually):
    peer = await start({"BODY": SILENCE}, capabilities=CHUNKING)
    attempt = asyncio.ensure_future(carrier.carry(peer, body=LARGE * 5))
    await eventually(lambda: peer.sessions and b"BDAT" in peer.sessions[0].raw)
    attempt.cancel()
    outcome = (await attempt)[0]
    assert (outcome.verdict, outcome.uncertain) == (DEFERRED, False)


# --- limits of a transaction and of a session -------------------------------------------------------------------------


async def test_limits_of_the_peer_are_kept(start, carrier):
    peer = await start(capabilities=("PIPELINING", "LIMITS MAILMAX=2 RCPTMAX=10 RCPTDOMAINMAX=1"))
    names = [f"u{number}@peer.example" for number in range(45)]
    assert verdicts(await carrier.carry(peer, *names)) == [DELIVERED] * 45
    assert [len(message.recipients) for message in peer.messages] == [10, 10, 10, 10, 5]
    assert [session.verbs().count("MAIL") for session in peer.sessions] == [2, 2, 1]
    assert peer.recipients == [f"RCPT TO:<{name}>" for name in names]


@pytest.mark.parametrize("limits", ["LIMITS RCPTMAX=0 MAILMAX=0", "LIMITS RCPTMAX=-1", "LIMITS", "LIMITS RCPTMAX=1000"])
async def test_limits_that_are_malformed_or_higher_than_ours_change_nothing(start, carrier, limits):
    peer = await start(capabilities=("PIPELINING", limits))
    await carrier.carry(peer, *[f"u{number}@peer.example" for number in range(60)])
    assert [len(message.recipients) for message in peer.messages] == [50, 10]


async def test_8bit_mail_fails_where_it_is_configured_and_the_peer_cannot(start, carrier):
    plain, capable = await start(capabilities=("PIPELINING",)), await start()
    body = "Subject: x\r\n\r\nü\r\n".encode()
    for peer, refuse, content, verdict in [
        (plain, True, body, FAILED),
        (plain, True, BODY, DELIVERED),
        (plain, False, body, DELIVERED),
        (capable, True, body, DELIVERED),
    ]:
        outcome = (await carrier.carry(site_of(peer, refuse_8bit=refuse), body=content))[0]
        assert outcome.verdict is verdict
        assert (str(outcome.reply)[:9] == "554 5.6.3") == (verdict is FAILED)


@pytest.mark.parametrize("gone", ["SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "LIMITS RCPTMAX=1"])
async def test_attack_33_capabilities_that_change_under_tls(start, carrier, certificate, gone):
    """Only what was said in the last EHLO holds."""
    before = ("PIPELINING", "SIZE 10", "CHUNKING", "SMTPUTF8", "8BITMIME", "LIMITS RCPTMAX=1")
    under_tls = [f"250-{word}\r\n" for word in (*before, "SIZE 99999") if not word.startswith(gone.split()[0]) and word != "SIZE 10"]

    def ehlo(session, line):
        said = under_tls if session.tls else [f"250-{word}\r\n" for word in (*before, "STARTTLS")]
        return ("250-peer\r\n" + "".join(said) + "250 HELP\r\n").encode()

    peer = await start({"EHLO": ehlo}, tls=certificate)
    outcomes = await carrier.carry(
        site_of(peer, refuse_8bit=True), "b@peer.example", "c@peer.example", eightbit=True, smtputf8=True, body="Subject: ü\r\n\r\nü\r\n".encode()
    )
    if gone in ("8BITMIME", "SMTPUTF8"):
        assert verdicts(outcomes) == [FAILED] * 2
        assert str(outcomes[0].reply).split()[1] == ("5.6.3" if gone == "8BITMIME" else "5.6.7")
        assert peer.messages == []
        return
    assert verdicts(outcomes) == [DELIVERED] * 2
    assert ("BDAT" in peer.sessions[0].verbs()) == (gone != "CHUNKING")
    assert (len(peer.messages) == 1) == (gone == "LIMITS RCPTMAX=1")
    assert all(message.tls for message in peer.messages)


async def test_attack_33_a_host_that_takes_less_than_the_one_before(start, carrier):
    """The first host, without limits, hangs up; what the second one says is asked anew."""
    first = await start({"MAIL": DROP}, capabilities=CHUNKING)
    second = await start(capabilities=("PIPELINING", "SIZE 10"))
    outcome = (await carrier.carry(site_of(first, second)))[0]
    assert (outcome.verdict, str(outcome.reply)[:9]) == (FAILED, "552 5.3.4")
    assert second.messages == []


async def test_addresses_go_out_as_they_came_in(start, carrier):
    peer = await start()
    sender = '"a>b \\" c"@sender.example'
    names = ['"quoted at@ here"@peer.example', "=?utf-8?q?a=3e?=@peer.example", "o'brien+tag=x@Peer.EXAMPLE"]
    await carrier.carry(peer, *names, sender=sender)
    assert peer.messages[0].mail.startswith(f"MAIL FROM:<{sender}> SIZE=")
    assert peer.recipients == [f"RCPT TO:<{name}>" for name in names]


async def test_the_null_sender_is_sent_as_such(start, carrier):
    peer = await start(capabilities=())
    await carrier.carry(peer, sender="")
    assert peer.messages[0].mail == "MAIL FROM:<>"


async def test_parameters_are_said_where_they_are_offered(start, carrier):
    peer = await start()
    await carrier.carry(peer, eightbit=True, smtputf8=True)
    assert peer.messages[0].mail == f"MAIL FROM:<a@sender.example> SIZE={len(BODY)} BODY=8BITMIME SMTPUTF8"
    plain = await start(capabilities=())
    await carrier.carry(plain, eightbit=True, smtputf8=True)
    assert plain.messages[0].mail == "MAIL FROM:<a@sender.example>"


@pytest.mark.parametrize(
    ("offered", "priority", "said"),
    [
        ("MT-PRIORITY", 3, " MT-PRIORITY=3"),
        ("mt-priority MIXER", -9, " MT-PRIORITY=-9"),
        ("MT-PRIORITY", 0, " MT-PRIORITY=0"),
        ("MT-PRIORITY-X", 3, ""),
        ("X-MT-PRIORITY", 3, ""),
    ],
)
async def test_the_priority_is_told_on_where_the_peer_knows_what_it_is(start, carrier, offered, priority, said):
    peer = await start(capabilities=(offered,))
    assert verdicts(await carrier.carry(peer, priority=priority)) == [DELIVERED]
    assert peer.messages[0].mail == "MAIL FROM:<a@sender.example>" + said


async def test_a_message_larger_than_the_peers_size_fails_unsent(start, carrier):
    peer = await start(capabilities=("SIZE 10",))
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.scope) == (FAILED, Scope.MESSAGE)
    assert str(outcome.reply).startswith("552 5.3.4")
    assert peer.sessions[0].verbs() == ["EHLO"]


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE lots", "SIZE " + "9" * 5000, "SIZE 52"])
async def test_a_size_that_allows_or_says_nothing_is_no_limit(start, carrier, size):
    peer = await start(capabilities=(size,))
    assert verdicts(await carrier.carry(peer)) == [DELIVERED]


async def test_internationalized_addresses_fail_where_the_peer_cannot(start, carrier):
    peer = await start(capabilities=("PIPELINING",))
    outcomes = await carrier.carry(peer, "plain@peer.example", "jürgen@peer.example", smtputf8=True)
    assert verdicts(outcomes) == [DELIVERED, FAILED]
    assert str(outcomes[1].reply).startswith("550 5.6.7")
    outcomes = await carrier.carry(peer, sender="jürgen@sender.example", smtputf8=True)
    assert verdicts(outcomes) == [FAILED]


async def test_an_internationalized_header_fails_where_the_peer_cannot(start, carrier):
    peer = await start(capabilities=("PIPELINING",))
    utf8_header, utf8_body = "Subject: grüße\r\n\r\nx\r\n".encode(), "Subject: x\r\n\r\ngrüße\r\n".encode()
    assert verdicts(await carrier.carry(peer, body=utf8_header, smtputf8=True)) == [FAILED]
    assert verdicts(await carrier.carry(peer, body=utf8_body, smtputf8=True)) == [DELIVERED]
    # Without SMTPUTF8 nobody promised anything: the octets go as they came.
    assert verdicts(await carrier.carry(peer, body=utf8_header)) == [DELIVERED]


async def test_internationalized_addresses_go_as_utf8_where_it_can(start, carrier):
    peer = await start()
    outcomes = await carrier.carry(peer, "jürgen@peer.example", sender="grüße@bücher.example", smtputf8=True)
    assert verdicts(outcomes) == [DELIVERED]
    assert "RCPT TO:<jürgen@peer.example>".encode() in peer.sessions[0].raw
    assert peer.messages[0].mail.endswith(" SMTPUTF8")


async def test_a_control_character_in_an_address_never_reaches_the_wire(start, carrier):
    peer = await start()
    evil = replace(envelope("b@peer.example"), recipients=("b@peer.example>\r\nRCPT TO:<c@peer.example",))
    outcomes = await carrier.delivery.attempt(site_of(peer), Entry(evil, "peer.example", (0,)), BODY)
    assert verdicts(outcomes) == [DEFERRED]
    assert peer.messages == []
    assert peer.sessions[0].verbs() == ["EHLO"]
