"""The trace field put before every message taken (RFC 5321 §4.4): who gave it, how, under which id, when.

Pure, bytes out. What the client chose (its HELO name) is reduced to letters, digits and `.:-[]` before it is written.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import re

from relayd.smtp.address import Address

_UNSAFE = re.compile(r"[^A-Za-z0-9.:\-\[\]]")


def keyword(*, extended: bool, tls: bool, authenticated: bool, utf8: bool) -> str:
    """The protocol name of the `with` clause: RFC 3848 §2, and RFC 6531 §4.3 where SMTPUTF8 was asked for."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if utf8 else "ESMTP") + "S" * tls + "A" * authenticated


def trace(
    *,
    helo: str,
    client: str,
    hostname: str,
    protocol: str,
    tls: str,
    queue_id: str,
    recipient: Address | None,
    priority: int,
    at: float,
) -> bytes:
    """The field, folded, CRLF at its end. tls: "TLSv1.3 CIPHER" or "". recipient: only where there is a single one.

    client: IP address in text. priority: told where it is not 0 (RFC 6710 §4.1). at: wall seconds.
    """
    clauses = [f"for <{recipient}>"] if recipient else []
    if priority:
        clauses.append(f"PRIORITY {priority}")
    lines = (
        f"Received: from {_UNSAFE.sub('-', helo) or 'unknown'} ({literal(client)})",
        f"\tby {hostname} with {protocol}{f' ({tls})' if tls else ''} id {queue_id}",
        f"\t{' '.join(clauses)}; {date(at)}",
        "",
    )
    return "\r\n".join(lines).encode()


def literal(client: str) -> str:
    """An IP address as RFC 5321 §4.1.3 writes it."""
    return f"[IPv6:{client}]" if ":" in client else f"[{client}]"


def date(at: float) -> str:
    """Wall seconds as RFC 5322 §3.3 writes them, in UTC."""
    return _date(int(at))


@functools.lru_cache(maxsize=16)
def _date(at: int) -> str:
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(at, datetime.UTC))
