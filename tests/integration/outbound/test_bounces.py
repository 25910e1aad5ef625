"""Senders are told, once, of everyone who did not get their mail; nobody is told of mail from the null sender."""

import email
import email.policy

from relayd import metrics
from tests.fakes.smtp_peer import DROP
from tests.integration.outbound.rig import BODY, Relay

REFUSE_STRANGERS = {
    "RCPT": lambda session, line: "250 ok" if "@sender" in line or "fine@" in line else f"550 5.1.1 {line[8:]} unknown"
}


def dsn_of(peer):
    (message,) = [message for message in peer.messages if message.mail.startswith("MAIL FROM:<>")]
    return message, email.message_from_bytes(message.body, policy=email.policy.SMTPUTF8)


async def test_a_refused_recipient_bounces_to_the_sender(start, relay, eventually):
    peer = await start(REFUSE_STRANGERS)
    relay = await relay(routes={"*": [peer]})
    before = metrics.notifications._value.get()
    name = await relay.submit("nobody@peer.example", "fine@peer.example")
    await eventually(lambda: relay.empty)
    message, dsn = dsn_of(peer)
    assert message.recipients == ["RCPT TO:<a@sender.example>"]
    assert dsn["Auto-Submitted"] == "auto-replied"
    text, status, header = dsn.get_payload()
    assert name in text.get_content()
    of_message, of_recipient = status.get_payload()
    assert of_message["Reporting-MTA"] == "dns; relay.example"
    assert of_recipient["Final-Recipient"] == "rfc822; nobody@peer.example"
    assert (of_recipient["Action"], of_recipient["Status"]) == ("failed", "5.1.1")
    assert of_recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 <nobody@peer.example> unknown"
    assert header.get_payload().strip() == "Subject: test"
    assert metrics.notifications._value.get() - before == 1


async def test_a_notification_is_as_urgent_as_what_it_is_about(start, relay, eventually):
    peer = await start(REFUSE_STRANGERS, capabilities=("PIPELINING", "MT-PRIORITY"))
    relay = await relay(routes={"*": [peer]})
    await relay.submit("nobody@peer.example", priority=7)
    await eventually(lambda: relay.empty)
    assert dsn_of(peer)[0].mail == "MAIL FROM:<> MT-PRIORITY=7"


async def test_one_notification_names_all_that_failed_together(start, relay, eventually):
    peer = await start(REFUSE_STRANGERS)
    relay = await relay(routes={"*": [peer]})
    await relay.submit(*[f"nobody{number}@peer.example" for number in range(70)])
    await eventually(lambda: relay.empty)
    _, dsn = dsn_of(peer)
    assert len(dsn.get_payload()[1].get_payload()) == 1 + 70


async def test_mail_from_the_null_sender_is_never_bounced(start, relay, eventually):
    peer = await start({"RCPT": "550 5.1.1 no"})
    relay = await relay(routes={"*": [peer]})
    before = metrics.notifications_dropped._value.get()
    await relay.submit("nobody@peer.example", sender="")
    await eventually(lambda: relay.empty)
    assert peer.messages == []
    assert metrics.notifications_dropped._value.get() - before == 1


async def test_a_bounce_that_bounces_ends_there(start, relay, eventually):
    peer = await start({"RCPT": "550 5.1.1 no"})
    relay = await relay(routes={"*": [peer]})
    dropped, sent = metrics.notifications_dropped._value.get(), metrics.notifications._value.get()
    await relay.submit("nobody@peer.example")
    await eventually(lambda: relay.empty)
    assert peer.messages == []
    assert metrics.notifications._value.get() - sent == 1
    assert metrics.notifications_dropped._value.get() - dropped == 1


async def test_expired_bounces_keep_quiet_too(start, relay, eventually):
    peer = await start({"GREETING": DROP})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,), max_age=0.2)
    dropped = metrics.notifications_dropped._value.get()
    await relay.submit("b@peer.example", sender="")
    await eventually(lambda: relay.empty)
    assert metrics.notifications_dropped._value.get() - dropped == 1


async def test_a_hostile_reply_writes_nothing_into_the_notification(start, relay, eventually):
    evil = b"550-5.1.1 no\0\x1b[2J\r\n550-Final-Recipient: rfc822; victim@x\r\n550 Action: delivered\rStatus: 2.0.0 \xff\r\n"
    peer = await start({"RCPT": [evil]})
    relay = await relay(routes={"*": [peer]})
    await relay.submit("nobody@peer.example")
    await eventually(lambda: relay.empty)
    message, dsn = dsn_of(peer)
    of_recipient = dsn.get_payload()[1].get_payload()[1]
    assert of_recipient.get_all("Final-Recipient") == ["rfc822; nobody@peer.example"]
    assert of_recipient.get_all("Action") == ["failed"]
    assert of_recipient.get_all("Status") == ["5.1.1"]
    assert b"\x1b" not in message.body
    assert b"\0" not in message.body


async def test_an_internationalized_sender_is_told_in_utf8(start, relay, eventually):
    peer = await start(REFUSE_STRANGERS)
    relay = await relay(routes={"*": [peer]})
    await relay.submit("нет@peer.example", sender="grüße@sender.example", smtputf8=True)
    await eventually(lambda: relay.empty)
    message, _ = dsn_of(peer)
    assert message.mail.endswith(" SMTPUTF8")
    assert "Final-Recipient: utf-8; нет@peer.example\r\n".encode() in message.body


async def test_a_failure_and_its_notification_survive_together(start, relay, eventually, tmp_path):
    """Stopped right after the record: the notification is found again, the failed recipient is not tried again."""
    peer = await start(REFUSE_STRANGERS | {"MAIL": lambda session, line: "250 ok" if "<>" not in line else "450 later"})
    async with Relay(tmp_path / "kept", routes={"*": [peer]}, retry_schedule=(0.3,)) as first:
        name = await first.submit("nobody@peer.example")
        await eventually(lambda: first.queue.get(name) is None)
    peer.script["MAIL"] = "250 ok"
    async with Relay(tmp_path / "kept", routes={"*": [peer]}, retry_schedule=(0.3,)) as second:
        await eventually(lambda: second.empty)
    assert peer.recipients == ["RCPT TO:<a@sender.example>"]
    tries = [line for session in peer.sessions for line in session.lines if "nobody" in line]
    assert len(tries) == 1


async def test_a_bounce_that_cannot_be_made_keeps_the_message(start, relay, eventually, monkeypatch):
    peer = await start(REFUSE_STRANGERS)
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,))
    failures = iter([True])
    compose = relay.dispatcher._conclusion._settling._notification

    def fail_once(message, failed, header, now):
        return None if next(failures, False) else compose(message, failed, header, now)

    monkeypatch.setattr(relay.dispatcher._conclusion._settling, "_notification", fail_once)
    await relay.submit("nobody@peer.example", "fine@peer.example")
    await eventually(lambda: relay.empty)
    assert [message.mail[:12] for message in peer.messages] == ["MAIL FROM:<a", "MAIL FROM:<>"]
    assert peer.messages[0].body == BODY
