import email
import email.policy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.message import dsn
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply, parsed, shortened

HEADER = b"Received: from x\r\nFrom: a@b.example\r\nSubject: hello\r\n"


def report(*failures, sender="a@sender.example", header=HEADER):
    return dsn.Report(
        id="00ABCDEFGHIJKLMNOP",
        hostname="relay.example",
        sender=Address(sender),
        original="00QRSTUVWXYZ234567",
        arrived=1_700_000_000.0,
        at=1_700_000_100.0,
        failures=failures or (failure(),),
        header=header,
    )


def failure(recipient="b@peer.example", status="5.1.1", reply=None, host="mx.peer.example"):
    reply = reply or Reply(550, "5.1.1", "unknown")
    return dsn.Failure(Address(recipient), status, reply, host, 1_700_000_050.0)


def parse(raw):
    return email.message_from_bytes(raw, policy=email.policy.SMTPUTF8)


def test_a_report_reads_back():
    message = parse(dsn.compose(report()))
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.example>"
    assert message["To"] == "a@sender.example"
    assert message["Message-ID"] == "<00ABCDEFGHIJKLMNOP@relay.example>"
    assert message["Date"] == "Tue, 14 Nov 2023 22:15:00 +0000"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message.defects == []
    kinds = [part.get_content_type() for part in message.get_payload()]
    assert kinds == ["text/plain", "message/delivery-status", "text/rfc822-headers"]


def test_the_fields_of_a_recipient():
    status = parse(dsn.compose(report())).get_payload()[1]
    of_message, of_recipient = status.get_payload()
    assert dict(of_message) == {
        "Reporting-MTA": "dns; relay.example",
        "Arrival-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
    }
    assert dict(of_recipient) == {
        "Final-Recipient": "rfc822; b@peer.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.peer.example",
        "Diagnostic-Code": "smtp; 550 5.1.1 unknown",
        "Last-Attempt-Date": "Tue, 14 Nov 2023 22:14:10 +0000",
    }


def test_where_no_peer_answered_none_is_named():
    status = parse(dsn.compose(report(failure(host="", reply=Reply(550, "5.1.2", "no such domain"))))).get_payload()[1]
    of_recipient = status.get_payload()[1]
    assert of_recipient["Remote-MTA"] is None
    assert of_recipient["Diagnostic-Code"] == "x-relayd; 550 5.1.2 no such domain"


def test_the_header_comes_back_as_it_was():
    part = parse(dsn.compose(report())).get_payload()[2]
    assert part.get_payload() == HEADER.decode().replace("\r\n", "\n") or part.get_payload() == HEADER.decode()


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1\r\n\r\n\r\n\r\n", b"A: 1\r\n"),
        (b"\r\nbody\r\n", b""),
        (b"A: 1\r\n", b"A: 1\r\n"),
        (b"", b""),
    ],
)
def test_header_of(body, header):
    assert dsn.header_of(body) == header


def test_a_long_header_is_cut_between_lines():
    lines = b"X: " + b"y" * 95 + b"\r\n"
    raw = dsn.compose(report(header=lines * 1000))
    assert raw.count(lines) == 500
    assert len(dsn.compose(report(header=b"x" * 10_000_000))) < 5000


def test_eight_bit_headers_are_declared():
    part = parse(dsn.compose(report(header="Subject: grüße\r\n".encode()))).get_payload()[2]
    assert part["Content-Transfer-Encoding"] == "8bit"
    assert parse(dsn.compose(report())).get_payload()[2]["Content-Transfer-Encoding"] == "7bit"


def test_a_header_cannot_close_the_report():
    forged = b"--relayd-00QRSTUVWXYZ234567--\r\n--\r\n--x\r\nContent-Type: text/html\r\n"
    message = parse(dsn.compose(report(header=forged)))
    assert len(message.get_payload()) == 3
    assert message.defects == []


def test_an_internationalized_sender_gets_a_utf8_report():
    raw = dsn.compose(report(failure("нет@peer.example"), sender="grüße@sender.example"))
    assert b"Content-Type: message/global-delivery-status" in raw
    assert b"Content-Type: message/global-headers" in raw
    assert b"report-type=global-delivery-status" in raw
    assert "Final-Recipient: utf-8; нет@peer.example\r\n".encode() in raw
    assert "To: <grüße@sender.example>".encode() in raw


def test_an_ascii_sender_gets_a_report_that_stays_ascii():
    raw = dsn.compose(report(failure("ü+\\@peer.example", reply=Reply(550, "", "Benutzer ungültig"))))
    status = raw.partition(b"message/delivery-status")[2].partition(b"\r\n--")[0]
    assert status.isascii()
    # RFC 6533 §3
    assert rb"Final-Recipient: utf-8; \x{FC}\x{2B}\x{5C}@peer.example" in status
    assert b"Diagnostic-Code: smtp; 550 Benutzer ung?ltig" in status


HOSTILE = [
    b"a\r\nFinal-Recipient: rfc822; victim@x",
    b"a\n\nFinal-Recipient: rfc822; victim@x\nAction: delivered",
    b"a\rStatus: 2.0.0",
    b"\x1b[2J\x00\x07\x7f",
    b"\xff\xfe\xed\xa0\x80",
    b"x" * 100_000,
    "\u2028\u2029\x85\u202e".encode(),
    b"--relayd-00ABCDEFGHIJKLMNOP--",
    b" ",
    b"",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_reply_text_is_harmless(text):
    check(text)


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_any_reply_text_is_harmless(text):
    check(text)


def check(text):
    raw = dsn.compose(report(failure(reply=shortened(parsed(550, text))), failure("c@peer.example")))
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", raw)
    assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    blocks = parse(raw).get_payload()[1].get_payload()
    assert [block["Final-Recipient"] for block in blocks[1:]] == ["rfc822; b@peer.example", "rfc822; c@peer.example"]
    for block in blocks[1:]:
        assert block.get_all("Status") == ["5.1.1"]
        assert block.get_all("Action") == ["failed"]
        assert block["Diagnostic-Code"].startswith("smtp; 550")
        assert len(block["Diagnostic-Code"]) < 1200
    assert len(parse(raw).get_payload()) == 3
