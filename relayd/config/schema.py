"""Every option of relayd.toml: its name, type, default and text. The example file and the manual are made from here.

Owns meaning and validation of values; knows nothing of files (see `load`). Rooms take the section they need.
"""

from __future__ import annotations

import ipaddress
import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from relayd.message.queue_id import MAX_SHARDS
from relayd.smtp import address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SIZE = re.compile(r"(\d+)\s*(B|KB|MB|GB|TB)?", re.IGNORECASE)
_SIZE_UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HOSTNAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")


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


class Endpoint(BaseModel):
    """A host and a port: "127.0.0.1:2525", "[::1]:2525", "mail.example.net:587"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int = Field(ge=0, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise ValueError('expected "host:port"')
        return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}

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


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
Hostname = Annotated[str, Field(min_length=1), BeforeValidator(lambda v: _hostname(v) if isinstance(v, str) else v)]
Mailbox = Annotated[str, BeforeValidator(lambda v: _mailbox(v) if isinstance(v, str) else v)]


class Section(BaseModel):
    """A table of the file. Unknown keys are errors: a misspelt option must not be silently without effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ListenerKind(str, Enum):
    """What a listener is for."""

    SUBMISSION = "submission"
    SUBMISSIONS = "submissions"
    RELAY = "relay"


class Spool(Section):
    """Where accepted mail is kept."""

    path: Path = Path("spool")
    """Directory of the queue, on a local disk. Relative to this file."""
    shards: int | None = Field(default=None, ge=1, le=MAX_SHARDS)
    """Journals the queue is divided into; at least `workers`. Default: `workers`."""


class Tls(Section):
    """The certificate of the listeners. Listeners that need one refuse to start without it."""

    certificate: Path
    """PEM file with the certificate and its chain."""
    private_key: Path
    """PEM file with the private key."""


class Listener(Section):
    """A socket that takes mail."""

    bind: Endpoint
    """Address and port."""
    kind: ListenerKind
    """submission: STARTTLS, AUTH required. submissions: implicit TLS, AUTH required. relay: trusted networks, no AUTH."""
    bare_lf: Literal["reject", "normalize"] = "reject"
    """What to do with a LF without CR in message data: refuse the message, or make it CRLF."""


class Relay(Section):
    """Who may send without authentication, through `relay` listeners."""

    trusted_networks: tuple[Network, ...] = ()
    """Networks whose hosts may relay. Default: none."""


class Auth(Section):
    """Who may submit mail."""

    users_file: Path = Path("users")
    """Names and argon2 hashes, kept by `relayd user`. Relative to this file."""


class Dns(Section):
    """Where names are resolved."""

    nameservers: tuple[str, ...] = ()
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
    minimum_data_rate: Size = 500
    """Octets per second a client must keep up while sending a message."""
    memory: Size = 512 * 1024**2
    """Octets of message bodies held in memory; beyond, MAIL gets 452 4.3.1."""
    disk_reserve: Size = 1024**3
    """Octets of the spool's disk kept free; below, MAIL gets 452 4.3.1."""


class Delivery(Section):
    """How mail leaves."""

    port: int = Field(default=25, ge=1, le=65535)
    """Port of hosts found by MX."""
    private_next_hops: tuple[Network, ...] = ()
    """Private networks in which MX answers are trusted. Routes always are."""
    retry_schedule: Annotated[tuple[Duration, ...], Field(min_length=1)] = (120, 300, 600, 1200, 2400, 4800, 9600, 14400)
    """Waits between attempts, each ±10 %; the last repeats."""
    max_age: Duration = 5 * 86400.0
    """Age at which mail that could not be delivered is returned."""
    connections_per_site: int = Field(default=20, ge=1)
    """Connections at once to one destination site."""


class Route(Section):
    """Next hops for some domains, instead of their MX."""

    domains: Annotated[tuple[str, ...], Field(min_length=1)]
    """"example.net" (exact), "*.example.net" (its subdomains) or "*" (all)."""
    next_hops: Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    """Hosts in order of preference; never looked up as MX."""


class Local(Section):
    """Mail for this host itself."""

    postmaster: Mailbox | None = None
    """Where mail for <postmaster> and postmaster@hostname goes. Other mail for hostname is refused with 5.1.1."""


class Log(Section):
    """The event log: one JSON line an event."""

    file: str = "-"
    """Path, or "-" for standard output. Reopened on SIGHUP."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""


class Admin(Section):
    """The operators' HTTP port: /metrics, /healthz, /readyz."""

    bind: Endpoint | None = Endpoint(host="127.0.0.1", port=9925)
    """Address and port; answers only requests for the host it is bound to."""


class Process(Section):
    """What the process may do."""

    user: str | None = None
    """User to become after the sockets are bound, when started as root."""


class Settings(Section):
    """The whole file."""

    hostname: Hostname
    """Name in the banner, in EHLO and in trace headers; marks this host in an MX set."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
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
