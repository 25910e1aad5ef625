"""The event log: one function per event, one JSON line per call. A closed vocabulary: nobody else writes lines.

Owns the output file and its reopening. Never given passwords or message content. Text from peers is escaped: a line is
valid JSON on one line whatever the bytes were. Warnings of libraries come through here too (`library`).
"""

from __future__ import annotations

import functools
import logging
import select
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO

import msgspec

from relayd import clock
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome, Scope
from relayd.message.site import Site
from relayd.smtp.reply import Reply

Later = Callable[[Callable[[], None]], object]

_LEVELS = logging.getLevelNamesMapping()
_encode = msgspec.json.Encoder().encode


class _Output:
    """Where lines go, from which level on; the file under it is swapped when it is reopened."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.later: Later | None = None
        self._lines: list[bytes] = []
        self._path = "-"
        self._file: IO[bytes] = sys.stdout.buffer
        self._lost = 0
        self._torn = False
        """Whether the file ends inside a line."""

    def open(self, path: str) -> None:
        file: IO[bytes] = sys.stdout.buffer if path == "-" else open(path, "ab", buffering=0)  # noqa: SIM115
        self.flush()
        previous, former = self._file, self._path
        self._file, self._path, self._torn = file, path, False
        if former != "-":
            previous.close()

    def reopen(self) -> None:
        self.open(self._path)

    def add(self, line: bytes, *, at_once: bool) -> None:
        self._lines.append(line)
        if at_once or self.later is None:
            self.flush()
        elif len(self._lines) == 1:
            self.later(self.flush)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        # Other processes write there too. A file opened to append keeps each write together, a pipe only short ones.
        parts = _portions(lines) if self._path == "-" else [lines]
        lost = sum(len(part) for part in parts if not self._written(part))
        if lost:
            self._lost += lost
        elif self._lost:
            lost, self._lost = self._lost, 0
            alert("log lines lost", lines=lost)

    def _written(self, lines: list[bytes]) -> bool:
        """Whether they were: a full disk or a reader that has gone must not stop mail; what is lost is counted."""
        try:
            whole = self._write(b"".join(lines))
            if self._path == "-":
                self._file.flush()
        except (OSError, ValueError):
            return False
        return whole

    def _write(self, text: bytes) -> bool:
        """Whether all of it was written: a disk that fills up takes the beginning of a line."""
        if self._torn:
            text = b"\n" + text
        written = self._file.write(text)
        if written < len(text):
            self._torn = written > 0 or self._torn
            return False
        self._torn = False
        return True


def _portions(lines: list[bytes]) -> list[list[bytes]]:
    """As few as there can be, each of PIPE_BUF octets at most (pipe(7)), unless one line is longer."""
    portions: list[list[bytes]] = []
    room = 0
    for line in lines:
        if not portions or len(line) > room:
            portions.append([])
            room = select.PIPE_BUF
        portions[-1].append(line)
        room -= len(line)
    return portions


_output = _Output()


def _emit(level: int, event: str, **facts: object) -> None:
    """One line. Not structlog: its layers cost four times the encoding and the write together (docs/decisions/0005)."""
    if level < _output.level:
        return
    try:
        text = _encode(facts)
    except UnicodeEncodeError:
        text = _encode({key: _plain(value) for key, value in facts.items()})
    # Put in front as text: one dict of all would cost as much again as encoding it.
    head = f'{{"time":"{_now()}","level":"{_name(level)}","event":"{event}"{"," if facts else ""}'
    _output.add(head.encode() + text[1:] + b"\n", at_once=level >= logging.WARNING)


class _Line(msgspec.Struct, gc=False):
    """What every line begins with. The two events of each message are structs: encoded in half the time of a dict."""

    time: str
    level: str
    event: str


class _Accepted(_Line, gc=False):
    id: str
    sender: str
    recipients: int
    size: int
    account: str
    client: str
    protocol: str
    priority: int
    seconds: float


class _Attempted(_Line, gc=False):
    id: str
    sender: str
    recipient: str
    account: str
    host: str
    reply: str
    scope: Scope
    uncertain: bool
    attempts: int
    delay: float
    category: str | msgspec.UnsetType


def _emit_made(made: _Line) -> None:
    try:
        text = _encode(made)
    except UnicodeEncodeError:
        text = _encode({key: _plain(value) for key, value in msgspec.structs.asdict(made).items()})
    _output.add(text + b"\n", at_once=False)


def _plain(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@functools.lru_cache(maxsize=16)
def _name(level: int) -> str:
    return logging.getLevelName(level).lower()


def _now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return _millisecond(int(clock.wall() * 1000))


@functools.lru_cache(maxsize=1)
def _millisecond(at: int) -> str:
    return f"{_second(at // 1000)}.{at % 1000:03}Z"


@functools.lru_cache(maxsize=1)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


class _Libraries(logging.Handler):
    """Sends what libraries log through stdlib logging into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        library(record.levelno, record.name, record.getMessage(), trace)


def configure(file: str, level: str) -> None:
    """Open the log; called once by the process, before anything is logged. OSError when the file cannot be opened."""
    _output.open(file)
    _output.level = _LEVELS[level.upper()]
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)
    # aiosmtpd logs every command, credentials among them, at INFO.
    logging.getLogger("mail.log").setLevel(logging.ERROR)


def gather(later: Later | None) -> None:
    """From now on the lines of one turn of the event loop leave in one write; `later` is its `call_soon`, None ends it.

    A write for each line lets go of the interpreter, and under load each time costs a turn of the writer threads.
    Warnings are written at once, with what waits before them.
    """
    _output.later = later
    _output.flush()


def reopen() -> None:
    """Open the file anew under its path, after it was rotated (SIGHUP). OSError: the old one stays."""
    _output.reopen()


def rotated() -> None:
    """As `reopen`; where that fails an alert says so."""
    try:
        reopen()
    except OSError as error:
        alert("log file not reopened; the old one stays in use", error=str(error))


# --- mail -----------------------------------------------------------------------------------------------------------


def accepted(envelope: Envelope, *, protocol: str, seconds: float) -> None:
    """A message was stored and answered 250."""
    if _output.level <= logging.INFO:
        _emit_made(
            _Accepted(
                time=_now(),
                level="info",
                event="accepted",
                id=envelope.id,
                sender=envelope.sender,
                recipients=len(envelope.recipients),
                size=envelope.size,
                account=envelope.account,
                client=envelope.client,
                protocol=protocol,
                priority=envelope.priority,
                seconds=int(seconds * 1e4) / 1e4,
            )
        )


def rejected(client: str, account: str, verb: str, reply: Reply) -> None:
    """A command of a client was refused. The command's text is not logged: it may be a misplaced password."""
    _emit(logging.INFO, "rejected", client=client, account=account, verb=verb, reply=str(reply))


def attempted(
    envelope: Envelope,
    recipient: str,
    outcome: Outcome,
    *,
    state: str,
    attempts: int,
    delay: float,
    category: str = "",
) -> None:
    """A recipient's attempt ended, durably. state: delivered, deferred, failed or expired; delay: age in seconds.

    category: why it was not delivered, as in relayd_refusals_total; a delivered line has none.
    """
    if _output.level <= logging.INFO:
        _emit_made(
            _Attempted(
                time=_now(),
                level="info",
                event=state,
                id=envelope.id,
                sender=envelope.sender,
                recipient=recipient,
                account=envelope.account,
                host=outcome.host,
                reply=_text(outcome.reply),
                scope=outcome.scope,
                uncertain=outcome.uncertain,
                attempts=attempts,
                delay=int(delay * 1e3) / 1e3,
                category=category or msgspec.UNSET,
            )
        )


@functools.lru_cache(maxsize=128)
def _text(reply: Reply) -> str:
    """Most are the same few."""
    return str(reply)


def site_changed(
    site: Site, aspect: str, previous: float | None, limit: float | None, outcome: Outcome | None, *, raised: bool
) -> None:
    """A site's window (connections at once), rate (messages a second; null: any number) or health is another.

    Health is 0 while the site is dead, that is, probed by one message at a time. reply: what it answered last.
    """
    answer = {"host": outcome.host, "reply": str(outcome.reply)} if outcome else {}
    level = logging.DEBUG if raised and aspect != "health" else logging.INFO
    _emit(level, aspect, site=str(site), previous=_rounded(previous), limit=_rounded(limit), **answer)


def _rounded(limit: float | None) -> float | None:
    return None if limit is None else round(limit, 3)


def notified(original: str, notification: str, recipient: str) -> None:
    """A delivery status notification was queued for a sender."""
    _emit(logging.INFO, "notified", id=original, notification=notification, recipient=recipient)


def unnotified(original: str, recipients: int) -> None:
    """Mail from the null sender failed: nobody is told (RFC 5321 §6.1)."""
    _emit(logging.WARNING, "unnotified", id=original, recipients=recipients)


# --- sessions -------------------------------------------------------------------------------------------------------


def authenticated(client: str, user: str, mechanism: str) -> None:
    """A client proved who it is."""
    _emit(logging.INFO, "authenticated", client=client, user=user, mechanism=mechanism)


def authentication_failed(client: str, user: str, mechanism: str, *, limited: bool) -> None:
    """Credentials were wrong, or not looked at because of a limit."""
    _emit(logging.WARNING, "authentication-failed", client=client, user=user, mechanism=mechanism, limited=limited)


def session_refused(client: str, reason: str) -> None:
    """A connection was closed by policy, limit or time-out."""
    _emit(logging.INFO, "session-refused", client=client, reason=reason)


# --- the service ----------------------------------------------------------------------------------------------------


def started(**facts: object) -> None:
    """The service is ready: listeners are open."""
    _emit(logging.INFO, "started", **facts)


def stopping(reason: str) -> None:
    """The service drains."""
    _emit(logging.INFO, "stopping", reason=reason)


def stopped(**facts: object) -> None:
    """The service has ended."""
    _emit(logging.INFO, "stopped", **facts)


def worker_died(worker: int, pid: int, status: int) -> None:
    """A worker process ended unasked; another follows. status: as it exited, or minus the signal that ended it."""
    _emit(logging.ERROR, "worker-died", worker=worker, pid=pid, status=status)


def recovered(shard: int, messages: int, quarantined: int, torn: int, seconds: float) -> None:
    """A shard of the spool was opened."""
    level = logging.WARNING if quarantined or torn else logging.INFO
    counts = {"messages": messages, "quarantined": quarantined, "torn": torn}
    _emit(level, "recovered", shard=shard, **counts, seconds=round(seconds, 3))


def quarantined(shard: int, file: str, offset: int, length: int, reason: str) -> None:
    """Part of the spool could not be read and was set aside."""
    _emit(logging.ERROR, "quarantined", shard=shard, file=file, offset=offset, length=length, reason=reason)


def spool_failed(shard: int, error: str) -> None:
    """A commit failed; accepting has stopped until one succeeds."""
    _emit(logging.ERROR, "spool-failed", shard=shard, error=error)


def spool_healthy(shard: int) -> None:
    """Commits succeed again."""
    _emit(logging.WARNING, "spool-healthy", shard=shard)


def alert(what: str, **facts: object) -> None:
    """Something an operator should look at: our own credentials refused, descriptors spent, a quota used up."""
    _emit(logging.ERROR, "alert", what=what, **facts)


def bug(where: str, **facts: object) -> None:
    """An unexpected exception was contained; called inside its handler, the traceback goes with it."""
    _emit(logging.ERROR, "bug", where=where, exception=traceback.format_exc(), **facts)


def library(level: int, name: str, message: str, trace: str) -> None:
    """A library warned."""
    _emit(level, "library", name=name, message=message, exception=trace)
