"""Which addresses an MX answer may lead to: none that belongs to a private or special network, unless it is listed.

Whoever owns a domain chooses where its MX points; without this check, mail is a way to talk to hosts behind the relay.
Pure. `delivery` asks before connecting, `connection` again for the address really connected to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from relayd.config.values import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Permitted:
    """Call it with the text of an address: whether untrusted hosts may lead there."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def __call__(self, text: str) -> bool:
        """O(networks)."""
        address = _innermost(ipaddress.ip_address(text.partition("%")[0]))
        return _is_public(address) or any(address in network for network in self._networks)


def _innermost(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped or 6to4 address leads to."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _is_public(address: Address) -> bool:
    # RFC 3879: site-local addresses are no longer special, but networks that had them have private hosts there.
    local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (local or address.is_multicast or address.is_reserved or address.is_unspecified)
