"""Mail hosts of a domain and addresses of a host, each cached for its time to live.

Must not know routes, sites or what is done with the answers, nor how records are fetched (`dns`). Outbound's router and
delivery ask. What the DNS says does not exist fails, what it cannot say now is deferred, both with scope SITE.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from pycares import AAAARecordData, ARecordData, DNSRecord, MXRecordData

from relayd import clock
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.resolver import mx
from relayd.resolver.cache import Cache
from relayd.resolver.dns import NOT_FOUND, Dns, deferred
from relayd.smtp import reply

Addresses = tuple[str, ...]

T = TypeVar("T")

MIN_TTL, MAX_TTL = 30.0, 3600.0
"""Seconds an answer is used: asked for twice a minute at most, where its TTL is 0, and at least once an hour."""

MAX_ADDRESSES = 8
"""Addresses kept of a host; Postfix tries 5 of a domain."""

CACHED_NAMES = 10_000
"""Names kept, of each of both kinds."""

LOOPBACK = ("::1", "127.0.0.1")

_NO_ADDRESS = Outcome(Verdict.FAILED, Scope.SITE, reply.HOST_NOT_FOUND)
_TIMED_OUT = deferred("timed out")


class Resolver:
    """Names to hosts, hosts to addresses.

    Any call ends within `seconds`, each question to the DNS within half of that. Calls for one name at the same time
    share one question. Failures and trouble are not kept. Memory: CACHED_NAMES of each kind; below that c-ares keeps
    answers until their TTL ends, an hour at most. O(1) for what is cached.
    """

    def __init__(
        self,
        nameservers: Sequence[str],
        own_host: str,
        seconds: float = 10.0,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`nameservers`: "address" or "address:port", none for the system's. `own_host`: our name in MX records."""
        self._own_host = mx.normal(own_host)
        self._dns = Dns(nameservers, seconds / 2)
        self._hosts = Cache(_within(seconds, self._find_hosts), CACHED_NAMES, now)
        self._addresses = Cache(_within(seconds, self._find_addresses), CACHED_NAMES, now)

    async def mail_hosts(self, domain: str) -> tuple[mx.Groups, float] | Outcome:
        """Names of the hosts that take the domain's mail, by preference, and for how many seconds they do."""
        name = mx.normal(domain)
        if not mx.is_host_name(name):
            return NOT_FOUND
        groups, seconds = await self._hosts.get(name)
        return groups if isinstance(groups, Outcome) else (groups, seconds)

    async def addresses(self, host: str) -> Addresses | Outcome:
        """At most MAX_ADDRESSES of the host; the text of an address is itself.

        IPv6 and IPv4 in turn (RFC 8305 §4), IPv6 first: on a machine without it the connect fails at once, and the next
        address is IPv4.
        """
        if _is_address(host):
            return (host,)
        name = mx.normal(host)
        # RFC 6761 §6.3: never asked for, as the DNS could answer anything.
        if name == "localhost" or name.endswith(".localhost"):
            return LOOPBACK
        if not mx.is_host_name(name):
            return _NO_ADDRESS
        addresses, _ = await self._addresses.get(name)
        return addresses

    async def close(self) -> None:
        """Calls under way end as deferred; safe to call twice."""
        await self._dns.close()
        await self._hosts.settled()
        await self._addresses.settled()

    async def _find_hosts(self, domain: str) -> tuple[mx.Groups | Outcome, float]:
        found = await self._dns.records(domain, "MX")
        if isinstance(found, Outcome):
            return found, 0.0
        records, ttl = found
        if not records:
            return await self._find_implicit_host(domain)
        exchanges = [(r.data.priority, r.data.exchange) for r in records if isinstance(r.data, MXRecordData)]
        return self._ordered(exchanges, ttl)

    async def _find_implicit_host(self, domain: str) -> tuple[mx.Groups | Outcome, float]:
        # RFC 5321 §5.1: without MX records the domain is its own host, if it has an address.
        addresses, seconds = await self._addresses.get(domain)
        if isinstance(addresses, Outcome):
            return (NOT_FOUND if addresses.verdict is Verdict.FAILED else addresses), 0.0
        return self._ordered([(0, domain)], seconds)

    def _ordered(self, exchanges: list[tuple[int, str]], ttl: float) -> tuple[mx.Groups | Outcome, float]:
        groups = mx.order(exchanges, self._own_host)
        return groups, 0.0 if isinstance(groups, Outcome) else _clamped(ttl)

    async def _find_addresses(self, host: str) -> tuple[Addresses | Outcome, float]:
        families = await asyncio.gather(self._dns.records(host, "AAAA"), self._dns.records(host, "A"))
        found = [family for family in families if not isinstance(family, Outcome)]
        troubles = [family for family in families if isinstance(family, Outcome) and family.verdict is Verdict.DEFERRED]
        texts = [[_text(record) for record in records] for records, _ in found]
        alternating = (text for turn in itertools.zip_longest(*texts) for text in turn if text is not None)
        if addresses := tuple(itertools.islice(alternating, MAX_ADDRESSES)):
            # With one family in trouble, the other is used, and both are asked for again soon.
            return addresses, MIN_TTL if troubles else _clamped(min(ttl for _, ttl in found))
        return (troubles[0] if troubles else _NO_ADDRESS), 0.0


def _within(
    seconds: float, find: Callable[[str], Awaitable[tuple[T | Outcome, float]]]
) -> Callable[[str], Awaitable[tuple[T | Outcome, float]]]:
    """`find` with a deadline for all its questions together."""

    async def bounded(name: str) -> tuple[T | Outcome, float]:
        try:
            async with asyncio.timeout(seconds):
                return await find(name)
        except TimeoutError:
            return _TIMED_OUT, 0.0

    return bounded


def _clamped(ttl: float) -> float:
    return min(max(ttl, MIN_TTL), MAX_TTL)


def _text(record: DNSRecord) -> str | None:
    return record.data.addr if isinstance(record.data, ARecordData | AAAARecordData) else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
