"""What relayd looks at in a message's header (RFC 5322 §2.2), found by searches over bytes: no parser, no line loop.

Pure. A header is what precedes the first empty line; bodies are bytes whose lines end in CRLF. Every function is
linear in the header, however hostile. Used by inbound through `submission` and on its own.
"""

from __future__ import annotations

import re

import msgspec

# Possessive, so that a header of a million odd lines costs one pass.
_FIELDS = re.compile(rb"(?:[!-9;-~]++[ \t]*+:[^\n]*+\n|[ \t][^\n]*+\n)*+")
_FIELD_START = re.compile(rb"[!-9;-~]++[ \t]*+:|[ \t]")


class Header(msgspec.Struct, frozen=True, gc=False):
    """Where a header ends and what it holds. end: offset of the empty line, or of the first line that is no field.

    lowered: CRLF and the header in lower case, so that every field name stands behind a CRLF.
    """

    end: int
    lowered: bytes

    def count(self, name: bytes) -> int:
        """How many fields have this name (lower case)."""
        return self.lowered.count(b"\r\n" + name + b":")

    def has(self, name: bytes) -> bool:
        """Whether a field has this name (lower case); white space before the colon is let pass (RFC 5322 §4.5)."""
        line = b"\r\n" + name
        if line + b":" in self.lowered:
            return True
        return line in self.lowered and re.search(re.escape(line) + rb"[ \t]++:", self.lowered) is not None


def scanned(body: bytes, limit: int) -> Header | None:
    """The header of a message, or None when it is longer than `limit` octets."""
    end = _end(body, limit)
    if end > limit:
        return None
    return Header(end, b"\r\n" + body[:end].lower())


def _end(body: bytes, limit: int) -> int:
    if body.startswith(b"\r\n"):
        return 0
    empty = body.find(b"\r\n\r\n", 0, limit + 4)
    if empty >= 0:
        return empty + 2
    if len(body) <= limit:
        return len(body)
    # No empty line in sight: a long text without a header is not a long header.
    fields = _FIELDS.match(body, 0, limit + 1)
    end = fields.end() if fields else 0
    return limit + 1 if _FIELD_START.match(body, end) else end


def starts_with_field(body: bytes) -> bool:
    """Whether the message has a header at all, be it an empty one."""
    # White space in front continues a field, and there is none to continue.
    return body.startswith(b"\r\n") or (body[:1] not in (b" ", b"\t") and _FIELD_START.match(body) is not None)
