"""Only CRLF.CRLF ends a message, however its bytes are cut into chunks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.smtp.framing import DataReader, stray, stuffed, with_crlf

NOT_THE_END = [
    b"\n.\n", b"\n.\r", b"\n.\r\n", b"\r.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\x0b.\x0b", b"\x1c.\x1d", b"\x85.\x85", "\u2028.\u2029".encode(),
]  # fmt: skip


def read(chunks: list[bytes], limit: int = 1000) -> DataReader:
    reader = DataReader(limit)
    for chunk in chunks:
        if reader.feed(chunk):
            break
    return reader


@pytest.mark.parametrize("sequence", NOT_THE_END)
@pytest.mark.parametrize("whole", [True, False])
def test_nothing_else_ends_a_message(sequence: bytes, whole: bool) -> None:
    data = b"a" + sequence + b"MAIL FROM:<x@y>\r\n"
    reader = read([data] if whole else [bytes([byte]) for byte in data])
    assert reader.body is None


def test_the_end_at_the_start_is_an_empty_body() -> None:
    reader = read([b".\r\nQUIT\r\n"])
    assert (reader.body, reader.rest, reader.received) == (b"", b"QUIT\r\n", 3)


lines = st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\r", b".").replace(b"\n", b".")), max_size=8)


@given(lines, st.lists(st.integers(0, 150), max_size=5))
def test_stuffing_round_trips_over_any_cut(content: list[bytes], cuts: list[int]) -> None:
    body = b"".join(line + b"\r\n" for line in content)
    wire = stuffed(body) + b".\r\n" + b"NOOP\r\n"
    edges = sorted({0, len(wire), *(min(cut, len(wire)) for cut in cuts)})
    chunks = [wire[a:b] for a, b in itertools.pairwise(edges)]
    reader = DataReader(1000)
    ended = [reader.feed(chunk) for chunk in chunks if reader.body is None]
    assert ended[-1]
    assert reader.body == body
    assert b"NOOP\r\n".startswith(reader.rest)
    assert all(line.startswith(b"..") for line in wire[:-9].split(b"\r\n") if line.startswith(b"."))


@pytest.mark.parametrize(("size", "too_large"), [(99, False), (100, False), (101, True), (500, True)])
def test_the_limit_is_on_the_unstuffed_body(size: int, too_large: bool) -> None:
    body = b"." * (size - 2) + b"\r\n"
    reader = read([stuffed(body) + b".\r\n"], limit=100)
    assert reader.too_large is too_large
    assert reader.body == (b"" if too_large else body)


def test_beyond_the_limit_memory_is_bounded_and_the_end_is_found() -> None:
    reader = DataReader(100)
    for _ in range(1000):
        assert not reader.feed(b"x" * 1000)
    assert len(reader._buffer) < 10  # the bound itself is the promise
    assert not reader.feed(b"\r\n.")
    assert reader.feed(b"\r\nRSET\r\n")
    assert (reader.too_large, reader.rest) == (True, b"RSET\r\n")


@pytest.mark.parametrize(
    ("body", "found"),
    [(b"a\r\nb\r\n", ""), (b"", ""), (b"a\rb\r\n", "bare CR"), (b"a\nb\r\n", "bare LF"), (b"\0\r\n", "NUL"), (b"a\r\r\n", "bare CR"), (b"\n\r\r\n", "bare CR")],
)
def test_strays_are_named(body: bytes, found: str) -> None:
    assert stray(body) == found


def test_bare_lf_becomes_crlf() -> None:
    assert with_crlf(b"\na\n\nb\r\n\n") == b"\r\na\r\n\r\nb\r\n\r\n"


def plainly(body: bytes) -> str:
    """`stray` by its definition, an octet at a time."""
    if 0 in body:
        return "NUL"
    around = list(zip(b"\n" + body, body, body[1:] + b"\0", strict=False))
    if any(octet == 13 and after != 10 for _, octet, after in around):
        return "bare CR"
    return "bare LF" if any(octet == 10 and before != 13 for before, octet, _ in around) else ""


@pytest.mark.parametrize(
    "found", [b"\r\n", b"\r\r\n", b"\r\n\n", b"\n", b"\r", b"\0", b"\n\r", b"\r\n.", b"\r\n..", b"\r\n.\r", b"\n.\r\n"]
)
def test_a_search_of_many_octets_at_once_sees_what_one_by_one_shows(found: bytes) -> None:
    """At each distance from the edges of what the machine looks at together."""
    for size in (1, 15, 16, 31, 33, 63, 64, 65, 127, 129, 200):
        for at in range(size + 1):
            body = b"x" * at + found + b"y" * (size - at) + b"\r\n"
            assert stray(body) == plainly(body), (size, at)
            wire = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in body.split(b"\r\n"))
            assert stuffed(body) == wire, (size, at)
            reader = read([wire + b".\r\nQUIT\r\n"])
            assert (reader.body, reader.rest) == (body, b"QUIT\r\n"), (size, at)


@given(st.text("\r\n.\0ab", max_size=200).map(str.encode))
def test_strays_are_what_their_definition_says(text: bytes) -> None:
    assert stray(text) == plainly(text)
