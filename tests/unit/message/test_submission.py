import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.message.header import scanned
from relayd.message.submission import completed

WHOLE = b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@b.test>\r\n"


def done(body: bytes) -> bytes:
    return completed(body, scanned(body, 10**6), hostname="relay.test", queue_id="00AAAA", at=0.0)


def test_what_lacks_nothing_is_the_same_object():
    body = WHOLE + b"\r\nBcc: text\r\n"
    assert done(body) is body


def test_date_and_message_id():
    assert done(b"Subject: t\r\n\r\nx\r\n") == (
        b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <00AAAA@relay.test>\r\nSubject: t\r\n\r\nx\r\n"
    )
    assert done(b"date: x\r\n\r\n") == b"Message-ID: <00AAAA@relay.test>\r\ndate: x\r\n\r\n"
    assert done(b"") == done(b"\r\n").removesuffix(b"\r\n") + b"\r\n"


def test_text_without_header_gets_one():
    assert done(b"Hello world\r\n").endswith(b"Message-ID: <00AAAA@relay.test>\r\n\r\nHello world\r\n")
    assert done(b"\r\nHello\r\n").endswith(b"@relay.test>\r\n\r\nHello\r\n")
    # White space in front continues a field, and must not continue ours.
    assert done(b" Hello\r\n").endswith(b"@relay.test>\r\n\r\n Hello\r\n")


@pytest.mark.parametrize(
    ("header", "left"),
    [
        (b"Bcc: a@b.test\r\n", b""),
        (b"BCC : a@b.test\r\nSubject: t\r\n", b"Subject: t\r\n"),
        (b"Subject: t\r\nbcc: a,\r\n b,\r\n\tc\r\nTo: d\r\n", b"Subject: t\r\nTo: d\r\n"),
        (b"Bcc:\r\nBcc: x\r\nX-Bcc: kept\r\n", b"X-Bcc: kept\r\n"),
        (b"Subject: a\r\n bcc: folded\r\n", b"Subject: a\r\n bcc: folded\r\n"),
    ],
)
def test_bcc_goes(header, left):
    assert done(WHOLE + header + b"\r\nBcc: text\r\n") == WHOLE + left + b"\r\nBcc: text\r\n"
    assert done(WHOLE + header) == WHOLE + left


@given(
    st.lists(st.sampled_from([b"A: b", b"Bcc: x", b" y", b"Date: d", b"Message-ID: m", b"text"])),
    st.binary(max_size=50),
)
def test_the_text_is_never_touched(lines, text):
    header = b"".join(line + b"\r\n" for line in lines)
    assert done(header + b"\r\n" + text).endswith(b"\r\n" + text)
