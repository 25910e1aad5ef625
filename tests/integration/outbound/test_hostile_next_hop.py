"""Next hops that are against us: what they write, how long they hold on, and what they promise.

The bytes of single replies are tested in `test_replies.py`; here it is what becomes of them in spool, log and
notification, and of everyone else's mail.
"""

import asyncio
import email
import email.policy
import json
import re

import pytest

from relayd.message.outcome import Verdict
from relayd.smtp.reply import MAX_TEXT
from relayd.spool.records import State
from tests.fakes.smtp_peer import RESET, SILENCE
from tests.integration.outbound.rig import BODY, Relay, site_of

DELIVERED, DEFERRED, FAILED = Verdict.DELIVERED, Verdict.DEFERRED, Verdict.FAILED


@pytest.fixture
def logged(log_file):
    """The log as octets, so far."""
    return log_file.read_bytes


# --- 34: what replies say

INJECTED = b"Final-Recipient: rfc822; victim@x.example"

HOSTILE = {
    "CR in the middle": b"no\rStatus: 2.0.0\rend",
    "NUL": b"no\0such\0user",
    "escape sequences": b"\x1b[2J\x1b]0;owned\x07 no",
    "all controls": bytes(byte for byte in range(1, 32) if byte not in b"\r\n") + b"\x7f",
    "8-bit": bytes(range(128, 256)),
    "surrogates": "no \udcff\ud800 user".encode("utf-8", "surrogatepass"),
    "overlong UTF-8": b"\xc0\x8a\xe0\x80\x8d\xf0\x80\x80\x8d",
    "separators": "a\u2028b\u2029c\x85d\u202ee\ufefff\u200bg".encode(),
    "a field": INJECTED,
    "a field on lines of its own": b"no\r\n550-\r\n550-" + INJECTED + b"\r\n550-Action: delivered\r\n550 Status: 2.0.0",
    "a boundary": b"--relayd-00000\r\n550-Content-Type: text/html\r\n550 <script>alert(1)</script>",
    "JSON": b'","event":"delivered","x":"\\u0000\\',
    "format and template": b"%s%n%x{0.__class__}{{7*7}}${jndi:ldap://x}",
    "long lines": b"\r\n550-".join(b"y" * 900 for _ in range(30)) + b"\r\n550 end",
    "one long line": b"z" * 8000,
    "words": b" ".join(b"w" * 70 for _ in range(100)),
    "nothing but spaces": b" " * 7000,
}


def wire(said: bytes, code: bytes) -> bytes:
    """As a reply: with lines of its own, the first is one of several."""
    first = b"-" if b"\r\n" in said else b" "
    return code + first + said.replace(b"550", code) + b"\r\n"


def assert_harmless(text: str) -> None:
    assert text.isprintable()
    assert len(text) <= MAX_TEXT
    text.encode()  # no surrogates


def events(logged: bytes) -> list[dict[str, object]]:
    """Every line is one JSON object, in printable octets."""
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", logged)
    return [json.loads(line) for line in logged.splitlines()]


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DOT"])
async def test_attack_34_what_a_refusal_says_harms_nobody(start, relay, eventually, logged, said, verb):
    """In the log, the spool and the notification to the sender, for a refusal for good."""
    peer = await start({verb: [wire(said, b"550")]})
    relay = await relay(routes={"*": [peer]})
    name = await relay.submit("nobody@peer.example")
    await eventually(lambda: relay.empty)
    (failed,) = [event for event in events(logged()) if event["event"] == "failed"]
    assert failed["id"] == name
    assert_harmless(failed["reply"][4:])
    (notification,) = peer.messages
    assert_notification(notification.body)


def assert_notification(body: bytes) -> None:
    """Well-formed, of lines of acceptable length, about one recipient and nobody else."""
    lines = body.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n", body)
    assert len(body) < 4 * MAX_TEXT + 4096
    message = email.message_from_bytes(body, policy=email.policy.default)
    text, status, header = message.get_payload()
    of_message, of_recipient = status.get_payload()
    assert of_recipient.get_all("Final-Recipient") == ["rfc822; nobody@peer.example"]
    assert of_recipient.get_all("Action") == ["failed"]
    assert len(of_recipient.get_all("Status")) == 1
    assert of_recipient["Status"].startswith("5.")
    assert len(of_recipient.get_all("Diagnostic-Code")) == 1
    assert of_message.get_all("Final-Recipient") is None
    assert [part.get_content_type() for part in (text, header)] == ["text/plain", "text/rfc822-headers"]


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
async def test_attack_34_what_a_deferral_says_is_kept_harmless(start, eventually, logged, tmp_path, said):
    """In the spool, read again after a restart."""
    peer = await start({"RCPT": wire(said, b"450")})
    async with Relay(tmp_path / "spool", routes={"*": [peer]}, retry_schedule=(3600,)) as first:
        name = await first.submit("b@peer.example")
        before = await eventually(lambda: first.queue.get(name).results[0])
    assert (before.state, before.reply.code) == (State.DEFERRED, 450)
    assert_harmless(before.reply.text)
    async with Relay(tmp_path / "spool", routes={"*": [peer]}, retry_schedule=(3600,)) as second:
        assert second.queue.get(name).results[0].reply == before.reply
    events(logged())


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    "flood",
    [b"550 " + b"x" * (1 << 20) + b"\r\n", b"550-" + b"x" * 500 + b"\r\n", b"x" * (1 << 20)],
    ids=["a line of 1 MB", "2,000 lines", "1 MB without a line"],
)
async def test_attack_34_a_reply_of_a_megabyte_is_no_reply(start, carrier, verb, flood):
    """It ends the session; what is kept of it says so in a few words."""
    peer = await start({verb: flood * 2000 if flood.startswith(b"550-") else flood})
    outcome = (await carrier.carry(peer))[0]
    assert (outcome.verdict, outcome.uncertain) == (DEFERRED, False)
    assert_harmless(outcome.reply.text)
    assert "too long" in outcome.reply.text
    assert len(outcome.reply.text) < 300
    assert len(carrier.pool) == 0


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
async def test_attack_34_what_is_not_smtp_is_quoted_harmlessly(start, relay, eventually, logged, said):
    peer = await start({"GREETING": said.replace(b"550", b"") + b"\r\n"})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(3600,))
    name = await relay.submit("b@peer.example")
    result = await eventually(lambda: relay.queue.get(name).results[0])
    assert (result.state, result.reply.enhanced) == (State.DEFERRED, "4.4.2")
    assert_harmless(result.reply.text)
    events(logged())


async def test_attack_34_a_greeting_and_extensions_are_text_too(start, relay, eventually, logged):
    """Capabilities with every octet; they are read, and written nowhere."""
    noise = b"".join(b"250-" + bytes([byte]) * 20 + b"\r\n" for byte in range(1, 256) if byte not in b"\r\n-")
    peer = await start({"GREETING": b"220 \x1b[2J\0\xff\r\n", "EHLO": b"250-peer\r\n" + noise + b"250 SIZE \xff\0\r\n"})
    relay = await relay(routes={"*": [peer]})
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    assert len(peer.messages) == 1
    events(logged())


async def test_attack_34_thanks_are_text_too(start, relay, eventually, logged):
    """The answer to the dot of what was delivered is in the log as well."""
    peer = await start({"DOT": b'250-2.0.0 \x1b[2J\0\r\n250 "},{"event":"failed' + b"x" * 5000 + b"\r\n"})
    relay = await relay(routes={"*": [peer]})
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    (line,) = [event for event in events(logged()) if "recipient" in event]
    assert line["event"] == "delivered"
    assert_harmless(line["reply"][len("250 2.0.0 ") :])


# --- 35: tarpits


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
async def test_attack_35_a_tarpit_holds_its_own_slots_and_no_others(start, relay, eventually, verb):
    tarpit, fine = await start({verb: SILENCE}), await start()
    relay = await relay(routes={"tarpit.example": [tarpit], "*": [fine]}, connections=3)
    for number in range(30):
        await relay.submit(f"u{number}@tarpit.example")
    await eventually(lambda: len(tarpit.sessions) >= 3)
    for number in range(30):
        await relay.submit(f"u{number}@fine{number % 3}.example")
    await eventually(lambda: len(fine.recipients) == 30)
    assert len(tarpit.sessions) == 3
    assert not any(session.closed for session in tarpit.sessions)
    assert tarpit.messages == []


async def test_attack_35_recipients_in_a_tarpit_do_not_hold_those_beside_them(start, relay, eventually):
    """Of one message."""
    tarpit, fine = await start({"MAIL": SILENCE}), await start()
    relay = await relay(routes={"tarpit.example": [tarpit], "*": [fine]}, connections=1)
    for number in range(10):
        await relay.submit(f"u{number}@tarpit.example", f"u{number}@fine.example")
    await eventually(lambda: len(fine.recipients) == 10)
    assert len(tarpit.sessions) == 1


async def test_attack_35_one_accounts_flood_into_a_slow_site_delays_another_by_one_turn(start, relay, eventually):
    """Two thousand messages wait for one connection; another account's is the next but one."""
    goes_on = asyncio.Semaphore(0)

    async def slowly(session, line):
        await goes_on.acquire()
        return "250 ok"

    peer = await start({"MAIL": slowly})
    relay = await relay(routes={"*": [peer]}, connections=1)
    await asyncio.gather(*(relay.submit(f"u{number}@peer.example", account="user:flood") for number in range(2000)))
    await eventually(lambda: peer.sessions and "MAIL" in peer.sessions[0].verbs())
    await relay.submit("boss@peer.example", account="user:quiet")
    for _ in range(3):
        goes_on.release()
    await eventually(lambda: "RCPT TO:<boss@peer.example>" in peer.recipients)
    assert len(peer.recipients) <= 3


async def test_attack_35_a_next_hop_that_resets_every_connection_is_no_busy_loop(start, relay, eventually):
    """Each message gets its attempt, and then waits."""
    peer, fine = await start({"GREETING": RESET}), await start()
    relay = await relay(routes={"reset.example": [peer], "*": [fine]}, connections=2, retry_schedule=(3600,))
    for number in range(20):
        await relay.submit(f"u{number}@reset.example")
    await relay.submit("b@fine.example")
    await eventually(lambda: fine.messages and len(peer.sessions) > 1)
    await eventually(lambda: relay.scheduler.counts()["active"] == 0)
    assert len(peer.sessions) <= 20


# --- 36: one answer for each recipient, now and later


async def test_attack_36_greylisting_lets_the_second_try_in(start, relay, eventually):
    """As postgrey does: the first sight of a sender and a recipient is refused, whatever the connection."""
    seen = set()

    def greylist(session, line):
        triplet = (session.mail.split(" SIZE=")[0], line)
        if triplet in seen:
            return "250 2.1.5 ok"
        seen.add(triplet)
        return "450 4.2.0 Greylisted, see http://postgrey.schweikert.ch/help/peer.example.html"

    peer = await start({"RCPT": greylist})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.1,))
    names = [f"u{number}@peer.example" for number in range(5)]
    await relay.submit(*names)
    await eventually(lambda: relay.empty)
    assert sorted(peer.recipients) == sorted(f"RCPT TO:<{name}>" for name in names)


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize(
    "refusal", ["421 4.7.0 try again later", "450 4.7.1 try again later", "451 4.7.1 later", "452 4.7.1 later"]
)
async def test_attack_36_a_refusal_for_now_is_over_when_it_is_over(start, relay, eventually, verb, refusal):
    script = {verb: [refusal]}
    if verb == "EHLO":
        script["HELO"] = [refusal]
    peer = await start(script)
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,))
    await relay.submit("b@peer.example")
    await eventually(lambda: relay.empty)
    (message,) = peer.messages
    assert (message.recipients, message.body) == (["RCPT TO:<b@peer.example>"], BODY)


@pytest.mark.parametrize("capabilities", [("PIPELINING", "SIZE 1000000"), ()])
async def test_attack_36_each_recipient_has_its_own_fate(start, relay, eventually, capabilities):
    tries: dict[str, int] = {}

    def mixed(session, line):
        who = re.search(r"<(\w+)@", line)[1]
        tries[who] = tries.get(who, 0) + 1
        refusals = {
            "early": ["450 4.2.0 busy"] * 2,
            "unknown": ["550 5.1.1 no such user"],
            "late": ["450 4.2.0 busy", "550 5.2.1 gone"],
        }
        left = refusals.get(who, [])
        return left[tries[who] - 1] if tries[who] <= len(left) else "250 ok"

    peer = await start({"RCPT": mixed}, capabilities=capabilities)
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,))
    await relay.submit(*[f"{name}@peer.example" for name in ("fine", "early", "unknown", "late", "well")])
    await eventually(lambda: relay.empty)
    assert tries == {"fine": 1, "well": 1, "early": 3, "unknown": 1, "late": 2, "a": 2}
    delivered = [message for message in peer.messages if message.body == BODY]
    assert [message.recipients for message in delivered] == [
        ["RCPT TO:<fine@peer.example>", "RCPT TO:<well@peer.example>"],
        ["RCPT TO:<early@peer.example>"],
    ]
    told = b"".join(message.body for message in peer.messages if message.body != BODY)
    assert re.findall(rb"Final-Recipient: rfc822; (\w+)@", told) == [b"unknown", b"late"]
    assert re.findall(rb"Status: (\S+)", told) == [b"5.1.1", b"5.2.1"]


@pytest.mark.parametrize("capabilities", [("PIPELINING",), ()])
@pytest.mark.parametrize("refusal", ["550 5.1.1 no", "450 4.2.0 later"])
async def test_attack_36_a_promise_without_recipients_is_none(start, carrier, capabilities, refusal):
    """All refused, yet DATA gets 354 and the dot 250: nobody has the mail, and the peer gets no content."""
    peer = await start({"RCPT": refusal, "DATA": "354 go", "DOT": "250 2.0.0 thank you"}, capabilities=capabilities)
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example")
    expected = FAILED if refusal.startswith("5") else DEFERRED
    assert [outcome.verdict for outcome in outcomes.values()] == [expected, expected]
    assert [str(outcome.reply) for outcome in outcomes.values()] == [refusal, refusal]
    assert b"hello" not in peer.sessions[0].raw


async def test_attack_36_a_promise_for_some_is_none_for_the_others(start, carrier):
    """One taken, one refused, and a dot that thanks for both."""
    peer = await start({"RCPT": ["550 5.1.1 no", "250 ok"], "DOT": "250 2.0.0 delivered to all recipients"})
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example")
    assert [outcome.verdict for outcome in outcomes.values()] == [FAILED, DELIVERED]


async def test_attack_36_more_answers_than_recipients_belong_to_nobody(start, carrier):
    """LMTP's habit: an answer for each recipient after the dot. The first is the answer, the session is over."""
    peer = await start({"DOT": b"250 2.1.5 <a> ok\r\n550 5.2.2 <b> over quota\r\n"})
    second = await start()
    outcomes = await carrier.carry(site_of(peer, second), "a@peer.example", "b@peer.example")
    assert [outcome.verdict for outcome in outcomes.values()] == [DELIVERED, DELIVERED]
    assert (len(carrier.pool), second.sessions) == (0, [])


async def test_attack_36_refused_at_data_after_all_were_taken(start, carrier):
    peer = await start({"DATA": "451 4.7.1 greylisted"})
    outcomes = await carrier.carry(peer, "a@peer.example", "b@peer.example")
    assert [outcome.verdict for outcome in outcomes.values()] == [DEFERRED, DEFERRED]
    assert b"hello" not in peer.sessions[0].raw
