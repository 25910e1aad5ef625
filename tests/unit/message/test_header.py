import time

import pytest

from relayd.message.header import scanned, starts_with_field

LIMIT = 256 * 1024


def test_where_a_header_ends():
    assert scanned(b"A: b\r\n\r\ntext", LIMIT).end == 6
    assert scanned(b"\r\ntext\r\n", LIMIT).end == 0
    assert scanned(b"A: b\r\n", LIMIT).end == 6
    assert scanned(b"", LIMIT).end == 0


def test_count_and_has():
    header = scanned(b"RECEIVED: a\r\n b\r\nreceived: c\r\nX-Received: d\r\nDate : x\r\n\r\nReceived: no\r\n", LIMIT)
    assert header.count(b"received") == 2
    assert header.has(b"date")
    assert not header.has(b"dat")
    assert not header.has(b"bcc")


@pytest.mark.parametrize(("octets", "fits"), [(LIMIT - 10, True), (LIMIT, True), (LIMIT + 1, False), (10**7, False)])
def test_limit(octets, fits):
    field = b"A: " + b"x" * (octets - 5) + b"\r\n"
    assert len(field) == octets
    assert (scanned(field + b"\r\ntext\r\n", LIMIT) is not None) is fits
    assert (scanned(field, LIMIT) is not None) is fits


def test_a_long_text_without_header_is_no_long_header():
    for text in (b"x" * 10**6 + b"\r\n", b"no header here\r\n" * 10**5, b"A: b\r\n" + b"text\r\n" * 10**5):
        header = scanned(text, LIMIT)
        assert header is not None
        assert header.end in (0, 6)


@pytest.mark.parametrize(
    "hostile",
    [
        b"A:b\r\n" * 10**6,
        b"Date" + b" " * 10**6 + b"\r\n",
        b"\r\ndate" * 10**5,
        b"a" * 10**7,
        (b"x" * 70 + b"\r\n") * 10**5,
    ],
)
def test_linear(hostile):
    started = time.process_time()
    header = scanned(hostile, LIMIT)
    if header:
        header.has(b"date")
    assert time.process_time() - started < 1


def test_starts_with_field():
    assert starts_with_field(b"A: b\r\n")
    assert starts_with_field(b"\r\ntext")
    assert not starts_with_field(b"Hello world\r\n")
    assert not starts_with_field(b"")
