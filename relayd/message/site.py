"""Where mail goes: the way that a message's recipients in one domain take, and the site that this leads to.

Values alone. Outbound's router makes them of the configuration and the DNS; the scheduler queues by way and by site
and looks into neither, but for a site's limits.
"""

from __future__ import annotations

import enum

import msgspec


class Tls(enum.Enum):
    """What is asked of a session with a next hop."""

    NONE = "none"
    """Never STARTTLS."""
    OPPORTUNISTIC = "opportunistic"
    """TLS where it is offered, whatever the certificate; in clear where the handshake fails (RFC 7435)."""
    ENCRYPT = "encrypt"
    """TLS, whatever the certificate, or no delivery."""
    VERIFY = "verify"
    """TLS with a certificate of a known authority for the host's name, or no delivery."""


class Family(enum.Enum):
    """Which addresses of a host are used."""

    ANY = "any"
    IPV4 = "ipv4"
    IPV6 = "ipv6"


class Host(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """A name (or address) and a port to connect to.

    weight: its share among the hosts of its group. implicit_tls: TLS from the first octet (RFC 8314 §3.3).
    """

    name: str
    port: int
    weight: int = 1
    implicit_tls: bool = False

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Source(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """Addresses of this machine from which connections are made; empty: whichever the system takes.

    hostname: said in EHLO, empty for the relay's own name. With one address alone, hosts are reached by its family.
    """

    hostname: str = ""
    ipv4: str = ""
    ipv6: str = ""


class Terms(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """What the configuration says of a site.

    name: of the route or destination that says so, "routes[0]". trusted: the hosts were configured (a route), so
    private addresses are allowed. connections: at once, at most. messages_per_second: 0 for no limit.
    retry_schedule: seconds between attempts; empty: the usual. refuse_8bit: 8-bit mail fails where 8BITMIME is missing.
    """

    name: str = ""
    trusted: bool = False
    tls: Tls = Tls.OPPORTUNISTIC
    family: Family = Family.ANY
    connections: int = 20
    messages_per_second: float = 0.0
    messages_per_connection: int = 100
    retry_schedule: tuple[float, ...] = ()
    refuse_8bit: bool = False


USUAL = Terms()


class Site(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """Hosts on terms, from a source; domains with equal sites share connections, windows and rates.

    groups: hosts by preference, best first; within a group sorted, so that equal sets are equal keys.
    """

    groups: tuple[tuple[Host, ...], ...]
    terms: Terms = USUAL
    source: Source = Source()

    def __str__(self) -> str:
        return ", ".join("|".join(map(str, group)) for group in self.groups)


class Way(msgspec.Struct, frozen=True, array_like=True, gc=False, cache_hash=True):
    """What decides where mail goes: the recipients' domain, and what the configuration says of its sender.

    domain: the route key (`smtp.address`). route: the position of the route that takes it, -1 where MX do. Mail that
    goes the same way goes to the same site.
    """

    domain: str
    route: int = -1
    source: Source = Source()
