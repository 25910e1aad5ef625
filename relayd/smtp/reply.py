"""Replies of SMTP: the value, the constants this server answers with, and a strict parser for what peers answer.

Inbound returns a `Reply` from each verb and one loop writes it; outbound reads peers' replies through `ReplyParser`.
Texts and enhanced codes (RFC 3463, RFC 2034 §4) live here and nowhere else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import msgspec

MAX_LINE = 8192
"""Octets of one reply line read from a peer; RFC 5321 §4.5.3.1.5 says 512, real EHLO lines are longer."""

MAX_REPLY = 32768
"""Octets of one whole reply, continuation lines included."""

MAX_TEXT = 1024
"""Characters of a peer's reply that are kept (spool, log, DSN)."""

_COMMON = 512
"""Octets of replies that are short enough to be remembered."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


class Reply(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """One reply: `code` is 200 to 599, `text` is printable and may hold newlines between its lines.

    `enhanced` is the RFC 3463 code ("5.7.1") or empty where RFC 2034 §4 wants none (greeting, EHLO, 3xx).
    """

    code: int
    enhanced: str
    text: str

    def encode(self) -> bytes:
        """The bytes on the wire, CRLF included, each line with its code (RFC 5321 §4.2.1, RFC 2034 §4)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        if "\n" not in self.text:
            return f"{self.code} {prefix}{self.text}\r\n".encode("utf-8", "replace")
        lines = self.text.split("\n")
        last = len(lines) - 1
        return "".join(
            f"{self.code}{'-' if number < last else ' '}{prefix}{line}\r\n" for number, line in enumerate(lines)
        ).encode("utf-8", "replace")

    def __str__(self) -> str:
        code = f"{self.code} {self.enhanced}" if self.enhanced else str(self.code)
        return f"{code} {self.text}".replace("\n", " ") if self.text else code


class ProtocolError(Exception):
    """The peer sent something that is not an SMTP reply. before: the replies that the same bytes completed first."""

    before: Sequence[Reply] = ()


class ReplyParser:
    """Bytes of a peer in, replies out. Strict: three ASCII digits, the first 2 to 5, one code for all lines.

    Bounded by MAX_LINE and MAX_REPLY, so a peer that never ends costs that much memory. O(1) per byte.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []
        self._code = b""
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether part of a reply has arrived: then no command may be sent."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes, return the replies they complete; raise ProtocolError on anything else."""
        if len(data) <= _COMMON and not self.pending and (known := _whole(data)):
            return list(known)
        replies: list[Reply] = []
        try:
            self._read(data, replies)
        except ProtocolError as error:
            error.before = replies
            raise
        return replies

    def _read(self, data: bytes, replies: list[Reply]) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if (reply := self._line(line.removesuffix(b"\r"))) is not None:
                replies.append(reply)  # noqa: PERF401  # if a later one is malformed, this one has arrived
        if len(self._rest) > MAX_LINE:
            raise ProtocolError("reply line too long")

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


@functools.lru_cache(maxsize=256)
def _whole(data: bytes) -> Sequence[Reply]:
    """The replies of bytes that are whole replies of one line each, none for any other bytes.

    Remembered, because peers say "250 2.1.0 Ok" all day: parsed anew, that was a quarter of a delivery's CPU.
    """
    replies = []
    *lines, rest = data.split(b"\n")
    for line in lines:
        match = _LINE.fullmatch(line.removesuffix(b"\r"))
        if match is None or match[2] == b"-":
            return ()
        replies.append(parsed(int(match[1]), match[3] or b""))
    return () if rest else replies


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
    if "\n" not in reply.text and len(reply.text) <= MAX_TEXT:
        return reply
    return Reply(reply.code, reply.enhanced, reply.text.replace("\n", " ")[:MAX_TEXT])


# --- composed by outbound, where no peer answered or its answer means something else to the sender --------------------

INTERNAL_ERROR = Reply(451, "4.3.0", "Internal error; the message is kept")
LOCAL_TROUBLE = Reply(451, "4.3.0", "Local resources are short; the message is kept")
SHUTTING_DOWN = Reply(451, "4.3.2", "Shut down during the attempt")
NO_DOMAIN = Reply(451, "4.3.5", "The recipient has no domain and no route takes it")
NO_ADDRESS = Reply(550, "5.4.4", "No usable address for the destination's hosts")
NO_ADDRESS_YET = Reply(451, "4.4.4", "No usable address for the configured next hops")
NO_ADDRESS_FROM_HERE = Reply(451, "4.4.4", "No address that the configured source or address family can reach")
TOO_LARGE_THERE = Reply(552, "5.3.4", "Message larger than the next hop takes")
NO_8BITMIME_THERE = Reply(554, "5.6.3", "The next hop does not take 8-bit content")  # RFC 6152 §3
NO_SMTPUTF8_THERE = Reply(550, "5.6.7", "The next hop does not take internationalized addresses")
SOURCE_UNUSABLE = Reply(451, "4.3.5", "The configured source address cannot be used; the message is kept")
NO_CREDENTIALS = Reply(451, "4.3.5", "The credentials for the next hop cannot be read; the message is kept")


def unreachable(host: str, why: str) -> Reply:
    """No session with a host came about (RFC 3463 X.4.1)."""
    return Reply(451, "4.4.1", f"{host}: {why}")


def interrupted(host: str, why: str, stage: str) -> Reply:
    """A session ended before its answer (RFC 3463 X.4.2)."""
    return Reply(451, "4.4.2", f"{host}: {why}, waiting for the answer to {stage}")


def not_tried(last: Reply) -> Reply:
    """A site was not reached by others just before, the last of them answered so."""
    return Reply(451, "4.4.1", f"Not tried now, as the site was not reached: {last}")


def is_unreached(reply: Reply) -> bool:
    """Whether it says, as composed here, that no session came about or that one was lost."""
    return reply.code == 451 and reply.enhanced in ("4.4.1", "4.4.2")


def tls_missing(host: str, why: str) -> Reply:
    """TLS that is required did not begin (RFC 3463 X.7.4, security features not supported)."""
    return Reply(451, "4.7.4", f"{host}: TLS is required, but {why}")


def tls_failed(host: str, why: str) -> Reply:
    """A handshake failed, or the certificate is not the one required (RFC 3463 X.7.5, cryptographic failure)."""
    return Reply(451, "4.7.5", f"{host}: TLS handshake failed: {why}")


def login_missing(host: str) -> Reply:
    """A next hop cannot be logged in to with the credentials configured for it (RFC 3463 X.7.4)."""
    return Reply(451, "4.7.4", f"{host}: offers no mechanism for our credentials")


# --- composed by the resolver, where a name leads to no host ---------------------------------------------------------

DOMAIN_NOT_FOUND = Reply(550, "5.1.2", "Domain not found")
NULL_MX = Reply(550, "5.1.10", "Domain does not accept mail (null MX)")  # RFC 7505 §4.3
NO_VALID_MX = Reply(550, "5.4.4", "Domain has no mail exchanger with a valid host name")
LOOPS_BACK = Reply(550, "5.4.6", "Mail for the domain loops back to this host")
HOST_NOT_FOUND = Reply(550, "5.4.4", "Host has no address")


def unresolved(why: str) -> Reply:
    """The DNS gave no usable answer for now."""
    return Reply(451, "4.4.3", f"Name resolution failed: {why}")


# --- said to clients by inbound ---------------------------------------------------------------------------------------

OK = Reply(250, "2.0.0", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Ok")
CANNOT_VERIFY = Reply(252, "2.0.0", "Cannot verify the user, but will take the message and attempt delivery")
SEND_TLS = Reply(220, "2.0.0", "Ready to start TLS")
SEND_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
AUTHENTICATED = Reply(235, "2.7.0", "Authentication successful")
BYE = Reply(221, "2.0.0", "Bye")

CLOSING = Reply(421, "4.3.2", "Service is shutting down")
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "Too many connections, try again later")
TOO_MANY_CONNECTIONS_OF_CLIENT = Reply(421, "4.7.0", "Too many connections from your address")
IDLE_TOO_LONG = Reply(421, "4.4.2", "Waited too long for your command")
DATA_TOO_SLOW = Reply(421, "4.4.2", "The message arrives too slowly")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands without a message")
TOO_MANY_FAILURES = Reply(421, "4.7.0", "Too many failed logins from your address, try again later")
TOO_MANY_FAILURES_OF_ACCOUNT = Reply(454, "4.7.0", "Too many failed logins, try again later")
AUTHENTICATION_BUSY = Reply(454, "4.7.0", "Temporary authentication failure")
NOT_STORED = Reply(451, "4.3.0", "The message cannot be stored now, try again later")
UNEXPECTED = Reply(451, "4.3.0", "Internal error, try again later")
NO_SPACE = Reply(452, "4.3.1", "Insufficient system storage, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
QUOTA_USED_UP = Reply(450, "4.7.1", "Too many recipients within an hour, try again later")

NOT_RECOGNIZED = Reply(500, "5.5.2", "Command not recognized")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")
BARE_LF = Reply(500, "5.5.2", "A line ends with CR LF")
RESPONSE_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long")
BAD_OCTET = Reply(501, "5.5.2", "Command contains octets that are not allowed")
BAD_PARAMETER = Reply(501, "5.5.4", "Malformed parameter")
BAD_RESPONSE = Reply(501, "5.5.2", "Malformed authentication response")
AUTHENTICATION_ABORTED = Reply(501, "5.7.0", "Authentication aborted")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
HELLO_FIRST = Reply(503, "5.5.1", "Send EHLO first")
MAIL_FIRST = Reply(503, "5.5.1", "Send MAIL first")
MAIL_TWICE = Reply(503, "5.5.1", "A sender was given already")
NOT_IN_TRANSACTION = Reply(503, "5.5.1", "Not permitted during a mail transaction")
ALREADY_AUTHENTICATED = Reply(503, "5.5.1", "Already authenticated")
ALREADY_UNDER_TLS = Reply(503, "5.5.1", "TLS is active already")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Unknown authentication mechanism")
AUTHENTICATION_REQUIRED = Reply(530, "5.7.0", "Authentication required")
CREDENTIALS_INVALID = Reply(535, "5.7.8", "Authentication credentials invalid")
ENCRYPTION_REQUIRED = Reply(538, "5.7.11", "Encryption required for authentication")
NO_SUCH_USER = Reply(550, "5.1.1", "No such user here")
RELAYING_DENIED = Reply(550, "5.7.1", "Relaying denied")
MESSAGE_TOO_LARGE = Reply(552, "5.3.4", "Message size exceeds the limit")
HEADER_TOO_LARGE = Reply(552, "5.3.4", "Message header exceeds the limit")
BAD_SENDER = Reply(553, "5.1.7", "Malformed sender address")
BAD_RECIPIENT = Reply(553, "5.1.3", "Malformed recipient address")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "An address that is not ASCII needs SMTPUTF8")
NO_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")
TALKED_TOO_EARLY = Reply(554, "5.5.1", "Wait for the answer before sending more")
NOT_HTTP = Reply(554, "5.5.1", "This is not an HTTP server")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many hops, the message is looping")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognized or not implemented")


def syntax(command: str) -> Reply:
    """What a command should have looked like."""
    return Reply(501, "5.5.4", f"Syntax: {command}")


def stray(what: str) -> Reply:
    """Message data that RFC 5321 §2.3.8 forbids: "bare LF", "bare CR" or "NUL"."""
    return Reply(554, "5.6.0", f"Message contains {what}")


def queued(queue_id: str) -> Reply:
    """The promise."""
    return Reply(250, "2.0.0", f"Ok: queued as {queue_id}")
