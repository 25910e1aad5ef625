"""The event log: whatever the text, one event is one line of JSON, and the file can be rotated."""

import inspect
import io
import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd import log
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply

ENVELOPE = Envelope("000" + "a" * 20, Address("a@b"), (Address("c@d"),), "user:a", 1.0, 10, client="192.0.2.1")
OUTCOME = Outcome(Verdict.FAILED, Scope.RECIPIENT, Reply(550, "5.1.1", "no such user"), "mx[192.0.2.1]:25")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    log.configure(str(path), "info")
    yield path
    log.configure("-", "info")


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_a_message_can_be_followed_by_its_id(file: Path) -> None:
    log.accepted(ENVELOPE, protocol="ESMTPSA", seconds=0.01)
    log.attempted(ENVELOPE, "c@d", OUTCOME, state="failed", attempts=1, delay=0.5)
    first, second = lines(file)
    assert (first["event"], second["event"]) == ("accepted", "failed")
    assert first["id"] == second["id"] == ENVELOPE.id
    assert second["reply"] == "550 5.1.1 no such user"
    assert all("time" in line and "level" in line for line in (first, second))


def test_why_stands_where_something_was_refused_and_nowhere_else(file: Path) -> None:
    log.attempted(ENVELOPE, "c@d", OUTCOME, state="failed", attempts=1, delay=0.5, category="no_mailbox")
    log.attempted(ENVELOPE, "c@d", OUTCOME, state="delivered", attempts=1, delay=0.5)
    refused, delivered = lines(file)
    assert refused["category"] == "no_mailbox"
    assert "category" not in delivered


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(), max_size=30))
def test_hostile_text_stays_on_its_line(file: Path, text: str) -> None:
    before = len(file.read_bytes().split(b"\n"))
    log.session_refused(text, "x\r\n\x1b[2J\udcff" + text)
    log.rejected("c", text, "MAIL", Reply(500, "", text))
    after = file.read_bytes()
    assert len(after.split(b"\n")) == before + 2
    assert not any(byte < 0x20 for byte in after.replace(b"\n", b""))


def test_the_file_is_reopened_after_rotation(file: Path) -> None:
    log.stopping("first")
    file.rename(file.with_suffix(".1"))
    log.stopping("still the old file")
    log.reopen()
    log.stopping("new file")
    assert [line["reason"] for line in lines(file)] == ["new file"]
    assert len(lines(file.with_suffix(".1"))) == 2


def test_libraries_warnings_come_through_and_their_chatter_does_not(file: Path) -> None:
    logging.getLogger("mail.log").info(">> AUTH PLAIN c2VjcmV0")
    logging.getLogger("some.library").warning("odd: %s", "thing")
    assert [(line["event"], line["message"]) for line in lines(file)] == [("library", "odd: thing")]


def test_a_bug_brings_its_traceback(file: Path) -> None:
    try:
        raise ValueError("poison")
    except ValueError:
        log.bug("delivery", id="x")
    (line,) = lines(file)
    assert "ValueError: poison" in str(line["exception"])


def test_no_event_takes_a_password_or_a_body() -> None:
    functions = [f for _, f in inspect.getmembers(log, inspect.isfunction) if f.__module__ == log.__name__]
    names = {name for function in functions for name in inspect.signature(function).parameters}
    assert not names & {"password", "credentials", "secret", "body", "content", "line", "command"}


def test_a_line_cut_short_by_a_full_disk_spoils_no_other(file: Path) -> None:
    log.stopping("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
    try:
        log.stopping("cut")
        log.stopping("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.stopping("after")
    whole, cut, *rest = file.read_bytes().splitlines()
    assert json.loads(whole)["reason"] == "before"
    assert len(cut) == 10
    assert [json.loads(line).get("reason") for line in rest] == ["after", None]
    assert json.loads(rest[1])["lines"] == 2


def test_the_lines_of_one_turn_leave_together_and_warnings_at_once(file: Path) -> None:
    turn: list[Callable[[], None]] = []
    log.gather(turn.append)
    try:
        log.stopping("first")
        log.stopping("second")
        assert lines(file) == []
        turn.pop()()
        assert [line["reason"] for line in lines(file)] == ["first", "second"]
        assert turn == []
        log.stopping("third")
        log.alert("now")
        assert [line["event"] for line in lines(file)][2:] == ["stopping", "alert"]
        log.stopping("last")
    finally:
        log.gather(None)
    assert lines(file)[-1]["reason"] == "last"


def test_standard_output_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is somebody else's, also where it has been replaced since."""
    ours = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", ours)
    log.configure("-", "info")
    monkeypatch.undo()
    log.configure(str(tmp_path / "log"), "info")
    log.configure("-", "info")
    assert not ours.buffer.closed


@pytest.mark.parametrize("lengths", [[], [10], [4096], [4097], [4000, 97], [3000, 1096, 1], [5000, 10, 5000], [100] * 100])
def test_what_goes_into_a_pipe_at_once_stays_together(lengths):
    """Lines of several processes in one pipe: each stays whole, as no write is longer than a pipe keeps together."""
    lines = [bytes(length) for length in lengths]
    portions = log._portions(lines)
    assert [line for portion in portions for line in portion] == lines
    assert all(sum(map(len, portion)) <= 4096 or len(portion) == 1 for portion in portions)
    assert len(portions) <= 2 * sum(lengths) // 4096 + 1
