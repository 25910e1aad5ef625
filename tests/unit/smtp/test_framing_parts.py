"""A message in parts, cut anywhere, is what it is in one piece."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.smtp.framing import DataReader, Strays, Stuffing, Unstuffing, stray, stuffed, unstuffed, with_crlf

octets = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\0", b"a", b"xyz", b"\xff"]), max_size=24).map(b"".join)
cuts = st.lists(st.integers(0, 60), max_size=12)


def parts(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in at)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def passed(wire: list[bytes], whole: int, *, normalize: bool = False) -> tuple[bytes | None, str, int, DataReader]:
    """The text, its fault and its octets, as inbound reads them."""
    reader = DataReader(1000, whole)
    text = Unstuffing(normalize=normalize)
    out = b""
    for number, chunk in enumerate(wire):
        ended = reader.feed(chunk)
        if reader.large:
            out += text.feed(reader.take())
        if ended:
            reader.rest += b"".join(wire[number + 1 :])
            return (out, text.fault, text.octets, reader) if reader.large else (reader.body, "", 0, reader)
    return None, text.fault, text.octets, reader


@given(octets, cuts, st.integers(0, 40), st.booleans())
@example(b"a\r\n..b\r\n.\r\n", list(range(60)), 0, False)
@example(b"\n\r\n\n.\r\n.\r\n", list(range(60)), 0, True)
@example(b"..\r\n.\r\nQUIT\r\n", [1, 2], 0, False)
def test_any_cut_gives_what_the_whole_gives(wire: bytes, at: list[int], whole: int, normalize: bool) -> None:
    one = DataReader(1000)
    one.feed(wire)
    text, fault, size, reader = passed(parts(wire, at), whole, normalize=normalize)
    if one.body is None:
        assert text is None
        return
    assert (reader.rest, reader.received) == (one.rest, one.received)
    expected, expected_fault = one.body, stray(one.body)
    if reader.large:
        assert size == len(one.body)
        if expected_fault == "bare LF" and normalize:
            expected, expected_fault = with_crlf(expected), ""
        assert fault == expected_fault
    if not expected_fault or not reader.large:
        assert text == expected


@given(octets, cuts)
def test_stuffing_in_parts(text: bytes, at: list[int]) -> None:
    stuffing = Stuffing()
    wire = b"".join(stuffing.feed(part) for part in parts(text, at))
    assert wire == stuffed(text)
    unstuffing = Unstuffing(normalize=False)
    assert b"".join(unstuffing.feed(part) for part in parts(wire, at)) == text
    assert unstuffed(wire) == text


@given(octets, cuts)
def test_strays_in_parts(text: bytes, at: list[int]) -> None:
    text += b"\r\n"
    strays = Strays()
    assert [strays.feed(part) for part in parts(text, at)][-1] == stray(text)


def test_what_is_kept_of_a_large_message_is_bounded() -> None:
    reader = DataReader(10**9, 1000)
    for _ in range(1000):
        assert not reader.feed(b"x" * 999 + b".")
        if reader.large:
            reader.take()
            assert len(reader._buffer) < 5
    assert reader.large and not reader.too_large
    assert reader.feed(b"\r\n.\r\nNOOP\r\n")
    assert (reader.take(), reader.rest, reader.body) == (b"xxx.\r\n", b"NOOP\r\n", None)


@pytest.mark.parametrize("limit", [10, 1000])
def test_a_small_limit_comes_before_a_large_message(limit: int) -> None:
    reader = DataReader(limit, 5000)
    assert not reader.feed(b"x" * 4000)
    assert (reader.large, reader.too_large) == (False, True)


def test_given_up_by_the_caller_only_the_end_is_looked_for() -> None:
    reader = DataReader(10**9, 100)
    assert not reader.feed(b"x" * 200)
    reader.take()
    reader.too_large = True
    for _ in range(10):
        assert not reader.feed(b"y" * 10_000)
        assert len(reader._buffer) < 5
    assert reader.feed(b"\r\n.\r\nQUIT\r\n")
    assert reader.rest == b"QUIT\r\n"
