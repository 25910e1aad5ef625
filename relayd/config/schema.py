"""Every option of relayd.toml: its name, type, default and text. The example file and the manual are made from here.

Owns meaning and validation of values; knows nothing of files (see `load`). Rooms take the section they need.
"""

from __future__ import annotations

import os
import typing
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from relayd.config.values import (
    STANDARD_OUTPUT,
    Account,
    Argument,
    DomainPattern,
    Duration,
    Endpoint,
    FilePath,
    Hostname,
    HostPattern,
    Mailbox,
    Nameserver,
    Network,
    NextHop,
    OwnIPv4,
    OwnIPv6,
    Password,
    Printable,
    SenderPattern,
    Size,
    Weight,
)
from relayd.message import site
from relayd.message.queue_id import MAX_SHARDS


class Section(BaseModel):
    """A table of the file. Unknown keys are errors: a misspelt option must not be silently without effect.

    The texts below options are read by `example` alone: pydantic would, at every start, take a fifth of a second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Quota(Section):
    """How much accounts may send, counted for all workers together; what was used is forgotten by a restart.

    A user whom no quota names has the one without `accounts`, where there is one; a network has none then.
    """

    recipients_per_hour: int = Field(ge=1, examples=[1000])
    """Recipients, of any number of messages, that an account may have within an hour; further ones get 450 4.7.1. Each
    account has as many. Within an hour and five minutes all are free again; refused ones do not count."""
    accounts: tuple[Account, ...] = Field(default=(), examples=[["user:newsletters", "net:10.1.0.0/16"]])
    """Whose: "user:NAME" of those who authenticate, or "net:NETWORK" as it stands in relay.trusted_networks, all hosts
    in it together. Default: each user that is not named elsewhere."""


class SourceAddress(Section):
    """One address of a source: IPv4, IPv6, or one of each. Hosts are reached by the families it has."""

    ipv4: OwnIPv4 | None = Field(default=None, examples=["192.0.2.25"])
    """IPv4 address of this machine."""
    ipv6: OwnIPv6 | None = Field(default=None, examples=["2001:db8::25"])
    """IPv6 address of this machine."""
    hostname: Hostname | None = Field(default=None, examples=["out1.example.net"])
    """Name said in EHLO, which should be what the DNS calls the address. Default: the relay's `hostname`."""
    weight: Weight = 1
    """Its share of the source's mail."""

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.ipv4 is None and self.ipv6 is None:
            raise ValueError("ipv4, ipv6 or both are needed")
        return self


class Source(Section):
    """Addresses of this machine that mail leaves from.

    The mail of one sender to one domain leaves from the same one each time, as greylisting wants it; adding or removing
    an address moves no more mail than it must. The source of a message is its account's, else its route's, else its
    destination's; where there is none, the system takes an address.
    """

    name: Annotated[Printable, Field(min_length=1)]
    """What routes and destinations call it."""
    accounts: tuple[Account, ...] = Field(default=(), examples=[["user:newsletters", "net:10.1.0.0/16"]])
    """Whose mail leaves from it, wherever it goes: "user:NAME" of those who authenticate, or "net:NETWORK" as it
    stands in relay.trusted_networks."""
    addresses: Annotated[tuple[SourceAddress, ...], Field(min_length=1)]
    """The addresses."""


class SiteOptions(Section):
    """What a destination or a route says of the sites it leads to."""

    connections: int | None = Field(default=None, ge=1, examples=[20])
    """Connections at once to a site. Default: delivery.connections_per_site."""
    messages_per_second: float | None = Field(default=None, ge=1 / 3600, allow_inf_nan=False, examples=[10.0])
    """Messages sent to a site in a second, whatever the number of their recipients; no less than one an hour, 0.0003.
    Default: no limit."""
    messages_per_connection: int = Field(default=site.USUAL.messages_per_connection, ge=1)
    """Messages after which a connection is closed."""
    tls: site.Tls | None = Field(default=None, examples=["opportunistic"])
    """none: never. opportunistic: where it is offered, whatever the certificate. encrypt: always, whatever the
    certificate. verify: always, with a certificate for the host's name. Default: opportunistic; with credentials
    verify."""
    retry_schedule: Annotated[tuple[Duration, ...], Field(min_length=1)] | None = Field(
        default=None, examples=[["2m", "10m", "1h"]]
    )
    """Waits between attempts. Default: delivery.retry_schedule."""
    addresses: site.Family = site.Family.ANY
    """Which addresses of a host are used: any, ipv4 or ipv6."""
    eight_bit: Literal["send", "refuse"] = "send"
    """What becomes of a message with octets above 127 at a host without 8BITMIME: it is sent as it is, or fails."""
    source: str | None = Field(default=None, examples=["main"])
    """Name of the source that mail leaves from. Default: whatever address the system takes."""

    @property
    def tls_policy(self) -> site.Tls:
        """As said, else the default."""
        return self.tls or site.Tls.OPPORTUNISTIC


class Destination(SiteOptions):
    """How mail is delivered that goes by MX; mail that a route takes has the route's options.

    The first destination that matches counts. Each limit is counted for each site: all domains with the same mail hosts
    at the same preferences, on the same terms (this destination's) and from the same source address; nothing is counted
    for the destination as a whole.
    """

    domains: tuple[DomainPattern, ...] = Field(default=(), examples=[["example.com", "*.example.com"]])
    """Domains of recipients: "example.net" (exact), "*.example.net" (its subdomains) or "*" (all)."""
    hosts: tuple[HostPattern, ...] = Field(default=(), examples=[["*.protection.outlook.com"]])
    """Mail hosts: "mx.example.net" (exact) or "*.example.net" (names below it). Matches a domain when each of its
    hosts of the best preference matches one of these. Where `domains` are given as well, either is enough. As the hosts
    are known only when a source has been chosen, a destination with `source` has no `hosts`, and stands before those
    that have."""

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not self.domains and not self.hosts:
            raise ValueError("domains, hosts or both are needed")
        return self


class Credentials(Section):
    """Who the relay is at the next hops of a route, and one proof of it: a password, or a token for XOAUTH2."""

    username: Annotated[Printable, Field(min_length=1)]
    """Name to authenticate as (RFC 4954)."""
    password: Password | None = Field(default=None, examples=["********"])
    """The password itself."""
    password_file: FilePath | None = Field(default=None, examples=["smarthost.password"])
    """File whose first line is the password; read for each connection that authenticates. Relative to this file."""
    token_file: FilePath | None = Field(default=None, examples=["smarthost.token"])
    """File whose first line is an OAuth 2.0 access token (RFC 6749), kept fresh by another program. Relative to this
    file."""
    token_command: tuple[Argument, ...] = Field(default=(), examples=[["/usr/local/bin/access-token", "--smtp"]])
    """Program, with its arguments, whose first line of output is an access token. Started without a shell."""
    mechanism: Literal["plain", "login", "xoauth2"] | None = Field(default=None, examples=["plain"])
    """The one SASL mechanism to use. Default: xoauth2 with a token; with a password plain, or login where plain is
    not offered."""


class Route(SiteOptions):
    """Next hops for some mail, instead of its domain's MX.

    A route takes a message when its `domains` match, and its `senders` and `accounts` too where they are given. The
    first route that does counts, so one with conditions stands before one without. Each limit is counted for the route,
    all its domains and next hops together; with a source, for each address of that.
    """

    domains: Annotated[tuple[DomainPattern, ...], Field(min_length=1)]
    """Domains of recipients: "example.net" (exact), "*.example.net" (its subdomains) or "*" (all)."""
    next_hops: Annotated[tuple[NextHop, ...], Field(min_length=1)]
    """Hosts, never looked up as MX: "host:port" in order of preference, or tables such as
    {host="mx.example.net", port=587, weight=2, preference=0, implicit_tls=false}. `preference` is by default the
    position in the list, counted from 0; the lowest is tried first, and hosts of equal preference share the mail by
    `weight`. `implicit_tls` (TLS without STARTTLS) is by default what port 465 has."""
    senders: tuple[SenderPattern, ...] | None = Field(default=None, min_length=1, examples=[["example.net", "<>"]])
    """Reverse paths: "user@example.net", "example.net" (any mailbox of that domain), "*.example.net" (of its
    subdomains), "*" (any mailbox) or "<>" (the null sender, of notifications). Upper and lower case are the same.
    Clients say what they like here: where it matters who sends, ask for `accounts`."""
    accounts: tuple[Account, ...] | None = Field(default=None, min_length=1, examples=[["user:newsletters"]])
    """Who handed the message in: "user:NAME" of those who authenticate, or "net:NETWORK" as it stands in
    relay.trusted_networks."""
    credentials: Credentials | None = None

    @property
    def tls_policy(self) -> site.Tls:
        """As said, else the default: a password goes to nobody who has not shown who he is."""
        return self.tls or (site.Tls.VERIFY if self.credentials else site.Tls.OPPORTUNISTIC)


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
    """User to become after the sockets are bound, when started as root. What that user cannot read, the private key
    perhaps, is not read anew on SIGHUP: the relay says so, and goes on as it is."""


class Settings(Section):
    """The whole file."""

    hostname: Hostname
    """Name in the banner, in EHLO and in trace headers; marks this host in an MX set."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=MAX_SHARDS, examples=[2])
    """Processes that serve, each with its own shards and an equal part of `limits.memory`; other limits are for all of
    them together. 1: no process but this. Default: number of CPUs."""
    spool: Spool = Spool()
    tls: Tls | None = None
    listeners: tuple[Listener, ...] = ()
    relay: Relay = Relay()
    auth: Auth = Auth()
    dns: Dns = Dns()
    limits: Limits = Limits()
    quotas: tuple[Quota, ...] = ()
    delivery: Delivery = Delivery()
    sources: tuple[Source, ...] = ()
    destinations: tuple[Destination, ...] = ()
    routes: tuple[Route, ...] = ()
    local: Local = Local()
    log: Log = Log()
    admin: Admin = Admin()
    process: Process = Process()

    @property
    def shards(self) -> int:
        """Shards of the spool: as said, else as many as workers."""
        return self.spool.shards or self.workers
