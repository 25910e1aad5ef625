"""One attempt to deliver one entry: a pooled connection if there is one, else the site's hosts in order.

Owns when to stop; `hosts` says who is asked next, `classify` what replies mean, `attempt` who has which outcome.
Knows nothing of schedules, spool or bounces. The dispatcher calls it once for each attempt.
"""

from __future__ import annotations

import asyncio
from random import Random

from relayd import clock, log, metrics
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Host, Site
from relayd.outbound.addresses import Permitted
from relayd.outbound.attempt import Attempt
from relayd.outbound.classify import MAIL, Stage
from relayd.outbound.connection import Connection
from relayd.outbound.connector import LOCAL_TROUBLE, Connector
from relayd.outbound.hosts import HostMemory, in_order, peer_of, reachable_from
from relayd.outbound.patterns import Effect
from relayd.outbound.pool import Pool
from relayd.outbound.signals import demand
from relayd.resolver.client import Resolver
from relayd.scheduler.entry import Entry
from relayd.smtp import reply
from relayd.spool.bodies import Reading
from relayd.spool.bodyfile import BodyError

MAX_ADDRESSES = 5
"""Addresses asked in one attempt (Postfix's smtp_mx_address_limit)."""

MAX_LOST = 2
"""Sessions that got as far as MAIL and were lost, after which an attempt ends (Postfix's smtp_mx_session_limit)."""

_INTERNAL_ERROR = Outcome(Verdict.DEFERRED, Scope.MESSAGE, reply.INTERNAL_ERROR)
_SHUTTING_DOWN = Outcome(Verdict.DEFERRED, Scope.SESSION, reply.SHUTTING_DOWN)

# No host had an address that may be used: that fails (RFC 3463 X.4.4), but not for our own configuration (I4).
_NO_ADDRESS = Outcome(Verdict.FAILED, Scope.SITE, reply.NO_ADDRESS)
_NO_ADDRESS_YET = Outcome(Verdict.DEFERRED, Scope.SITE, reply.NO_ADDRESS_YET)
_NO_ADDRESS_FROM_HERE = Outcome(Verdict.DEFERRED, Scope.SITE, reply.NO_ADDRESS_FROM_HERE)


class Delivery:
    """Carries entries to sites. Between attempts connections are the pool's, what hosts showed is `HostMemory`'s."""

    def __init__(
        self, connector: Connector, pool: Pool, resolver: Resolver, permitted: Permitted, random: Random
    ) -> None:
        self._connector = connector
        self._pool = pool
        self._resolver = resolver
        self._permitted = permitted
        self._random = random
        self._hosts = HostMemory()

    async def attempt(self, site: Site, entry: Entry, body: bytes | Reading) -> dict[int, Outcome]:
        """An outcome for every recipient of the entry, always: neither a bug nor being cancelled loses an answer.

        Cancelled, it ends at once; a dot that was sent and not answered by then is uncertain (I3).
        """
        attempt = Attempt(entry.message, entry.recipients, body)
        rest = _INTERNAL_ERROR
        try:
            await self._carry(site, attempt)
            rest = attempt.trouble or (_NO_ADDRESS_YET if site.terms.trusted else _NO_ADDRESS)
        except asyncio.CancelledError:
            # Not raised again: the caller has these outcomes to record before it ends.
            rest = _SHUTTING_DOWN
        except BodyError as error:
            log.alert("body unusable", id=entry.message.id, reason=str(error))
        except OSError as error:
            rest = _local(error, entry)
        except Exception:  # noqa: BLE001  # a poison message is isolated: it defers, whatever it broke (I9)
            log.bug("delivery", id=entry.message.id)
            metrics.bugs.inc()
        attempt.end(rest)
        if attempt.uncertain:
            metrics.uncertain_deliveries.inc()
        return attempt.outcomes

    async def _carry(self, site: Site, attempt: Attempt) -> None:
        connection = self._pool.take(site)
        if connection is not None:
            lost = await self._over(connection, site, attempt)
            if lost is MAIL and attempt.transactions == 1:
                # It had been closed while it was idle: that says nothing about the host.
                attempt.trouble = None
            elif lost is not None:
                attempt.lost += 1
                attempt.tried.add((connection.address, connection.host.port))
        if attempt.left:
            await self._ask_hosts(site, attempt)

    async def _ask_hosts(self, site: Site, attempt: Attempt) -> None:
        """In order, but last those that were out of reach lately; one of them alone if there are no others."""
        avoided = []
        for host in in_order(site, self._random):
            for address in await self._addresses(host, site, attempt):
                if self._hosts.avoided(peer_of(site, address, host.port), clock.monotonic()):
                    avoided.append((host, address))
                else:
                    await self._try(host, address, site, attempt)
            if _spent(attempt):
                return
        for host, address in avoided if attempt.tried else avoided[:1]:
            await self._try(host, address, site, attempt)

    async def _try(self, host: Host, address: str, site: Site, attempt: Attempt) -> None:
        """One address; dialled again when it ended a session after serving part of the recipients."""
        if (address, host.port) in attempt.tried or _spent(attempt):
            return
        while attempt.left:
            connection = await self._open(host, address, site)
            if isinstance(connection, Outcome):
                attempt.trouble = connection
                if connection.final:
                    attempt.end(connection)
                break
            if await self._over(connection, site, attempt) is not None:
                attempt.lost += 1
                break
        attempt.tried.add((address, host.port))

    async def _open(self, host: Host, address: str, site: Site) -> Connection | Outcome:
        """A session that holds to what the site and its hosts take, or why there is none, which is remembered."""
        peer = peer_of(site, address, host.port)
        permitted = _any_address if site.terms.trusted else self._permitted
        connection = await self._connector.open(host, address, site, permitted)
        now = clock.monotonic()
        if isinstance(connection, Outcome):
            # One that has as many sessions of ours as it takes is well, and what is final is our own trouble.
            if not connection.final and demand(connection) is not Effect.CONNECTIONS:
                self._hosts.failed(peer, now)
            return connection
        self._hosts.reached(peer)
        connection.agree(self._hosts.messages(site, now), chunking=self._hosts.takes_bdat(peer, now))
        return connection

    async def _over(self, connection: Connection, site: Site, attempt: Attempt) -> Stage | None:
        """Transactions until nobody is left or the session is over; the stage at which it was lost, if it was."""
        lost = None
        chunked = connection.chunking
        try:
            attempt.fit(connection, site.terms)
            while attempt.left and lost is None and connection.transactions < connection.limit:
                await connection.transact(attempt.begin(connection))
                lost = attempt.judge()
                if not connection.usable:
                    break
        except BaseException:
            connection.abort("given up in the middle of a transaction")
            raise
        self._learn(connection, site, chunked=chunked)
        if lost is not None:
            connection.abort(f"lost at {lost.label}")
        elif connection.usable:
            self._pool.put(site, connection)
        return lost

    def _learn(self, connection: Connection, site: Site, *, chunked: bool) -> None:
        """Remember what the session showed, and hold it to what others did. chunked: it began by BDAT."""
        now = clock.monotonic()
        if chunked and not connection.chunking:
            self._hosts.lacks_bdat(peer_of(site, connection.address, connection.host.port), now)
        if connection.transactions > connection.limit:
            self._hosts.ended_after(site, connection.limit, now)
        connection.limit = min(connection.limit, self._hosts.messages(site, now))

    async def _addresses(self, host: Host, site: Site, attempt: Attempt) -> list[str]:
        found = await self._resolver.addresses(host.name)
        if isinstance(found, Outcome):
            if found.verdict is Verdict.DEFERRED:
                attempt.trouble = found
            return []
        allowed = [address for address in found if site.terms.trusted or self._permitted(address)]
        reachable = [address for address in allowed if reachable_from(site, address)]
        if allowed and not reachable:
            # It has addresses, for others: our own configuration keeps us from it, so nothing fails for that (I4).
            attempt.trouble = attempt.trouble or _NO_ADDRESS_FROM_HERE
        return reachable


def _spent(attempt: Attempt) -> bool:
    """Whether no further host is asked in this attempt."""
    return not attempt.left or len(attempt.tried) >= MAX_ADDRESSES or attempt.lost >= MAX_LOST


def _any_address(_text: str) -> bool:
    """A route was configured by the operator, who may mean any network."""
    return True


def _local(error: OSError, entry: Entry) -> Outcome:
    """Descriptors or buffers are short, or something is broken here: the peer is not to blame (I4)."""
    if error.errno in LOCAL_TROUBLE:
        log.alert("outbound connection", error=str(error))
        return Outcome(Verdict.DEFERRED, Scope.SESSION, reply.LOCAL_TROUBLE)
    log.bug("delivery", id=entry.message.id)
    metrics.bugs.inc()
    return _INTERNAL_ERROR
