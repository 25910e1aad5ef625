"""Every option of relayd.toml: its name, type, default and text. The example file and the manual are made from here.

Owns meaning and validation of values; knows nothing of files (see `load`). Rooms take the section they need.
"""

from __future__ import annotations

import ipaddress
import os
import re
import typing
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from relayd.message.queue_id import MAX_SHARDS
from relayd.smtp import address

STANDARD_OUTPUT = Path("-")
"""The log's file when it is none."""

_SIZE = re.compile(r"(\d+)\s*(B|KB|MB|GB|TB)?", re.IGNORECASE)
_SIZE_UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
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


class Endpoint(BaseModel):
    """A host and a port: "127.0.0.1:2525", "[::1]:2525", "mail.example.net:587"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, AfterValidator(_host)] = Field(min_length=1)
    port: int = Field(ge=0, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise ValueError('expected "host:port"')
        if int(port) > 65535:
            raise ValueError("the port is above 65535")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif ":" in host:
            raise ValueError('an IPv6 address stands in brackets: "[::1]:25"')
        return {"host": host, "port": int(port)}

    @model_serializer
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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


def _account(value: str) -> str:
    """The account as inbound names it, so that none is silently without effect."""
    kind, _, name = value.partition(":")
    if kind == "net":
        return f"net:{ipaddress.ip_network(name)}"
    if kind != "user" or not name:
        raise ValueError('expected "user:NAME" or "net:NETWORK"')
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
Account = Annotated[str, AfterValidator(_account)]


def _file(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("no path holds a NUL")
    return value


FilePath = Annotated[Path, AfterValidator(_file)]


class Section(BaseModel):
    """A table of the file. Unknown keys are errors: a misspelt option must not be silently without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section a field holds: as it is, optional, or as the items of a tuple; None for a plain option."""
    for candidate in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(candidate, type) and typing.get_origin(candidate) is None and issubclass(candidate, Section):
            return candidate
    return None


class ListenerKind(str, Enum):
    """What a listener is for."""

    SUBMISSION = "submission"
    SUBMISSIONS = "submissions"
    RELAY = "relay"


class Spool(Section):
    """Where accepted mail is kept."""

    path: FilePath = Path("spool")
    """Directory of the queue, on a local disk. Relative to this file."""
    paths: tuple[FilePath, ...] = Field(default=(), examples=[["/disk1/spool", "/disk2/spool"]])
    """Directories among which the shards are spread, in turn: one on each disk. A shard that is in one of them stays
    there: take none out while its shards hold mail. Default: `path` alone, which keeps the control socket."""
    shards: int | None = Field(default=None, ge=1, le=MAX_SHARDS, examples=[2])
    """Journals the queue is divided into; at least `workers`. Default: `workers`."""

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where shards are."""
        return self.paths or (self.path,)


class Tls(Section):
    """The certificate of the listeners. Listeners that need one refuse to start without it."""

    certificate: FilePath
    """PEM file with the certificate and its chain. Relative to this file."""
    private_key: FilePath
    """PEM file with the private key, without a passphrase. Relative to this file."""


class Listener(Section):
    """A socket that takes mail."""

    bind: Endpoint
    """Address and port."""
    kind: ListenerKind
    """submission: STARTTLS, AUTH required. submissions: TLS at once, AUTH required. relay: trusted networks."""
    bare_lf: Literal["reject", "normalize"] = "reject"
    """What to do with a LF without CR in message data: refuse the message, or make it CRLF."""


class Relay(Section):
    """Who may send without authentication, through `relay` listeners."""

    trusted_networks: tuple[Network, ...] = Field(default=(), examples=[["127.0.0.0/8", "::1/128"]])
    """Networks whose hosts may relay. Default: none."""


class Auth(Section):
    """Who may submit mail."""

    users_file: FilePath = Path("users")
    """Names and argon2 hashes, kept by `relayd user`. Relative to this file."""


class Dns(Section):
    """Where names are resolved."""

    nameservers: tuple[Nameserver, ...] = Field(default=(), examples=[["127.0.0.1:5353"]])
    """Servers as "address" or "address:port". Default: the system's."""


class Limits(Section):
    """Bounds on what a client may use."""

    message_size: Size = 50 * 1024**2
    """Octets of one message, told to clients as SIZE."""
    recipients: int = Field(default=1000, ge=1)
    """Recipients of one message; further ones get 452 4.5.3."""
    connections: int = Field(default=2000, ge=1)
    """Inbound connections at once."""
    connections_per_client: int = Field(default=100, ge=1)
    """Inbound connections at once from one address; trusted networks are exempt."""
    errors_per_session: int = Field(default=20, ge=1)
    """Refused commands after which a session is closed with 421."""
    header_size: Size = 256 * 1024
    """Octets of a message's header."""
    inline_body: Size = 512 * 1024
    """Octets of a message above which it is streamed to a file of its own; more than `header_size`."""
    minimum_data_rate: Size = 500
    """Octets per second a client must keep up while sending a message."""
    memory: Size = 512 * 1024**2
    """Octets of message bodies held in memory, of large ones what waits for the disk; beyond, MAIL gets 452 4.3.1."""
    disk_reserve: Size = 1024**3
    """Octets of the spool's disk kept free; below, MAIL gets 452 4.3.1."""

    @model_validator(mode="after")
    def _holds_a_header(self) -> Self:
        # A header is completed before the message's first octet is written.
        if self.inline_body <= self.header_size:
            raise ValueError("inline_body must be above header_size")
        return self


class Delivery(Section):
    """How mail leaves."""

    port: int = Field(default=25, ge=1, le=65535)
    """Port of hosts found by MX."""
    private_next_hops: tuple[Network, ...] = Field(default=(), examples=[["10.0.0.0/8"]])
    """Private networks in which MX answers are trusted. Routes always are."""
    retry_schedule: Annotated[tuple[Duration, ...], Field(min_length=1)] = (
        120.0,
        300.0,
        600.0,
        1200.0,
        2400.0,
        4800.0,
        9600.0,
        14400.0,
    )
    """Waits between attempts, each ±10 %; the last repeats."""
    max_age: Duration = 5 * 86400.0
    """Age at which mail that could not be delivered is returned."""
    connections_per_site: int = Field(default=20, ge=1)
    """Connections at once to one destination site."""
    interactive_share: float = Field(default=0.2, ge=0, le=0.9)
    """Share of the connections to a site that is kept for interactive mail where some was sent in the last ten minutes;
    at least one of two. Interactive is what has a priority above 0 (MT-PRIORITY, RFC 6710); 0 keeps none."""
    interactive_accounts: tuple[Account, ...] = Field(default=(), examples=[["user:otp"]])
    """Accounts whose mail is all interactive: "user:NAME", or "net:NETWORK" as in relay.trusted_networks."""


class Route(Section):
    """Next hops for some domains, instead of their MX."""

    domains: Annotated[tuple[DomainPattern, ...], Field(min_length=1)]
    """"example.net" (exact), "*.example.net" (its subdomains) or "*" (all)."""
    next_hops: Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    """Hosts in order of preference; never looked up as MX."""


class Local(Section):
    """Mail for this host itself."""

    postmaster: Mailbox | None = Field(default=None, examples=["ops@example.net"])
    """Where mail for <postmaster> and postmaster@hostname goes. Other mail for hostname is refused with 5.1.1."""


class Log(Section):
    """The event log: one JSON line an event."""

    file: FilePath = STANDARD_OUTPUT
    """Path, or "-" for standard output. Relative to this file; reopened on SIGHUP."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""


class Admin(Section):
    """The operators' HTTP port: /metrics, /healthz, /readyz."""

    bind: Endpoint | None = Endpoint(host="127.0.0.1", port=9925)
    """Address and port; answers only requests for the host it is bound to."""


class Process(Section):
    """What the process may do."""

    user: str | None = Field(default=None, examples=["relayd"])
    """User to become after the sockets are bound, when started as root."""


class Settings(Section):
    """The whole file."""

    hostname: Hostname
    """Name in the banner, in EHLO and in trace headers; marks this host in an MX set."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=MAX_SHARDS, examples=[2])
    """Worker processes. Default: number of CPUs."""
    spool: Spool = Spool()
    tls: Tls | None = None
    listeners: tuple[Listener, ...] = ()
    relay: Relay = Relay()
    auth: Auth = Auth()
    dns: Dns = Dns()
    limits: Limits = Limits()
    delivery: Delivery = Delivery()
    routes: tuple[Route, ...] = ()
    local: Local = Local()
    log: Log = Log()
    admin: Admin = Admin()
    process: Process = Process()

    @property
    def shards(self) -> int:
        """Shards of the spool: as said, else as many as workers."""
        return self.spool.shards or self.workers
