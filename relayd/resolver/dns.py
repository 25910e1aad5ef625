"""Asks the DNS for records of one type, through aiodns, following CNAMEs. The only module that knows aiodns.

An answer is a list of records, empty where the name exists without them; what the DNS refuses or cannot say is an
Outcome. Must not know what the records are for: `client` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiodns
import pycares
from aiodns.error import ARES_ENODATA, ARES_ENOTFOUND, DNSError
from pycares import AAAARecordData, ARecordData, CNAMERecordData, MXRecordData

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.smtp import reply

MAX_CNAMES = 8
"""Aliases followed for one question; a loop is longer than any chain."""

NOT_FOUND = Outcome(Verdict.FAILED, Scope.SITE, reply.DOMAIN_NOT_FOUND)

_TYPES = {"MX": MXRecordData, "A": ARecordData, "AAAA": AAAARecordData}
# c-ares takes 250 ms as the first wait for a server that is known to be fast and doubles it each time: 3.75 s in all,
# enough for a slow recursion behind it.
_TRIES = 4


def deferred(why: str) -> Outcome:
    """Trouble of the DNS, not of the name: to be tried again."""
    return Outcome(Verdict.DEFERRED, Scope.SITE, reply.unresolved(why))


class Dns:
    """One aiodns resolver, made at the first question inside the running loop.

    One for the life of the process: each has a thread of its own. A question ends within `seconds`, of which a server
    that does not answer takes two fifths before the next one is asked.
    """

    def __init__(self, nameservers: Sequence[str], seconds: float) -> None:
        """`nameservers`: "address" or "address:port"; none for the system's."""
        self._nameservers = list(nameservers)
        self._seconds = seconds
        self._resolver: aiodns.DNSResolver | None = None
        self._closed = False

    async def records(self, name: str, kind: str) -> tuple[list[pycares.DNSRecord], float] | Outcome:
        """Records of `kind` ("MX", "A", "AAAA") and the least TTL on the way to them, in seconds."""
        ttl = float("inf")
        followed = 0
        while True:
            answer = await self._ask(name, kind)
            if isinstance(answer, Outcome):
                return answer
            ttl = min((ttl, *(record.ttl for record in answer)))
            aliases = [record for record in answer if isinstance(record.data, CNAMERecordData)]
            followed += len(aliases)
            if followed > MAX_CNAMES:
                return deferred("too many aliases (CNAME)")
            wanted = [record for record in answer if isinstance(record.data, _TYPES[kind])]
            if wanted or not aliases:
                return wanted, ttl
            # A server that does not follow for us; one that does is asked once more for what it said has no records.
            name = _end_of(name, aliases)

    async def close(self) -> None:
        """Questions under way end as deferred, and so do later ones; safe to call twice."""
        self._closed = True
        if self._resolver is not None:
            await self._resolver.close()

    async def _ask(self, name: str, kind: str) -> list[pycares.DNSRecord] | Outcome:
        if self._closed:
            return deferred("shutting down")
        try:
            async with asyncio.timeout(self._seconds):
                result = await self._connected().query_dns(name, kind)
        except TimeoutError:
            return deferred("timed out")
        except DNSError as error:
            return _refusal(error)
        except pycares.AresError as error:
            # Out of descriptors or threads, or an address of a server that is none: local trouble defers (I4).
            return deferred(f"DNS client does not start: {error}")
        if not result.answer:
            # c-ares reports codes it has no error for (NOTAUTH, YXDOMAIN) as success; an empty answer is ENODATA.
            return deferred("DNS server answered with an unknown error")
        return result.answer

    def _connected(self) -> aiodns.DNSResolver:
        if self._resolver is None:
            # A server known to be dead is not asked first again, so that the first wait is paid once.
            self._resolver = aiodns.DNSResolver(
                self._nameservers or None, asyncio.get_running_loop(), timeout=self._seconds * 0.4, tries=_TRIES
            )
        return self._resolver


def _refusal(error: DNSError) -> list[pycares.DNSRecord] | Outcome:
    code, text = error.args
    if code == ARES_ENODATA:
        return []
    # RFC 8020: nothing exists at the name or below it.
    return NOT_FOUND if code == ARES_ENOTFOUND else deferred(text)


def _end_of(name: str, aliases: list[pycares.DNSRecord]) -> str:
    targets = {alias.name.lower(): alias.data.cname for alias in aliases if isinstance(alias.data, CNAMERecordData)}
    while (target := targets.pop(name.lower(), None)) is not None:
        name = target
    return name
