"""The table of replies, each cell against a peer that says so on a real connection."""

import asyncio

import pytest

from relayd import metrics
from relayd.message.outcome import Scope, Verdict
from tests.fakes.smtp_peer import DROP, RESET, SILENCE
from tests.integration.outbound.rig import IMPATIENT, QUICK, Carrier, site_of

DELIVERED, DEFERRED, FAILED = Verdict.DELIVERED, Verdict.DEFERRED, Verdict.FAILED
RECIPIENT, MESSAGE, SESSION, SITE = Scope.RECIPIENT, Scope.MESSAGE, Scope.SESSION, Scope.SITE

LOST = [DROP, RESET, SILENCE, "421 4.3.2 going down"]

MALFORMED = [
    "250X nonsense",
    "999 what",
    "199 what",
    "2_5 what",
    "2 5 what",
    "-50 what",
    "000 what",
    "2500 what",
    "25",
    "",
    "hello",
    "٢٥٠ what",
    b"250-one\r\n550 two\r\n",
    b"\xff\xfe\0\r\n",
]

ENDLESS = [b"250 " + b"x" * 9000, b"250-more\r\n" * 5000, b"250 " + b"x" * 10_000_000 + b"\r\n", b"2" * 100_000]

EACH_WAY = [("PIPELINING",), ("PIPELINING", "CHUNKING"), ()]

BEFORE_THE_END = [
    *((verb, ("PIPELINING",)) for verb in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA")),
    *((verb, capabilities) for verb in ("MAIL", "RCPT") for capabilities in (("PIPELINING", "CHUNKING"), ("CHUNKING",))),
]

END = [("DOT", ("PIPELINING",)), ("BDAT", ("PIPELINING", "CHUNKING")), ("BDAT", ("CHUNKING",))]


ANSWERED = [
    # verb, answer, verdict, scope: what the one host of a site says is final for the attempt
    ("GREETING", "450 4.3.2 later", DEFERRED, SITE),
    ("GREETING", "554 5.7.1 go away", DEFERRED, SITE),
    ("GREETING", "250 not a greeting", DEFERRED, SITE),
    ("EHLO", "450 later", DEFERRED, SITE),
    ("EHLO", "220 not EHLO", DEFERRED, SITE),
    ("MAIL", "451 4.7.1 greylisted", DEFERRED, MESSAGE),
    ("MAIL", "552 5.2.2 over quota", FAILED, MESSAGE),
    ("MAIL", "550 5.7.1 no", FAILED, MESSAGE),
    ("MAIL", "530 5.7.0 authenticate", DEFERRED, SITE),
    ("MAIL", "535 5.7.8 wrong", DEFERRED, SITE),
    ("MAIL", "538 5.7.11 encrypt", DEFERRED, SITE),
    ("RCPT", "450 4.2.1 busy", DEFERRED, RECIPIENT),
    ("RCPT", "452 4.5.3 too many", DEFERRED, RECIPIENT),
    ("RCPT", "552 5.5.3 too many", DEFERRED, RECIPIENT),
    ("RCPT", "550 5.1.1 no such user", FAILED, RECIPIENT),
    ("DATA", "451 4.3.0 later", DEFERRED, MESSAGE),
    ("DATA", "554 5.5.1 no", FAILED, MESSAGE),
    ("DOT", "451 4.3.0 later", DEFERRED, MESSAGE),
    ("DOT", "554 5.7.1 spam", FAILED, MESSAGE),
]


@pytest.mark.parametrize("capabilities", EACH_WAY)
@pytest.mark.parametrize(("verb", "answer", "verdict", "scope"), ANSWERED)
async def test_an_answer_means_what_the_table_says(start, carrier, capabilities, verb, answer, verdict, scope):
    if "CHUNKING" in capabilities:
        if verb == "DATA":
            return
        verb = verb.replace("DOT", "BDAT")
    peer = await start({verb: answer}, capabilities=capabilities)
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.scope, outcome.uncertain) == (verdict, scope, False)
    assert str(outcome.reply).startswith(answer[:9])
    assert outcome.host == f"127.0.0.1[127.0.0.1]:{peer.port}"
    assert peer.messages == []


async def goes_to_the_next_host(start, verb, answer, capabilities):
    first, second = await start({verb: answer}, capabilities=capabilities), await start()
    carrier = Carrier(IMPATIENT if answer is SILENCE else QUICK)
    outcome = (await carrier.carry(site_of(first, second)))[0]
    assert outcome.verdict is DELIVERED
    assert outcome.host.endswith(f":{second.port}")
    assert (len(first.messages), len(second.messages)) == (0, 1)
    assert len(carrier.pool) == 1
    await carrier.close()


@pytest.mark.parametrize(("verb", "capabilities"), BEFORE_THE_END)
@pytest.mark.parametrize("answer", LOST, ids=str)
async def test_attack_31_lost_before_the_end_goes_to_the_next_host(start, verb, answer, capabilities):
    await goes_to_the_next_host(start, verb, answer, capabilities)


@pytest.mark.parametrize(("verb", "capabilities"), BEFORE_THE_END)
@pytest.mark.parametrize("answer", MALFORMED)
async def test_attack_30_what_is_no_reply_goes_to_the_next_host(start, verb, answer, capabilities):
    await goes_to_the_next_host(start, verb, answer, capabilities)


@pytest.mark.parametrize(("verb", "answer"), [("MAIL", "354 go"), ("RCPT", "354 go"), ("DATA", "250 ok"), ("EHLO", "354 go"), ("GREETING", "250 hello")])
async def test_attack_30_a_reply_to_another_command_goes_to_the_next_host(start, verb, answer):
    await goes_to_the_next_host(start, verb, answer, ("PIPELINING",))


@pytest.mark.parametrize(("verb", "capabilities"), BEFORE_THE_END)
@pytest.mark.parametrize("answer", ENDLESS, ids=len)
async def test_attack_29_a_reply_without_end_goes_to_the_next_host(start, verb, answer, capabilities):
    await goes_to_the_next_host(start, verb, answer, capabilities)


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT", "BDAT"])
async def test_attack_29_a_reply_that_drips_is_not_waited_for(start, verb):
    """A deadline counts replies, not octets: else each of them could buy another five minutes."""

    async def drip(session, line):
        for octet in b"250-" + b"x" * 200:
            peer.speak(bytes([octet]))
            await asyncio.sleep(0.05)
        return SILENCE

    peer = await start({verb: drip}, capabilities=("PIPELINING", "CHUNKING") if verb == "BDAT" else ("PIPELINING",))
    carrier = Carrier(IMPATIENT)
    begun = asyncio.get_running_loop().time()
    outcome = (await carrier.carry(peer))[0]
    assert asyncio.get_running_loop().time() - begun < 5
    assert (outcome.verdict, outcome.uncertain) == (DEFERRED, verb in ("DOT", "BDAT"))
    await carrier.close()


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("pipelining", [True, False])
async def test_attack_31_lost_before_the_end_without_another_host_is_deferred(start, carrier, verb, pipelining):
    peer = await start({verb: DROP}, capabilities=("PIPELINING",) if pipelining else ())
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.uncertain) == (DEFERRED, False)
    assert outcome.scope is (SITE if verb in ("GREETING", "EHLO") else SESSION)
    assert outcome.reply.code == 451
    assert outcome.reply.enhanced == "4.4.2"


async def is_uncertain(start, verb, answer, capabilities):
    first, second = await start({verb: answer}, capabilities=capabilities), await start()
    before = metrics.uncertain_deliveries._value.get()
    carrier = Carrier(IMPATIENT if answer is SILENCE else QUICK)
    outcome = (await carrier.carry(site_of(first, second)))[0]
    assert (outcome.verdict, outcome.scope, outcome.uncertain) == (DEFERRED, SESSION, True)
    assert second.sessions == []
    assert metrics.uncertain_deliveries._value.get() == before + 1
    assert len(carrier.pool) == 0
    await carrier.close()


@pytest.mark.parametrize(("verb", "capabilities"), END)
@pytest.mark.parametrize("answer", LOST, ids=str)
async def test_attack_31_lost_after_the_end_is_uncertain_and_meets_no_other_host(start, verb, answer, capabilities):
    await is_uncertain(start, verb, answer, capabilities)


@pytest.mark.parametrize(("verb", "capabilities"), END)
@pytest.mark.parametrize("answer", [*MALFORMED, "200 odd", "354 what", "221 bye", "260 odd"])
async def test_attack_30_what_is_no_reply_to_the_end_is_uncertain(start, verb, answer, capabilities):
    await is_uncertain(start, verb, answer, capabilities)


@pytest.mark.parametrize(("verb", "capabilities"), END)
@pytest.mark.parametrize("answer", ENDLESS, ids=len)
async def test_attack_29_a_reply_without_end_to_the_end_is_uncertain(start, verb, answer, capabilities):
    await is_uncertain(start, verb, answer, capabilities)


@pytest.mark.parametrize("rest", [b"garbage\r\n", b"250-and\r\n550 more\r\n", b"421 bye\r\n", b"250"])
@pytest.mark.parametrize(("verb", "capabilities"), END)
async def test_attack_30_what_stands_behind_the_answer_does_not_take_it_back(start, carrier, rest, verb, capabilities):
    peer = await start({verb: b"250 2.0.0 queued\r\n" + rest}, capabilities=capabilities)
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.uncertain, len(carrier.pool)) == (Verdict.DELIVERED, False, 0)


@pytest.mark.parametrize("code", [250, 251, 252, 259])
async def test_250_to_259_after_the_dot_delivers(start, carrier, code):
    peer = await start({"DOT": f"{code} 2.0.0 taken"})
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.scope) == (DELIVERED, RECIPIENT)
    assert str(outcome.reply) == f"{code} 2.0.0 taken"


@pytest.mark.parametrize("verb", ["GREETING", "EHLO"])
@pytest.mark.parametrize("answer", ["450 later", "554 5.7.1 no"])
async def test_refused_before_mail_goes_to_the_next_host(start, carrier, verb, answer):
    first = await start({verb: answer, "HELO": answer})
    second = await start()
    outcome = (await carrier.carry(site_of(first, second)))[0]
    assert outcome.verdict is DELIVERED
    assert len(second.messages) == 1


async def test_refusals_of_the_message_are_not_asked_of_the_next_host(start, carrier):
    for verb in ("MAIL", "RCPT", "DATA", "DOT"):
        for answer in ("450 4.0.0 later", "550 5.0.0 no"):
            first, second = await start({verb: answer}), await start()
            await carrier.carry(site_of(first, second))
            assert second.sessions == []


async def test_ehlo_unknown_falls_back_to_helo(start, carrier):
    peer = await start({"EHLO": "502 5.5.1 what?"})
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert peer.sessions[0].verbs() == ["EHLO", "HELO", "MAIL", "RCPT", "DATA"]
    assert peer.messages[0].mail == "MAIL FROM:<a@sender.example>"
