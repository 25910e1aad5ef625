"""The kinds of values that options have: what is accepted as text, what it becomes, and how it is written back.

Sizes are octets, durations seconds; names are compared as routing compares them. Knows no option (see `schema`), opens
no file and asks no DNS.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    model_serializer,
    model_validator,
)

from relayd.smtp import address

STANDARD_OUTPUT = Path("-")
"""The log's file when it is none."""

NULL_SENDER = "<>"
"""The null reverse path as a pattern (RFC 5321 §4.5.5)."""

_SIZE = re.compile(r"(\d+)\s*(B|KB|MB|GB|TB)?", re.IGNORECASE)
_SIZE_UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_PATTERN = re.compile(r"(?=.{1,255}\Z)(?:\*\.)?(?:[a-z0-9_-]{1,63}\.)*(?![0-9]+\Z)[a-z0-9_-]{1,63}")
_HOSTNAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)


def _size(value: object) -> object:
    """Octets from "50MB" (units of 1024) or a number."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError('expected a size such as "512KB", "50MB" or "1GB"')
    return int(match[1]) * _SIZE_UNITS[(match[2] or "B").upper()]


def _duration(value: object) -> object:
    """Seconds from "90s", "2m", "4h", "5d" or a number."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError('expected a duration such as "30s", "2m", "4h" or "5d"')
    return float(match[1]) * _DURATION_UNITS[match[2]]


def _largest_unit(value: float, units: dict[str, int] | dict[str, float]) -> str:
    """The value in the largest unit that needs no fraction."""
    name, unit = next((n, u) for n, u in reversed(units.items()) if (u <= value and value % u == 0) or u <= 1)
    return f"{value / unit:.15g}{name}"


def size_text(octets: int) -> str:
    """Octets as the file writes them: "50MB"."""
    return _largest_unit(octets, _SIZE_UNITS)


def duration_text(seconds: float) -> str:
    """Seconds as the file writes them: "2m"."""
    return _largest_unit(seconds, _DURATION_UNITS)


def _host(value: str) -> str:
    """What the system's resolver takes; it raises no OSError for the rest."""
    try:
        value.encode("idna")
    except UnicodeError:
        raise ValueError("expected an address or a host name") from None
    if not value.isprintable() or " " in value:
        raise ValueError("expected an address or a host name")
    return value


def _host_and_port(text: str) -> dict[str, object]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError('expected "host:port"')
    if int(port) > 65535:
        raise ValueError("the port is above 65535")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        raise ValueError('an IPv6 address stands in brackets: "[::1]:25"')
    return {"host": host, "port": int(port)}


class Endpoint(BaseModel):
    """A host and a port: "127.0.0.1:2525", "[::1]:2525", "mail.example.net:587"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, AfterValidator(_host)] = Field(min_length=1)
    port: int = Field(ge=0, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _host_and_port(value) if isinstance(value, str) else value

    @model_serializer
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


MAX_WEIGHT = 1_000_000
"""Of one of several; what matters is their ratio."""

SUBMISSIONS_PORT = 465
"""Where TLS begins with the first octet (RFC 8314 §7.3)."""


class NextHop(BaseModel):
    """A host that takes a route's mail: "host:port", or a table for one that is not the next in a list.

    preference: lower ones first, None for its position. weight: its share among hosts of equal preference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, AfterValidator(_host)] = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    implicit_tls: bool | None = None
    weight: int = Field(default=1, ge=1, le=MAX_WEIGHT)
    preference: int | None = Field(default=None, ge=0, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _host_and_port(value) if isinstance(value, str) else value

    @model_serializer
    def _said(self) -> str | dict[str, object]:
        said = {name: value for name, value in self if name in self.model_fields_set}
        return str(self) if said.keys() <= {"host", "port"} else said

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tls_at_once(self) -> bool:
        """Whether TLS begins with the first octet: as said, else on the port that is kept for it."""
        return self.port == SUBMISSIONS_PORT if self.implicit_tls is None else self.implicit_tls


def _hostname(value: str) -> str:
    if not _HOSTNAME.fullmatch(value):
        raise ValueError("expected a host name of letters, digits, hyphens and dots")
    return value


def _mailbox(value: str) -> str:
    if not value.isascii():
        raise ValueError("expected an ASCII address")
    return address.parse(value)


def _network(value: object) -> object:
    """One reason instead of one for each IP version."""
    if isinstance(value, int):
        raise ValueError('expected a network such as "192.0.2.0/24"')
    return ipaddress.ip_network(value) if isinstance(value, str) else value


def _nameserver(value: str) -> str:
    """An address with or without a port, as aiodns takes it."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        ipaddress.ip_address(Endpoint.model_validate(value).host)
    return value


def _domain_pattern(value: str) -> str:
    """The pattern as routing compares it: A-labels, lower case."""
    if value == "*":
        return value
    prefix = "*." if value.startswith("*.") else ""
    try:
        return prefix + address.route_key(address.parse("postmaster@" + value.removeprefix(prefix)))
    except address.AddressError:
        raise ValueError('expected "example.net", "*.example.net" or "*"') from None


def _host_pattern(value: str) -> str:
    """The pattern as names of mail hosts are compared: lower case, without the root's dot; DNS allows underscores."""
    pattern = value.lower().removesuffix(".")
    if not _HOST_PATTERN.fullmatch(pattern):
        raise ValueError('expected a host name such as "mx.example.net" or "*.example.net"')
    return pattern


def _sender_pattern(value: str) -> str:
    """The pattern as routing compares it: lower case, A-labels; the null reverse path is "<>"."""
    if value == NULL_SENDER:
        return value
    local, at, _ = value.rpartition("@")
    if not at:
        return _domain_pattern(value)
    try:
        path = address.parse(value)
    except address.AddressError:
        raise ValueError('expected "user@example.net", "example.net", "*.example.net", "*" or "<>"') from None
    return f"{local}@{address.route_key(path)}".lower()


def _account(value: str) -> str:
    """The account as envelopes name it."""
    kind, _, name = value.partition(":")
    if kind == "user" and name.isprintable() and name.strip():
        return value
    if kind == "net" and name:
        return f"net:{ipaddress.ip_network(name)}"
    raise ValueError('expected "user:NAME" or "net:192.0.2.0/24"')


def _own_ipv4(value: str) -> str:
    return _own(ipaddress.IPv4Address(value))


def _own_ipv6(value: str) -> str:
    return _own(ipaddress.IPv6Address(value))


def _own(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    text = str(ip)
    if ip.is_unspecified or ip.is_multicast or "%" in text or text.startswith("::ffff:"):
        raise ValueError("expected an address that a network interface can have")
    return text


def _file(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("no path holds a NUL")
    return value


def _printable(value: str) -> str:
    # NUL and SOH separate the parts of PLAIN (RFC 4616 §2) and XOAUTH2.
    if not value.isprintable():
        raise ValueError("control characters are not allowed")
    return value


def _password(value: SecretStr) -> SecretStr:
    if not value.get_secret_value() or "\0" in value.get_secret_value():
        raise ValueError("expected a password without NUL, not empty")
    return value


def _argument(value: str) -> str:
    if "\0" in value:
        raise ValueError("no argument holds a NUL")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(ge=0), PlainSerializer(size_text, when_used="json")]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(duration_text, when_used="json"),
]
Hostname = Annotated[str, AfterValidator(_hostname)]
Mailbox = Annotated[str, AfterValidator(_mailbox)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
DomainPattern = Annotated[str, AfterValidator(_domain_pattern)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
SenderPattern = Annotated[str, AfterValidator(_sender_pattern)]
Account = Annotated[str, AfterValidator(_account)]
OwnIPv4 = Annotated[str, AfterValidator(_own_ipv4)]
OwnIPv6 = Annotated[str, AfterValidator(_own_ipv6)]
Weight = Annotated[int, Field(ge=1, le=MAX_WEIGHT)]
FilePath = Annotated[Path, AfterValidator(_file)]
Printable = Annotated[str, AfterValidator(_printable)]
Password = Annotated[SecretStr, AfterValidator(_password)]
Argument = Annotated[str, AfterValidator(_argument)]
