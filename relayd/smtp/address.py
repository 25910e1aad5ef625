"""The one envelope parser, for both halves: RFC 5321 §4.1.2 paths, strictly, and what RFC 6531 adds.

Bytes in, `Address` out, or AddressError. An address is kept as the text that was said, never decoded, folded or
repaired: the bytes accepted are the bytes sent. Encoded words are plain atoms here. Source routes are refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NewType

import idna

Address = NewType("Address", str)
"""A validated mailbox, "" for the null reverse path, or "postmaster" alone (RFC 5321 §4.5.1)."""

NULL = Address("")

MAX_LOCAL = 255
"""Octets of a local part. RFC 5321 §4.5.3.1.1 obliges to 64 and wishes for no limit; VERP senders are longer."""

MAX_DOMAIN = 255
"""Octets of a domain (RFC 5321 §4.5.3.1.2)."""

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_LITERAL = r"\[[A-Za-z0-9.:\-]{1,64}\]"
_ASCII = re.compile(
    rf"<(?P<local>[{_ATEXT}]+(?:\.[{_ATEXT}]+)*|{_QUOTED})@(?P<domain>{_LABEL}(?:\.{_LABEL})*|{_LITERAL})>"
)
_WIDE = r"\u0080-\U0010ffff"
_WIDE_QUOTED = rf'"(?:[ !#-\[\]-~{_WIDE}]|\\[ -~])*"'
_WIDE_LABEL = rf"[A-Za-z0-9{_WIDE}](?:[A-Za-z0-9{_WIDE}\-]{{0,61}}[A-Za-z0-9{_WIDE}])?"
_UTF8 = re.compile(
    rf"<(?P<local>[{_ATEXT}{_WIDE}]+(?:\.[{_ATEXT}{_WIDE}]+)*|{_WIDE_QUOTED})"
    rf"@(?P<domain>{_WIDE_LABEL}(?:\.{_WIDE_LABEL})*|{_LITERAL})>"
)
_POSTMASTER = re.compile(r"<postmaster>", re.IGNORECASE)


class AddressError(ValueError):
    """Not a path of RFC 5321."""


def reverse_path(argument: bytes, *, utf8: bool) -> tuple[Address, bytes]:
    """The sender of `MAIL FROM:` and the parameters behind it. `utf8`: the parameters said SMTPUTF8."""
    if argument.startswith(b"<>"):
        return NULL, _rest(argument, 2)
    return _path(argument, utf8=utf8)


def forward_path(argument: bytes, *, utf8: bool) -> tuple[Address, bytes]:
    """The recipient of `RCPT TO:` and the parameters behind it; `<postmaster>` needs no domain."""
    head = argument[:12].decode("latin-1")
    if _POSTMASTER.fullmatch(head):
        return Address(head[1:-1]), _rest(argument, 12)
    return _path(argument, utf8=utf8)


def parse(text: str) -> Address:
    """A bare mailbox from configuration or the command line, non-ASCII allowed; raises AddressError."""
    address, rest = _path(b"<" + text.encode("utf-8", "replace") + b">", utf8=True)
    if rest:
        raise AddressError("text after the address")
    return address


def domain_of(address: Address) -> str:
    """The domain as it was said; "" when there is none."""
    return address.rpartition("@")[2] if "@" in address else ""


def route_key(address: Address) -> str:
    """The domain for routing and grouping alone: A-labels, lower case; literals as they are.

    Never fails on a validated address: `_path` has checked that its U-labels encode (RFC 5891).
    """
    domain = domain_of(address)
    return domain.lower() if domain.isascii() else _a_labels(domain)


def is_ascii(address: Address) -> bool:
    """Whether the address can go to a next hop without SMTPUTF8."""
    return address.isascii()


def _a_labels(domain: str) -> str:
    return idna.encode(domain, uts46=True).decode("ascii").lower()


@functools.lru_cache(maxsize=1024)  # much mail comes from few senders
def _path(argument: bytes, *, utf8: bool) -> tuple[Address, bytes]:
    try:
        text = argument.decode("utf-8" if utf8 else "ascii")
    except UnicodeDecodeError:
        raise AddressError("not UTF-8" if utf8 else "not ASCII; SMTPUTF8 was not asked for") from None
    match = (_ASCII if text.isascii() else _UTF8).match(text)
    if match is None:
        raise AddressError("malformed path")
    path, local, domain = match[0], match["local"], match["domain"]
    if _octets(local) > MAX_LOCAL or _octets(domain) > MAX_DOMAIN:
        raise AddressError("path too long")
    _check_domain(domain)
    if not path.isascii() and not path.isprintable():
        raise AddressError("control character in address")
    return Address(path[1:-1]), _rest(argument, _octets(path))


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _check_domain(domain: str) -> None:
    if domain.startswith("["):
        literal_address(domain)
    elif not domain.isascii():
        try:
            _a_labels(domain)
        except (idna.IDNAError, UnicodeError):
            raise AddressError("domain is not a valid internationalized name") from None


def literal_address(domain: str) -> str:
    """The IP address inside an address literal "[192.0.2.1]" or "[IPv6:2001:db8::1]" (RFC 5321 §4.1.3)."""
    text = domain[1:-1]
    try:
        if text[:5].lower() == "ipv6:":
            return str(ipaddress.IPv6Address(text[5:]))
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise AddressError("malformed address literal") from None


def _rest(argument: bytes, end: int) -> bytes:
    rest = argument[end:]
    if rest and not rest.startswith(b" "):
        raise AddressError("text after the path")
    return rest.strip(b" ")
