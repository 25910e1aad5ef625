import pytest

from relayd.config.schema import Limits
from relayd.inbound.filing import Filing
from relayd.inbound.incoming import Incoming
from relayd.inbound.terms import Timing
from relayd.smtp import reply
from relayd.spool.memory import Memory

TIMING = Timing(idle=100.0, data_grace=10.0)


def no_filing() -> Filing:
    raise AssertionError("a small message")


def incoming(memory: Memory, **limits) -> Incoming:
    return Incoming(Limits(**limits), TIMING, memory, 1000.0, no_filing)


def test_memory_is_held_until_it_is_given_back():
    memory = Memory(1000)
    body = incoming(memory)
    assert not body.feed(b"x" * 100)
    assert memory.used == 100
    assert body.feed(b"y\r\n.\r\nQUIT\r\n")
    assert body.body(normalize_lf=False) == b"x" * 100 + b"y\r\n"
    assert body.rest() == b"QUIT\r\n"
    assert body.trade(300)
    assert memory.used == 300
    body.give_back()
    assert memory.used == 300, "traded: the caller's"


def test_without_memory_the_rest_is_read_over():
    memory = Memory(150)
    body = incoming(memory)
    assert not body.feed(b"x" * 100)
    assert not body.feed(b"x" * 100)
    assert memory.used == 0
    assert body.feed(b"\r\n.\r\n")
    assert body.body(normalize_lf=False) is reply.NO_SPACE


def test_size_counts_without_stuffing():
    memory = Memory(10**6)
    for octets, fits in ((100, True), (102, False)):
        body = incoming(memory, message_size=100)
        lines = b"." * octets
        assert body.feed(b"." + lines[:-2] + b"\r\n.\r\n")
        assert (body.body(normalize_lf=False) == lines[:-2] + b"\r\n") is fits
        body.give_back()
    assert memory.used == 0


def test_endless():
    memory = Memory(10**6)
    body = incoming(memory, message_size=100)
    assert not body.feed(b"x" * 190)
    assert body.feed(b"x" * 100)
    assert body.endless
    assert body.overflow() is reply.MESSAGE_TOO_LARGE
    assert memory.used == 0


def test_deadline_follows_the_rate():
    body = incoming(Memory(10**6), minimum_data_rate=100)
    assert body.deadline(1000.0) == 1010.0
    body.feed(b"x" * 1000)
    assert body.deadline(1005.0) == 1020.0
    body.feed(b"x" * 100_000)
    assert body.deadline(1005.0) == 1105.0, "idle"
    assert incoming(Memory(10), minimum_data_rate=0).deadline(1000.0) == 1100.0


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (b"a\nb\r\n", "bare LF", b"a\r\nb\r\n"),
        (b"a\rb\r\n", "bare CR", "bare CR"),
        (b"a\0b\r\n", "NUL", "NUL"),
        (b"a\r\n", b"a\r\n", b"a\r\n"),
    ],
)
def test_stray_octets(text, strict, lenient):
    for normalize, expected in ((False, strict), (True, lenient)):
        body = incoming(Memory(1000))
        assert body.feed(text + b".\r\n")
        assert body.body(normalize_lf=normalize) == (reply.stray(expected) if isinstance(expected, str) else expected)
