"""The demo's judge finds what is wrong, and finds nothing where nothing is."""

import pytest

from relayd.cli.demo_ledger import Ledger, Tally, behind_trace, failed_recipients
from relayd.cli.demo_mail import DESTINATIONS, REFUSING, Mail, compose

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
TRACE = b"Received: from a (b [127.0.0.1])\r\n\tby relay with ESMTPSA id 1;\r\n\tSat, 21 Nov 2026 10:00:00 +0000\r\n"
NOTIFICATION = b"""\
Content-Type: multipart/report; report-type=delivery-status; boundary=B\r
\r
--B\r
Content-Type: message/delivery-status\r
\r
Reporting-MTA: dns; relay\r
\r
Final-Recipient: rfc822; b@x.example\r
Action: failed\r
Status: 5.1.1\r
\r
Final-Recipient: rfc822; c@x.example\r
Action: delayed\r
Status: 4.1.1\r
\r
--B--\r
"""
A, B = "a@x.example", "b@x.example"
DELIVERED, RETURNED = (A, TRACE + CONTENT), ("s@y.example", NOTIFICATION)


def judged(deliveries: list[tuple[str, bytes]], notifications: list[tuple[str, bytes]]) -> Tally:
    ledger = Ledger()
    ledger.accepted(Mail("s@y.example", (A, B), CONTENT))
    return ledger.judge(deliveries, notifications)["x.example"]


def test_each_recipient_delivered_or_bounced_is_sound() -> None:
    tally = judged([DELIVERED], [RETURNED])
    assert tally == Tally(recipients=2, delivered=1, bounced=1)
    assert tally.sound


@pytest.mark.parametrize(
    ("deliveries", "notifications", "wrong"),
    [
        ([DELIVERED], [], {"missing": 1}),
        ([DELIVERED, DELIVERED], [RETURNED], {"repeated": 1}),
        ([DELIVERED], [RETURNED, RETURNED], {"repeated": 1}),
        ([DELIVERED, (B, TRACE + CONTENT)], [RETURNED], {"repeated": 1}),
        ([(A, TRACE + CONTENT[:-2])], [RETURNED], {"altered": 1}),
        ([(A, TRACE + TRACE + CONTENT)], [RETURNED], {"altered": 1}),
        ([DELIVERED, ("ghost@x.example", TRACE + CONTENT)], [RETURNED], {"altered": 1}),
        ([DELIVERED], [("stranger@y.example", NOTIFICATION)], {"missing": 1}),
    ],
    ids=["lost", "twice", "told twice", "both", "cut", "two traces", "ghost", "told a stranger"],
)
def test_what_is_wrong_is_found(
    deliveries: list[tuple[str, bytes]], notifications: list[tuple[str, bytes]], wrong: dict[str, int]
) -> None:
    tally = judged(deliveries, notifications)
    assert not tally.sound
    assert {name: getattr(tally, name) for name in wrong} == wrong


def test_only_failed_recipients_are_named() -> None:
    assert failed_recipients(NOTIFICATION) == [B]


def test_only_the_first_trace_field_is_taken_away() -> None:
    assert behind_trace(TRACE + TRACE + CONTENT) == TRACE + CONTENT
    assert behind_trace(CONTENT) == CONTENT


def test_the_mail_is_varied_and_the_same_for_a_seed() -> None:
    mails = list(compose(250, 1))
    assert [mail.recipients for mail in mails] == [mail.recipients for mail in compose(250, 1)]
    recipients = [recipient for mail in mails for recipient in mail.recipients]
    assert len(recipients) == len(set(recipients))
    assert {len(mail.recipients) for mail in mails} >= {1, 20}
    assert {recipient.rpartition("@")[2] for recipient in recipients} == set(DESTINATIONS)
    assert not any(mail.content.replace(b"\r\n", b"").count(b"\n") for mail in mails)
    assert sum(b"\r\n." in mail.content for mail in mails) >= 25
    assert sum("SMTPUTF8" in mail.options for mail in mails) == 10
    assert not any(not r.isascii() and r.endswith(REFUSING) for r in recipients)
