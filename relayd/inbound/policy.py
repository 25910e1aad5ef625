"""Who may send here and to whom: trusted networks, relaying, mail for this host itself.

Decides from values, keeps nothing, does no I/O. The limits on connections are `admission`'s, those of a message
`transaction`'s and `incoming`'s.
"""

from __future__ import annotations

import functools
import ipaddress

from relayd.config.schema import Settings
from relayd.smtp import reply
from relayd.smtp.address import Address, domain_of, route_key
from relayd.smtp.reply import Reply

KNOWN_CLIENTS = 4096
"""Addresses of which it is remembered whether they are trusted: to parse one costs as much as to accept it."""


class Policy:
    """The rules of one configuration. O(trusted networks) for a client's first connection, O(1) for the rest."""

    def __init__(self, settings: Settings) -> None:
        self._networks = settings.relay.trusted_networks
        self.trusted_network = functools.lru_cache(KNOWN_CLIENTS)(self._trusted_network)
        """The trusted network an address is in, "" when in none."""
        self._hostname = settings.hostname.lower()
        self._postmaster = Address(settings.local.postmaster) if settings.local.postmaster else None

    def _trusted_network(self, client: str) -> str:
        address = ipaddress.ip_address(client)
        return next((str(network) for network in self._networks if address in network), "")

    def destination(self, recipient: Address) -> Address | Reply:
        """Where mail for a recipient goes: as it was said, or to the postmaster; or why nowhere.

        RFC 5321 §4.5.1: <postmaster> needs no domain. Other mail for this host itself has no mailbox here.
        """
        domain = domain_of(recipient)
        if domain and route_key(recipient) != self._hostname:
            return recipient
        local = recipient.rpartition("@")[0] if domain else recipient
        if local.lower() == "postmaster" and self._postmaster is not None:
            return self._postmaster
        return reply.NO_SUCH_USER


def client_address(peer: object) -> str:
    """The IP address of a socket's peer: no scope, and IPv4 as itself where IPv6 sockets see it mapped."""
    host = str(peer[0]) if isinstance(peer, tuple) else ""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or address)


def subscriber(client: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 /64."""
    return str(ipaddress.IPv6Network((client, 64), strict=False)) if ":" in client else client
