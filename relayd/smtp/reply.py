"""Replies of SMTP: the value, the constants this server answers with, and a strict parser for what peers answer.

Inbound returns a `Reply` from each verb and one loop writes it; outbound reads peers' replies through `ReplyParser`.
Texts and enhanced codes (RFC 3463, RFC 2034 §4) live here and nowhere else.
"""

from __future__ import annotations

import re

import msgspec

MAX_LINE = 8192
"""Octets of one reply line read from a peer; RFC 5321 §4.5.3.1.5 says 512, real EHLO lines are longer."""

MAX_REPLY = 32768
"""Octets of one whole reply, continuation lines included."""

MAX_TEXT = 1024
"""Characters of a peer's reply that are kept (spool, log, DSN)."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """One reply: `code` is 200 to 599, `text` is printable and may hold newlines between its lines.

    `enhanced` is the RFC 3463 code ("5.7.1") or empty where RFC 2034 §4 wants none (greeting, EHLO, 3xx).
    """

    code: int
    enhanced: str
    text: str

    def encode(self) -> bytes:
        """The bytes on the wire, CRLF included, each line with its code (RFC 5321 §4.2.1, RFC 2034 §4)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = self.text.split("\n")
        last = len(lines) - 1
        return "".join(
            f"{self.code}{'-' if number < last else ' '}{prefix}{line}\r\n" for number, line in enumerate(lines)
        ).encode("utf-8", "replace")

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text.replace("\n", " "))))


class ProtocolError(Exception):
    """The peer sent something that is not an SMTP reply."""


class ReplyParser:
    """Bytes of a peer in, replies out. Strict: three ASCII digits, the first 2 to 5, one code for all lines.

    Bounded by MAX_LINE and MAX_REPLY, so a peer that never ends costs that much memory. O(1) per byte.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._code = b""
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether part of a reply has arrived: then no command may be sent."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes, return the replies they complete; raise ProtocolError on anything else."""
        self._buffer += data
        replies = []
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            if (reply := self._line(bytes(self._buffer[start:end]).removesuffix(b"\r"))) is not None:
                replies.append(reply)
            start = end + 1
        del self._buffer[:start]
        if len(self._buffer) > MAX_LINE:
            raise ProtocolError("reply line too long")
        return replies

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line)
        self._size += len(line)
        if match is None or (self._code and match[1] != self._code):
            raise ProtocolError(f"malformed reply {printable(line)[:100]!r}")
        if len(line) > MAX_LINE or self._size > MAX_REPLY:
            raise ProtocolError("reply too long")
        self._code = match[1]
        self._lines.append(match[3] or b"")
        if match[2] == b"-":
            return None
        reply = parsed(int(self._code), b"\n".join(self._lines))
        self._lines, self._code, self._size = [], b"", 0
        return reply


def parsed(code: int, raw: bytes) -> Reply:
    """A peer's reply from its code and the text of its lines: escaped, and its enhanced code split off."""
    lines = [printable(line).strip() for line in raw.split(b"\n")]
    match = _ENHANCED.match(lines[0])
    enhanced = match[1] if match and match[1][0] == str(code)[0] else ""
    if enhanced:
        lines = [line.removeprefix(enhanced).strip() for line in lines]
    # EHLO replies are read line by line and are bounded already by MAX_REPLY; others are cut where they are kept.
    return Reply(code, enhanced, "\n".join(lines))


def printable(raw: bytes) -> str:
    """Hostile bytes as text that is safe in a log, a spool record and a DSN: no controls, no surrogates."""
    text = raw.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shortened(reply: Reply) -> Reply:
    """The reply as it is kept: at most MAX_TEXT characters on one line."""
    text = reply.text.replace("\n", " ")
    return Reply(reply.code, reply.enhanced, text[:MAX_TEXT])
