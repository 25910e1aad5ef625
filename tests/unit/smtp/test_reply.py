"""Replies: what we write, and what of a peer's bytes counts as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.smtp.reply import MAX_LINE, MAX_REPLY, MAX_TEXT, ProtocolError, Reply, ReplyParser, printable, shortened


def test_every_line_carries_code_and_enhanced_code() -> None:
    assert Reply(250, "2.0.0", "one\ntwo").encode() == b"250-2.0.0 one\r\n250 2.0.0 two\r\n"
    assert Reply(354, "", "go").encode() == b"354 go\r\n"
    assert str(Reply(550, "5.1.1", "no\nsuch")) == "550 5.1.1 no such"


def parse(data: bytes) -> list[Reply]:
    return ReplyParser().feed(data)


def test_replies_are_read() -> None:
    assert parse(b"250 2.1.0 ok\r\n") == [Reply(250, "2.1.0", "ok")]
    assert parse(b"250-a\r\n250-b\r\n250 c\r\n") == [Reply(250, "", "a\nb\nc")]
    assert parse(b"250\r\n") == [Reply(250, "", "")]
    assert parse(b"550-5.7.1 a\r\n550 5.7.1 b\r\n") == [Reply(550, "5.7.1", "a\nb")]
    assert parse(b"550 2.0.0 liar\r\n") == [Reply(550, "", "2.0.0 liar")]
    assert parse(b"250 a\n354 b\n") == [Reply(250, "", "a"), Reply(354, "", "b")]


@pytest.mark.parametrize("cut", range(1, 26))
def test_replies_seen_before_are_read_alike_however_they_arrive(cut: int) -> None:
    data = b"250-a\r\n250 b\r\n354 go\r\n"
    whole = [Reply(250, "", "a\nb"), Reply(354, "", "go")]
    assert parse(b"250 b\r\n") == [Reply(250, "", "b")]
    parser = ReplyParser()
    assert parser.feed(data[:cut]) + parser.feed(data[cut:]) == whole
    assert not parser.pending


def test_what_came_before_a_malformed_reply_counts_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ProtocolError) as raised:
            parse(b"250 ok\r\nhello\r\n")
        assert raised.value.before == [Reply(250, "", "ok")]


@pytest.mark.parametrize(
    "data",
    [b"000 x\r\n", b"199 x\r\n", b"600 x\r\n", b"999 x\r\n", b"-50 x\r\n", b" 25 x\r\n", b"2_5 x\r\n", b"25 x\r\n", b"250X\r\n", b"2500 x\r\n",
     b"250-a\r\n550 b\r\n", b"\r\n", b"hello\r\n", "２５０ x\r\n".encode(), b"x" * (MAX_LINE + 1)],
)  # fmt: skip
def test_anything_else_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


def test_an_endless_reply_is_cut() -> None:
    parser = ReplyParser()
    with pytest.raises(ProtocolError, match="too long"):
        for _ in range(MAX_REPLY):
            parser.feed(b"250-" + b"x" * 100 + b"\r\n")


def test_pending_tells_of_half_a_reply() -> None:
    parser = ReplyParser()
    assert not parser.pending
    assert parser.feed(b"250-a\r\n") == []
    assert parser.pending
    assert len(parser.feed(b"250 b\r\n")) == 1
    assert not parser.pending


@given(st.binary(max_size=60))
def test_kept_text_is_always_printable_and_encodable(raw: bytes) -> None:
    assert printable(raw).isprintable()
    assert printable(raw).encode().decode() == printable(raw)


def test_hostile_text_is_defused() -> None:
    (reply,) = parse(b"550 5.1.1 a\0b\x1b[2Jc\rd\xff\xed\xb3\xbf\r\n")
    assert reply.text.isprintable()
    assert "Final" in shortened(Reply(550, "", "x\nFinal-Recipient: y")).text
    assert "\n" not in shortened(Reply(550, "", "x\nFinal-Recipient: y")).text
    assert len(shortened(Reply(550, "", "x" * 5000)).text) == MAX_TEXT


@given(st.lists(st.sampled_from([b"250 ok\r\n", b"250-a\r\n250 b\r\n", b"354 go\r\n", b"550 5.1.1 no\r\n"]), max_size=6), st.integers(1, 9))
def test_any_cut_gives_the_same_replies(replies: list[bytes], step: int) -> None:
    data = b"".join(replies)
    parser = ReplyParser()
    cut = [reply for start in range(0, len(data), step) for reply in parser.feed(data[start : start + step])]
    assert cut == parse(data)
    assert len(cut) == len(replies)
