"""A delivery status notification as bytes (RFC 3464, RFC 6522; RFC 6533 for internationalized senders). Pure.

Everything a peer or the original message contributed is hostile: texts are printable and folded, the boundary comes
from the notification's own unpredictable id. Made by outbound's `bounce`.
"""

from __future__ import annotations

import datetime
import email.utils
import textwrap
from collections.abc import Iterator

import msgspec

from relayd.smtp.address import Address
from relayd.smtp.reply import MAX_TEXT, Reply

HEADER_LIMIT = 50_000
"""Octets of the original's header that are returned (Postfix's bounce_size_limit)."""

_FOLD = 200
"""Characters of a line of a peer's text; RFC 5322 §2.1.1 allows 998 octets."""


class Failure(msgspec.Struct, frozen=True):
    """A recipient that is given up. status: RFC 3463 code, class 5. host: name of the peer, "" when none answered."""

    recipient: Address
    status: str
    reply: Reply
    host: str
    at: float


class Report(msgspec.Struct, frozen=True):
    """What a notification tells.

    id: its own queue id. original: the message's. arrived, at: wall seconds. header: of the original, any octets.
    """

    id: str
    hostname: str
    sender: Address
    original: str
    arrived: float
    at: float
    failures: tuple[Failure, ...]
    header: bytes


def compose(report: Report) -> bytes:
    """The message, lines ended by CRLF. O(recipients + header)."""
    boundary = f"relayd-{report.id}"
    international = not report.sender.isascii()
    status = "global-delivery-status" if international else "delivery-status"
    header = _returned(report.header)
    parts = [
        _part("text/plain; charset=utf-8", _text(report).encode()),
        _part(f"message/{status}", _fields(report, international=international).encode()),
        _part("message/global-headers" if international else "text/rfc822-headers", header),
    ]
    opening = f"--{boundary}\r\n".encode()
    return b"".join(
        [
            _header(report, boundary, status).encode(),
            b"This is a message in MIME format.\r\n\r\n",
            *(opening + part for part in parts),
            f"--{boundary}--\r\n".encode(),
        ]
    )


def header_of(body: bytes) -> bytes:
    """The header of a message, without the empty line that ends it."""
    if body.startswith(b"\r\n"):
        return b""
    end = body.find(b"\r\n\r\n")
    return body[: end + 2] if end >= 0 else body


def _header(report: Report, boundary: str, status: str) -> str:
    return "".join(
        f"{line}\r\n"
        for line in (
            f"From: Mail Delivery System <MAILER-DAEMON@{report.hostname}>",
            f"To: <{report.sender}>",
            "Subject: Undelivered mail returned to sender",
            f"Date: {_date(report.at)}",
            f"Message-ID: <{report.id}@{report.hostname}>",
            "Auto-Submitted: auto-replied",  # RFC 3834 §5
            "MIME-Version: 1.0",
            f'Content-Type: multipart/report; report-type={status};\r\n boundary="{boundary}"',
            "Content-Transfer-Encoding: 8bit",
            "",
        )
    )


def _part(kind: str, content: bytes) -> bytes:
    encoding = "7bit" if content.isascii() else "8bit"
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    # The CRLF before a boundary belongs to the boundary (RFC 2046 §5.1.1).
    return head.encode() + content + b"\r\n"


def _text(report: Report) -> str:
    """For people."""
    lines = [
        f"This is the mail system at {report.hostname}.",
        "",
        "Your message could not be delivered to the recipients below.",
        "It will not be tried again.",
    ]
    for failure in report.failures:
        said = f"{failure.host} said: {failure.reply}" if failure.host else str(failure.reply)
        lines += ["", f"<{failure.recipient}>", *_wrapped(_cut(said), "    ")]
    lines += ["", f"Queue id: {report.original}", ""]
    return "\r\n".join(lines)


def _fields(report: Report, *, international: bool) -> str:
    """The machine-readable part: fields of the message, then of each recipient (RFC 3464 §2)."""
    blocks = [
        [f"Reporting-MTA: dns; {report.hostname}", f"Arrival-Date: {_date(report.arrived)}"],
        *(list(_recipient_fields(failure, international=international)) for failure in report.failures),
    ]
    return "\r\n".join("".join(f"{line}\r\n" for line in block) for block in blocks)


def _recipient_fields(failure: Failure, *, international: bool) -> Iterator[str]:
    yield f"Final-Recipient: {_typed(failure.recipient, international=international)}"
    yield "Action: failed"
    yield f"Status: {failure.status}"
    if failure.host:
        yield f"Remote-MTA: dns; {failure.host}"
    kind = "smtp" if failure.host else "x-relayd"
    text = _cut(str(failure.reply))
    said = text if international else text.encode("ascii", "replace").decode("ascii")
    yield "\r\n ".join(_wrapped(f"Diagnostic-Code: {kind}; {said}", ""))
    yield f"Last-Attempt-Date: {_date(failure.at)}"


def _typed(recipient: Address, *, international: bool) -> str:
    if recipient.isascii():
        return f"rfc822; {recipient}"
    if international:
        return f"utf-8; {recipient}"
    # RFC 6533 §3: utf-8-addr-xtext, for a report that has to stay ASCII.
    return "utf-8; " + "".join(c if "!" <= c <= "~" and c not in "\\+=" else f"\\x{{{ord(c):X}}}" for c in recipient)


def _returned(header: bytes) -> bytes:
    """The original's header, cut between lines."""
    if len(header) <= HEADER_LIMIT:
        return header
    end = header.rfind(b"\r\n", 0, HEADER_LIMIT)
    return header[: end + 2] if end >= 0 else b""


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _FOLD, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _cut(text: str) -> str:
    """Printable, on one line, and no longer than a reply that is kept."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_TEXT]


def _date(seconds: float) -> str:
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
