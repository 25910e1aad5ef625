"""What goes over the control socket: one JSON object on a line each way, and where the socket is.

Owns the requests, the answers and the views of queued messages in them; the commands build the same views from a spool
without a server, so both print alike. Knows neither the server nor the client.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from relayd.spool.records import Message, Result

SOCKET = "control.sock"

MAX_REQUEST = 65536
"""Octets of one request line."""

MAX_LISTED = 10_000
"""Messages in one answer: a tenth of a second of the event loop."""

_MAX_PATH = 100
"""Octets of a Unix socket's address that surely fit; Linux has 108 (unix(7))."""


class _Request(msgspec.Struct, frozen=True, tag_field="command", forbid_unknown_fields=True):
    pass


class QueueList(_Request, frozen=True, tag="queue.list"):
    """Messages, oldest first, whose id, sender, recipient or account contains `filter`; at most `limit` of them."""

    filter: str = ""
    limit: int = 1000


class QueueShow(_Request, frozen=True, tag="queue.show"):
    """One message."""

    id: str


class QueueHold(_Request, frozen=True, tag="queue.hold"):
    """Hold a message back until it is released, or release it."""

    id: str
    held: bool


class StatusQuery(_Request, frozen=True, tag="status"):
    """How the service is."""


Request = QueueHold | QueueList | QueueShow | StatusQuery


class RefusedError(Exception):
    """A request cannot be granted; the text says why, to whoever asked."""


class Answer(msgspec.Struct, frozen=True):
    """`result` when ok, else `error` says why not."""

    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


class Done(msgspec.Struct, frozen=True):
    """What was asked for is done, durably."""


class RecipientView(msgspec.Struct, frozen=True):
    """One recipient: state queued, deferred, delivered, failed or expired; `due` in wall seconds when deferred."""

    address: str
    state: str
    attempts: int
    due: float | None
    reply: str
    host: str


class MessageView(msgspec.Struct, frozen=True):
    """One queued message. state: held, or ready when a recipient may be tried now (or is being tried), else deferred.

    accepted_at in wall seconds, age in seconds, size in octets.
    """

    id: str
    sender: str
    account: str
    client: str
    size: int
    accepted_at: float
    age: float
    state: str
    recipients: list[RecipientView]


class Listing(msgspec.Struct, frozen=True):
    """Messages shown, and how many matched."""

    total: int
    messages: list[MessageView]


class Status(msgspec.Struct, frozen=True):
    """The service: `unready` says why mail is not taken, empty when it is; `queue` counts messages by state."""

    version: str
    pid: int
    hostname: str
    unready: str
    uptime: float
    queue: dict[str, int]
    oldest: float


Answered = Done | Listing | MessageView | Status
"""What a request is answered with."""


class Matches:
    """What a QueueList finds among messages given to it a page at a time. O(messages), memory O(shown)."""

    def __init__(self, query: QueueList, now: float) -> None:
        self._wanted = query.filter.casefold()
        self._limit = min(max(query.limit, 0), MAX_LISTED)
        self._now = now
        self._total = 0
        self._shown: list[MessageView] = []

    def look(self, messages: Iterable[Message]) -> None:
        """Take the next page."""
        for message in messages:
            if not self._wanted or _matches(message, self._wanted):
                self._total += 1
                if self._total <= self._limit:
                    self._shown.append(view(message, self._now))

    def listing(self) -> Listing:
        """The answer."""
        return Listing(self._total, self._shown)


def listing(messages: Iterable[Message], query: QueueList, now: float) -> Listing:
    """The answer to QueueList. O(messages)."""
    matches = Matches(query, now)
    matches.look(messages)
    return matches.listing()


def view(message: Message, now: float) -> MessageView:
    """What is shown of a message; `now` in wall seconds."""
    envelope = message.envelope
    return MessageView(
        id=envelope.id,
        sender=envelope.sender,
        account=envelope.account,
        client=envelope.client,
        size=envelope.size,
        accepted_at=envelope.accepted_at,
        age=round(max(now - envelope.accepted_at, 0.0), 3),
        state=_state(message, now),
        recipients=[_recipient(*pair) for pair in zip(envelope.recipients, message.results, strict=True)],
    )


def _matches(message: Message, wanted: str) -> bool:
    envelope = message.envelope
    texts = (envelope.id, envelope.sender, envelope.account, *envelope.recipients)
    return any(wanted in text.casefold() for text in texts)


def _state(message: Message, now: float) -> str:
    if message.held:
        return "held"
    waiting = [result for result in message.results if result is None or not result.state.final]
    return "ready" if any(result is None or result.due <= now for result in waiting) else "deferred"


def _recipient(address: str, result: Result | None) -> RecipientView:
    if result is None:
        return RecipientView(address, "queued", 0, None, "", "")
    due = None if result.state.final else result.due
    return RecipientView(address, result.state.value, result.attempts, due, str(result.reply), result.host)


@contextlib.contextmanager
def socket_address(spool: Path) -> Iterator[str]:
    """The control socket's address in `spool`, for bind or connect; through /proc where the path is too long."""
    path = spool.absolute() / SOCKET
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield str(path)
        return
    directory = os.open(spool, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)
