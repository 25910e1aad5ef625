"""Where a domain's mail goes: the first matching route of the configuration, an address literal, or the domain's MX.

Owns the order of these three; knows nothing of connections. The dispatcher asks it once for a domain and binds the
answer for as long as it is valid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from relayd.config.schema import Route
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site, Terms
from relayd.resolver.client import Resolver
from relayd.smtp import reply
from relayd.smtp.address import Address, literal_address, route_key


class Router:
    """Routes by domain. `known` answers at once, O(labels) however many routes there are; `route` may ask DNS."""

    def __init__(self, routes: Sequence[Route], resolver: Resolver, port: int) -> None:
        self._resolver = resolver
        self._port = port
        self._patterns: dict[str, tuple[int, Site]] = {}
        for position, route in enumerate(routes):
            site = Site(tuple((Host(hop.host, hop.port),) for hop in route.next_hops), Terms(trusted=True))
            for pattern in route.domains:
                # First match wins: an earlier route keeps the pattern.
                self._patterns.setdefault(_folded(pattern), (position, site))

    def known(self, domain: str) -> Site | None:
        """The site of a route or an address literal, None when the domain's MX decide."""
        matches = [match for pattern in _patterns(domain) if (match := self._patterns.get(pattern))]
        if matches:
            return min(matches, key=lambda match: match[0])[1]
        if domain.startswith("["):
            # RFC 5321 §4.1.3; the address is the sender's choice, so it is not trusted.
            return Site(((Host(literal_address(domain), self._port),),))
        return None

    async def route(self, domain: str) -> tuple[Site, float] | Outcome:
        """The site and how many seconds that holds, or why there is none."""
        if (site := self.known(domain)) is not None:
            return site, math.inf
        if not domain:
            return Outcome(Verdict.DEFERRED, Scope.SITE, reply.NO_DOMAIN)
        found = await self._resolver.mail_hosts(domain)
        if isinstance(found, Outcome):
            return found
        groups, valid = found
        return Site(tuple(tuple(Host(name, self._port) for name in group) for group in groups)), valid


def _folded(pattern: str) -> str:
    """A pattern as domains are compared: lower case, A-labels."""
    if pattern == "*":
        return pattern
    star = "*." if pattern.startswith("*.") else ""
    return star + route_key(Address("x@" + pattern.removeprefix("*.")))


def _patterns(domain: str) -> Iterator[str]:
    """Every pattern that matches the domain."""
    yield domain
    if not domain.startswith("["):
        rest = domain
        while dot := rest.find(".") + 1:
            rest = rest[dot:]
            yield "*." + rest
    yield "*"
