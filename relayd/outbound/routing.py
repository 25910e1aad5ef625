"""Where mail goes: the first matching route of the configuration, an address literal, or the domain's MX.

Owns the order of these three, and what the configuration says of each (terms, source); knows nothing of connections.
The dispatcher asks it for the way of each message's domains, and for a way's site, which it keeps for as long as it
is valid.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from relayd.config import schema
from relayd.config.values import NULL_SENDER
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site, Source, Terms, Way
from relayd.outbound.sources import Pool
from relayd.resolver.client import Resolver
from relayd.smtp import reply
from relayd.smtp.address import Address, literal_address, route_key

CACHED_WAYS = 10_000
"""Ways kept where they depend on the domain alone."""

_ANY_SOURCE = Source()


class Router:
    """The way of a message, and the site of a way.

    `way` is O(labels of the domain) however many routes there are, plus O(routes with conditions that match the
    domain), plus O(addresses of the source); O(1) for a domain of late where neither conditions nor sources are
    configured. `known` is O(1), and so is `route` beside asking the DNS and O(labels) for each host. Memory: the
    configuration and CACHED_WAYS.
    """

    def __init__(self, settings: schema.Settings, resolver: Resolver) -> None:
        """`settings`: sources that are named in it are there (`config.load`)."""
        self._resolver = resolver
        self._port = settings.delivery.port
        self._routes = _Patterns(route.domains for route in settings.routes)
        self._conditions = [_Conditions.of(route) for route in settings.routes]
        self._sites = [_site(number, route, settings.delivery) for number, route in enumerate(settings.routes)]
        self._destinations = _Destinations(settings)
        self._pools = _Pools(settings)
        depends_on_sender = bool(settings.sources) or any(route.senders or route.accounts for route in settings.routes)
        self._shared = None if depends_on_sender else functools.lru_cache(CACHED_WAYS)(self._way_of_anybody)

    def way(self, envelope: Envelope, domain: str) -> Way:
        """How the message's recipients in `domain` (a route key) go."""
        if self._shared is not None:
            return self._shared(domain)
        route = next((n for n in self._routes.matching(domain) if self._conditions[n].met(envelope)), -1)
        destination = self._destinations.of_domain(domain) if route < 0 else -1
        pool = self._pools.find(envelope.account, route, destination)
        return Way(domain, route, pool.choose(envelope.sender, domain) if pool else _ANY_SOURCE)

    def known(self, way: Way) -> Site | None:
        """The site of a route or an address literal, None when the domain's MX decide."""
        if way.route >= 0:
            site = self._sites[way.route]
            return site if way.source == _ANY_SOURCE else msgspec.structs.replace(site, source=way.source)
        if way.domain.startswith("["):
            # RFC 5321 §4.1.3; the address is the sender's choice, so it is not trusted.
            return self._site(way, ((literal_address(way.domain),),))
        return None

    async def route(self, way: Way) -> tuple[Site, float] | Outcome:
        """The site and how many seconds that holds, or why there is none."""
        if (site := self.known(way)) is not None:
            return site, math.inf
        if not way.domain:
            return Outcome(Verdict.DEFERRED, Scope.SITE, reply.NO_DOMAIN)
        found = await self._resolver.mail_hosts(way.domain)
        if isinstance(found, Outcome):
            return found
        names, valid = found
        return self._site(way, names), valid

    def terms(self, way: Way) -> Terms:
        """What is said of the way's domain, where its hosts are not known."""
        return self._destinations.terms(way.domain, ())

    def _way_of_anybody(self, domain: str) -> Way:
        return Way(domain, next(self._routes.matching(domain), -1))

    def _site(self, way: Way, names: tuple[tuple[str, ...], ...]) -> Site:
        groups = tuple(tuple(Host(name, self._port) for name in group) for group in names)
        return Site(groups, self._destinations.terms(way.domain, names[0]), way.source)


class _Patterns:
    """Positions in a list by patterns of its items: "mx.example.net", "*.example.net", "*"."""

    def __init__(self, items: Iterable[Iterable[str]]) -> None:
        self._positions: dict[str, list[int]] = {}
        for position, patterns in enumerate(items):
            for pattern in patterns:
                self._positions.setdefault(pattern, []).append(position)

    def matching(self, name: str) -> Iterator[int]:
        """Positions of the items that match, in order, some of them twice. O(labels) until the first."""
        found = [self._positions[pattern] for pattern in _patterns(name) if pattern in self._positions]
        return heapq.merge(*found) if len(found) > 1 else iter(found[0] if found else ())


class _Conditions(NamedTuple):
    """Who a route is for; None: for anybody."""

    senders: frozenset[str] | None
    accounts: frozenset[str] | None

    @classmethod
    def of(cls, route: schema.Route) -> _Conditions:
        """Those of the route."""
        return cls(*(None if names is None else frozenset(names) for names in (route.senders, route.accounts)))

    def met(self, envelope: Envelope) -> bool:
        """Whether the route is for the message's sender and account."""
        if self.accounts is not None and envelope.account not in self.accounts:
            return False
        return self.senders is None or not self.senders.isdisjoint(_sender_names(envelope.sender))


class _Destinations:
    """What the configuration says of mail that goes by MX."""

    def __init__(self, settings: schema.Settings) -> None:
        self._domains = _Patterns(destination.domains for destination in settings.destinations)
        self._hosts = _Patterns(destination.hosts for destination in settings.destinations)
        self._terms = [
            _terms(f"destinations[{number}]", destination, settings.delivery)
            for number, destination in enumerate(settings.destinations)
        ]
        self._usual = Terms(connections=settings.delivery.connections_per_site)

    def of_domain(self, domain: str) -> int:
        """The first destination that names the domain, -1 for none."""
        return next(self._domains.matching(domain), -1)

    def terms(self, domain: str, best_hosts: Iterable[str]) -> Terms:
        """Of the first destination that names the domain, or every one of its best hosts, if there are any."""
        by_host = [set(self._hosts.matching(name)) for name in best_hosts]
        all_hosts = set.intersection(*by_host) if by_host else ()
        first = min((*all_hosts, *self._domains.matching(domain)), default=-1)
        return self._usual if first < 0 else self._terms[first]


class _Pools:
    """The addresses that mail leaves from, by whatever chooses them."""

    def __init__(self, settings: schema.Settings) -> None:
        pools = {source.name: Pool(source.addresses) for source in settings.sources}
        self._accounts = {account: pools[source.name] for source in settings.sources for account in source.accounts}
        self._routes = [pools[route.source] if route.source else None for route in settings.routes]
        self._destinations = [pools[one.source] if one.source else None for one in settings.destinations]

    def find(self, account: str, route: int, destination: int) -> Pool | None:
        """The account's, else the route's, else the destination's, else none; positions are -1 for none."""
        if (pool := self._accounts.get(account)) is not None:
            return pool
        if route >= 0:
            return self._routes[route]
        return self._destinations[destination] if destination >= 0 else None


def _site(number: int, route: schema.Route, delivery: schema.Delivery) -> Site:
    """The site of a route: its hosts were configured, so they are trusted."""
    groups: dict[int, list[Host]] = {}
    for position, hop in enumerate(route.next_hops):
        host = Host(hop.host, hop.port, hop.weight, hop.tls_at_once)
        groups.setdefault(position if hop.preference is None else hop.preference, []).append(host)
    ordered = tuple(tuple(sorted(groups[preference], key=msgspec.structs.astuple)) for preference in sorted(groups))
    return Site(ordered, msgspec.structs.replace(_terms(f"routes[{number}]", route, delivery), trusted=True))


def _terms(name: str, options: schema.SiteOptions, delivery: schema.Delivery) -> Terms:
    return Terms(
        name=name,
        tls=options.tls_policy,
        family=options.addresses,
        connections=options.connections or delivery.connections_per_site,
        messages_per_second=options.messages_per_second or 0.0,
        messages_per_connection=options.messages_per_connection,
        retry_schedule=options.retry_schedule or (),
        refuse_8bit=options.eight_bit == "refuse",
    )


@functools.lru_cache(128)  # several routes ask for the same sender, and the next message may be from it
def _sender_names(sender: Address) -> frozenset[str]:
    """Every pattern that matches the sender."""
    if not sender:
        return frozenset({NULL_SENDER})
    domain = route_key(sender)
    return frozenset({f"{sender.rpartition('@')[0]}@{domain}".lower(), *_patterns(domain)})


def _patterns(name: str) -> Iterator[str]:
    """Every pattern that matches the name of a domain or host."""
    yield name
    if not name.startswith("["):
        rest = name
        while dot := rest.find(".") + 1:
            rest = rest[dot:]
            yield "*." + rest
    yield "*"
