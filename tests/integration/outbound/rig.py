"""What the outbound scenarios are played on: real parts, wired as `service` wires them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from relayd import clock, tls
from relayd.config import schema
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome
from relayd.message.site import Host, Site, Source, Terms, Way
from relayd.outbound.addresses import Permitted
from relayd.outbound.brokerage import Brokerage
from relayd.outbound.connection import Timeouts
from relayd.outbound.connector import Connector
from relayd.outbound.credentials import Credentials
from relayd.outbound.delivery import Delivery
from relayd.outbound.dispatcher import Dispatcher
from relayd.outbound.feed import Feed
from relayd.outbound.pool import Pool
from relayd.outbound.routing import Router
from relayd.resolver.client import Resolver
from relayd.scheduler.classes import Interactive
from relayd.scheduler.entry import Entry
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp.address import parse
from relayd.spool.memory import Memory
from relayd.spool.queue import Queue
from relayd.spool.shard import JournalStore
from relayd.spool.store import Store
from tests.fakes.smtp_peer import SmtpPeer

BODY = b"Subject: test\r\n\r\nhello\r\n"
QUICK = Timeouts(*[10.0] * 10, quit=0.2, login=10)
"""Long enough for a busy machine: no test waits for one of these to pass."""

IMPATIENT = Timeouts(
    connect=10, banner=1, ehlo=1, starttls=1, mail=1, rcpt=1, data=1, block=1, dot=1, rset=1, quit=0.2, login=1
)
"""For peers that stay silent."""

NOBODY = "127.0.0.1:9"
"""A name server that does not answer."""

NO_SOURCE = Source()

CONTEXTS = tls.next_hop_contexts()


def envelope(*recipients: str, sender: str = "a@sender.example", size: int = len(BODY), **fields) -> Envelope:
    return Envelope(
        id=fields.pop("id", "00ABCDEFGHIJKLMNOP"),
        sender=parse(sender) if sender else "",
        recipients=tuple(map(parse, recipients)),
        account=fields.pop("account", "user:test"),
        accepted_at=fields.pop("accepted_at", clock.wall()),
        size=size,
        **fields,
    )


def site_of(
    *hosts: SmtpPeer | Host | tuple[str, int], trusted: bool = True, source: Source = NO_SOURCE, **terms
) -> Site:
    named = tuple(map(_host, hosts))
    return Site(tuple((host,) for host in named), Terms(trusted=trusted, **terms), source)


def _host(said: SmtpPeer | Host | tuple[str, int]) -> Host:
    match said:
        case SmtpPeer():
            return Host("127.0.0.1", said.port)
        case Host():
            return said
    return Host(*said)


class Carrier:
    """Delivery, its pool and its connector."""

    def __init__(
        self,
        timeouts: Timeouts = QUICK,
        nameserver: str = NOBODY,
        networks: Sequence[str] = (),
        *,
        contexts: tls.NextHopContexts = CONTEXTS,
        credentials: Mapping[str, Credentials] | None = None,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self.connector = Connector("relay.example", contexts, timeouts, credentials, now)
        self.pool = Pool()
        self.resolver = Resolver([nameserver], "relay.example")
        permitted = Permitted(schema.Delivery(private_next_hops=tuple(networks)).private_next_hops)
        self.delivery = Delivery(self.connector, self.pool, self.resolver, permitted, random.Random(1))

    async def carry(self, site: Site | SmtpPeer, *recipients: str, body: bytes = BODY, **fields) -> dict[int, Outcome]:
        message = envelope(*(recipients or ("b@peer.example",)), size=fields.pop("size", len(body)), **fields)
        entry = Entry(message, Way("peer.example"), tuple(range(len(message.recipients))))
        site = site_of(site) if isinstance(site, SmtpPeer) else site
        outcomes = await self.delivery.attempt(site, entry, body)
        assert sorted(outcomes) == list(entry.recipients), "every recipient has an outcome"
        return outcomes

    async def close(self) -> None:
        self.pool.close()
        await self.connector.close(0.5)
        await self.resolver.close()


class Relay:
    """Everything between the commit and the next hop."""

    def __init__(
        self,
        path: Path,
        *,
        routes: dict[str, Sequence[SmtpPeer | int]] | None = None,
        pace: float | None = None,
        nameserver: str = NOBODY,
        timeouts: Timeouts = QUICK,
        connections: int = 20,
        store: Store | None = None,
        brokerage: Brokerage | None = None,
        worker: int = 0,
        **settings,
    ) -> None:
        """brokerage, worker: of several relays that share the machine, what they share and the number of this one."""
        self.path = path
        self.store = store or JournalStore(path / "shard-00", 0)
        self.queue = Queue([self.store], Memory(1 << 26))
        self.resolver = Resolver([nameserver], "relay.example", now=clock.monotonic)
        configured = schema.Settings(
            hostname="relay.example",
            delivery=schema.Delivery(connections_per_site=connections, **settings),
            routes=[
                schema.Route(
                    domains=(domain,),
                    next_hops=tuple(f"127.0.0.1:{peer if isinstance(peer, int) else peer.port}" for peer in peers),
                    messages_per_second=pace,
                )
                for domain, peers in (routes or {}).items()
            ],
        )
        delivery = configured.delivery
        interactive = Interactive(delivery.interactive_accounts, delivery.interactive_share)
        self.scheduler = Scheduler(interactive, leased=brokerage is not None)
        self.dispatcher = Dispatcher(
            hostname="relay.example",
            settings=delivery,
            router=Router(configured, self.resolver),
            connector=Connector("relay.example", CONTEXTS, timeouts),
            queue=self.queue,
            scheduler=self.scheduler,
            resolver=self.resolver,
            random=random.Random(1),
            ask_broker=functools.partial(brokerage.receive, worker) if brokerage else None,
        )
        if brokerage:
            brokerage.join(worker, self.dispatcher.granted)
        self.queue.added = self.dispatcher.add
        self.queue.rescheduled = self.dispatcher.reschedule
        self.feed = Feed(self.queue, self.scheduler, self.dispatcher.add)
        self.queue.dismiss = self.feed.dismiss
        self.dispatcher.when_woken(self.feed.wake)

    async def __aenter__(self) -> Relay:
        for message in await self.queue.open():
            self.dispatcher.add(message)
        self.dispatcher.start()
        await self.feed.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispatcher.drain(0)
        await self.feed.stop()
        await self.queue.close()
        await self.resolver.close()

    async def submit(self, *recipients: str, body: bytes = BODY, **fields) -> str:
        message = envelope(*recipients, size=len(body), id=self.queue.new_id(), **fields)
        await self.queue.accept(message, body)
        return message.id

    async def submit_large(self, *recipients: str, body: bytes, **fields) -> str:
        """As `submit`, by way of a file."""
        writing = self.queue.file(self.queue.new_id())
        for start in range(0, len(body), 100_000):
            writing.write(body[start : start + 100_000])
        filed = await writing.finish()
        await self.queue.accept(envelope(*recipients, size=len(body), id=writing.id, **fields), filed)
        return writing.id

    @property
    def empty(self) -> bool:
        return not any(self.scheduler.counts().values()) and self.queue.oldest() is None and not self.queue.resting
