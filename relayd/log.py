"""The event log: one function per event, one JSON line per call. A closed vocabulary: nobody else writes lines.

Owns the output file and its reopening. Never given passwords or message content. Text from peers is escaped: a line is
valid JSON on one line whatever the bytes were. Warnings of libraries come through here too (`library`).
"""

from __future__ import annotations

import datetime
import logging
import sys
from typing import IO

import msgspec
import structlog

from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome
from relayd.smtp.reply import Reply

Event = structlog.typing.EventDict

_encode = msgspec.json.Encoder().encode


class _Output:
    """Where lines go; the file under it is swapped when it is reopened."""

    def __init__(self) -> None:
        self._path = "-"
        self._file: IO[bytes] = sys.stdout.buffer

    def open(self, path: str) -> None:
        file: IO[bytes] = sys.stdout.buffer if path == "-" else open(path, "ab", buffering=0)  # noqa: SIM115
        previous, self._file, self._path = self._file, file, path
        if previous is not sys.stdout.buffer:
            previous.close()

    def reopen(self) -> None:
        self.open(self._path)

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


_output = _Output()
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def _render(_logger: object, _method: str, event: Event) -> bytes:
    event["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    try:
        return _encode(event)
    except UnicodeEncodeError:
        return _encode({key: _plain(value) for key, value in event.items()})


def _plain(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _Libraries(logging.Handler):
    """Sends what libraries log through stdlib logging into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        library(record.levelname.lower(), record.name, record.getMessage(), record.exc_info)


def configure(file: str, level: str) -> None:
    """Open the log; called once by the process, before anything is logged. OSError when the file cannot be opened."""
    _output.open(file)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(_output),  # type: ignore[arg-type]  # only write and flush are used
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)
    # aiosmtpd logs every command, credentials among them, at INFO.
    logging.getLogger("mail.log").setLevel(logging.ERROR)


def reopen() -> None:
    """Open the file anew under its path, after it was rotated (SIGHUP)."""
    _output.reopen()


# --- mail -----------------------------------------------------------------------------------------------------------


def accepted(envelope: Envelope, *, protocol: str, seconds: float) -> None:
    """A message was stored and answered 250."""
    _log.info(
        "accepted",
        id=envelope.id,
        sender=envelope.sender,
        recipients=len(envelope.recipients),
        size=envelope.size,
        account=envelope.account,
        client=envelope.client,
        protocol=protocol,
        seconds=round(seconds, 4),
    )


def rejected(client: str, account: str, verb: str, reply: Reply) -> None:
    """A command of a client was refused. The command's text is not logged: it may be a misplaced password."""
    _log.info("rejected", client=client, account=account, verb=verb, reply=str(reply))


def attempted(envelope: Envelope, recipient: str, outcome: Outcome, *, state: str, attempts: int, delay: float) -> None:
    """A recipient's attempt ended, durably. state: delivered, deferred, failed or expired; delay: age in seconds."""
    _log.info(
        state,
        id=envelope.id,
        sender=envelope.sender,
        recipient=recipient,
        account=envelope.account,
        host=outcome.host,
        reply=str(outcome.reply),
        scope=outcome.scope.value,
        uncertain=outcome.uncertain,
        attempts=attempts,
        delay=round(delay, 3),
    )


def notified(original: str, notification: str, recipient: str) -> None:
    """A delivery status notification was queued for a sender."""
    _log.info("notified", id=original, notification=notification, recipient=recipient)


def unnotified(original: str, recipients: int) -> None:
    """Mail from the null sender failed: nobody is told (RFC 5321 §6.1)."""
    _log.warning("unnotified", id=original, recipients=recipients)


# --- sessions -------------------------------------------------------------------------------------------------------


def authenticated(client: str, user: str, mechanism: str) -> None:
    """A client proved who it is."""
    _log.info("authenticated", client=client, user=user, mechanism=mechanism)


def authentication_failed(client: str, user: str, mechanism: str, *, limited: bool) -> None:
    """Credentials were wrong, or not looked at because of a limit."""
    _log.warning("authentication-failed", client=client, user=user, mechanism=mechanism, limited=limited)


def session_refused(client: str, reason: str) -> None:
    """A connection was closed by policy, limit or time-out."""
    _log.info("session-refused", client=client, reason=reason)


# --- the service ----------------------------------------------------------------------------------------------------


def started(**facts: object) -> None:
    """The service is ready: listeners are open."""
    _log.info("started", **facts)


def stopping(reason: str) -> None:
    """The service drains."""
    _log.info("stopping", reason=reason)


def stopped(**facts: object) -> None:
    """The service has ended."""
    _log.info("stopped", **facts)


def recovered(shard: int, messages: int, quarantined: int, torn: int, seconds: float) -> None:
    """A shard of the spool was opened."""
    level = logging.WARNING if quarantined or torn else logging.INFO
    counts = {"messages": messages, "quarantined": quarantined, "torn": torn}
    _log.log(level, "recovered", shard=shard, **counts, seconds=round(seconds, 3))


def quarantined(shard: int, file: str, offset: int, length: int, reason: str) -> None:
    """Part of the spool could not be read and was set aside."""
    _log.error("quarantined", shard=shard, file=file, offset=offset, length=length, reason=reason)


def spool_failed(shard: int, error: str) -> None:
    """A commit failed; accepting has stopped until one succeeds."""
    _log.error("spool-failed", shard=shard, error=error)


def spool_healthy(shard: int) -> None:
    """Commits succeed again."""
    _log.warning("spool-healthy", shard=shard)


def alert(what: str, **facts: object) -> None:
    """Something an operator should look at: our own credentials refused, descriptors spent, users file unreadable."""
    _log.error("alert", what=what, **facts)


def bug(where: str, **facts: object) -> None:
    """An unexpected exception was contained; called inside its handler, the traceback goes with it."""
    _log.error("bug", where=where, exc_info=True, **facts)


def library(level: str, name: str, message: str, exc_info: object) -> None:
    """A library warned."""
    _log.log(logging.getLevelNamesMapping()[level.upper()], "library", name=name, message=message, exc_info=exc_info)
