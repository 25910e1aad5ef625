"""What a submission server completes in a message (RFC 6409 §8): a missing Date, a missing Message-ID, no Bcc.

Pure, bytes in and bytes out: nothing is parsed and written anew, so what is there stays as it was, byte for byte, and a
message that lacks nothing is returned as it is.
"""

from __future__ import annotations

import re

from relayd.message.header import Header, starts_with_field
from relayd.message.received import date

_BCC = re.compile(rb"(?<=\n)bcc[ \t]*+:[^\n]*+\n(?:[ \t][^\n]*+\n)*+", re.IGNORECASE)


def completed(body: bytes, header: Header, *, hostname: str, queue_id: str, at: float) -> bytes:
    """The message with what it lacked. at: wall seconds. O(header), and one copy where something changes."""
    added = b""
    if not header.has(b"date"):  # RFC 6409 §8.2
        added += f"Date: {date(at)}\r\n".encode()
    if not header.has(b"message-id"):  # RFC 6409 §8.3
        added += f"Message-ID: <{queue_id}@{hostname}>\r\n".encode()
    if header.has(b"bcc"):
        body = _without_bcc(body, header.end)
    if added and not starts_with_field(body):
        # Text without any header: the fields added are its header, and the empty line ends it.
        added += b"\r\n"
    return added + body if added else body


def _without_bcc(body: bytes, end: int) -> bytes:
    """The message without its Bcc fields, which name those the others must not see (RFC 5322 §3.6.3)."""
    return _BCC.sub(b"", b"\r\n" + body[:end])[2:] + body[end:]
