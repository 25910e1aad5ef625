import pytest

from relayd.message.received import date, keyword, trace
from relayd.smtp.address import Address

FACTS = {
    "helo": "client.test", "client": "192.0.2.1", "hostname": "relay.test", "protocol": "ESMTP",
    "tls": "", "queue_id": "00AAAA", "recipient": None, "priority": 0, "at": 1795258260.9,
}  # fmt: skip


def test_trace():
    assert trace(**FACTS) == (
        b"Received: from client.test ([192.0.2.1])\r\n"
        b"\tby relay.test with ESMTP id 00AAAA\r\n"
        b"\t; Sat, 21 Nov 2026 10:51:00 +0000\r\n"
    )
    single = trace(
        **FACTS | {"tls": "TLSv1.3 TLS_AES", "client": "2001:db8::1", "recipient": Address("b@example.test")}
    )
    assert b"([IPv6:2001:db8::1])" in single
    assert b" with ESMTP (TLSv1.3 TLS_AES) id 00AAAA\r\n\tfor <b@example.test>; Sat" in single


@pytest.mark.parametrize(
    ("priority", "recipient", "expected"),
    [
        (0, Address("b@example.test"), b"\tfor <b@example.test>; Sat"),
        (9, Address("b@example.test"), b"\tfor <b@example.test> PRIORITY 9; Sat"),
        (-9, None, b"\tPRIORITY -9; Sat"),
    ],
)
def test_the_priority_is_told_behind_the_recipient(priority, recipient, expected):
    assert trace(**FACTS | {"priority": priority, "recipient": recipient}).split(b"\r\n")[2].startswith(expected)


@pytest.mark.parametrize("helo", ["a\r\nX: y", "a b", "\0", "ü", "(", "a;b", ""])
def test_only_harmless_octets_of_the_helo(helo):
    first = trace(**FACTS | {"helo": helo}).split(b"\r\n")[0].decode()
    said = first.removeprefix("Received: from ").removesuffix(" ([192.0.2.1])")
    assert said
    assert all(c.isascii() and (c.isalnum() or c in ".:-[]") for c in said)


@pytest.mark.parametrize(
    ("extended", "tls", "authenticated", "utf8", "expected"),
    [
        (False, False, False, False, "SMTP"),
        (True, False, False, False, "ESMTP"),
        (True, True, False, False, "ESMTPS"),
        (True, False, True, False, "ESMTPA"),
        (True, True, True, False, "ESMTPSA"),
        (True, True, True, True, "UTF8SMTPSA"),
        (True, False, False, True, "UTF8SMTP"),
    ],
)
def test_keyword(extended, tls, authenticated, utf8, expected):
    assert keyword(extended=extended, tls=tls, authenticated=authenticated, utf8=utf8) == expected


def test_date_is_utc():
    assert date(0.0) == "Thu, 01 Jan 1970 00:00:00 +0000"
