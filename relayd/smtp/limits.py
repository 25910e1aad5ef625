"""What a server says it takes in one session, and in one transaction: the LIMITS extension (RFC 9422).

Pure. Outbound reads it from the answer to EHLO; `connection` holds to it.
"""

from __future__ import annotations

import re

import msgspec

_LIMIT = re.compile(r"(MAILMAX|RCPTMAX)=([1-9][0-9]{0,5})", re.ASCII | re.IGNORECASE)


class Limits(msgspec.Struct, frozen=True):
    """Messages of a session, recipients of a transaction, which have one domain anyway; None: not limited."""

    mails: int | None = None
    recipients: int | None = None


def parse(text: str) -> Limits:
    """The parameters of LIMITS. What is unknown or malformed says nothing; of a limit said twice the lower one holds.

    RFC 9422 §4: one to six digits, the first not 0. O(octets).
    """
    said: dict[str, int] = {}
    for word in text.split(" "):
        if match := _LIMIT.fullmatch(word):
            name, value = match[1].upper(), int(match[2])
            said[name] = min(value, said.get(name, value))
    return Limits(said.get("MAILMAX"), said.get("RCPTMAX"))
