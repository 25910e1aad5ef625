"""The composition root of one process: makes the parts, wires them, opens them in order and closes them in reverse.

The only module that knows every room. It decides nothing about mail. Started and stopped by `relayd serve` and the
demonstration; answers what the admin port and the control socket ask (their `Backend`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from relayd import __version__, clock, log, metrics, tls
from relayd.admin import server as admin
from relayd.admin.server import Admin
from relayd.auth.authenticator import Authenticator
from relayd.config.schema import Settings
from relayd.control.answers import Answers
from relayd.control.protocol import Status
from relayd.control.server import Control
from relayd.inbound.listener import Listeners
from relayd.message.queue_id import MAX_SHARDS
from relayd.outbound.connection import Timeouts
from relayd.outbound.connector import Connector
from relayd.outbound.credentials import Credentials
from relayd.outbound.dispatcher import Dispatcher
from relayd.outbound.feed import Feed
from relayd.outbound.routing import Router
from relayd.resolver.client import Resolver
from relayd.scheduler import lease_messages
from relayd.scheduler.classes import Interactive
from relayd.scheduler.scheduler import Scheduler
from relayd.spool import holding, recovery
from relayd.spool.disk import sync_directory
from relayd.spool.memory import Memory
from relayd.spool.queue import Queue
from relayd.spool.records import Message
from relayd.spool.shard import JournalStore
from relayd.spool.space import Space
from relayd.spool.store import StoreError

DRAIN_SECONDS = 25.0
"""What sessions and attempts in flight get to finish; the whole stop may take 30 s, and systemd is told 35."""

_ADDED_AT_ONCE = 1000
"""Recovered messages between two turns of the event loop: the admin port answers meanwhile."""


class Share(NamedTuple):
    """Which of how many processes this one is: it owns the shards s with s % of == number."""

    number: int
    of: int


ALONE = Share(0, 1)


class Service:
    """One relay, or a share of one. `bind`, then `start`, then `stop`.

    `stop` is right after any of them, and after a failed one.
    """

    def __init__(
        self,
        settings: Settings,
        share: Share = ALONE,
        ask_broker: Callable[[Sequence[lease_messages.Request]], None] | None = None,
    ) -> None:
        """Make the parts; called in the event loop's thread, opens nothing.

        What serves a share has no admin port and no control socket, adopts its listeners' sockets, and is not bound.
        ask_broker: asks for what the shares divide among them, connections to sites; `dispatcher.granted` answers.
        """
        self._settings = settings
        self._share = share
        self._started_at = clock.monotonic()
        self._state = "starting"
        self._exit = contextlib.AsyncExitStack()
        self._drains: asyncio.Future[tuple[None, None]] | None = None
        spool = settings.spool.path
        self.queue = Queue(
            _stores(settings.spool.directories, settings.shards, share),
            Memory(settings.limits.memory),
            space=Space(settings.spool.directories, settings.limits.disk_reserve),
            draining=range(settings.shards, MAX_SHARDS),
        )
        self.scheduler = Scheduler(
            Interactive(frozenset(settings.delivery.interactive_accounts), settings.delivery.interactive_share),
            leased=ask_broker is not None,
        )
        self.resolver = Resolver(settings.dns.nameservers, settings.hostname)
        self.dispatcher = Dispatcher(
            hostname=settings.hostname,
            settings=settings.delivery,
            router=Router(settings, self.resolver),
            connector=Connector(settings.hostname, tls.next_hop_contexts(), Timeouts(), _credentials(settings)),
            queue=self.queue,
            scheduler=self.scheduler,
            resolver=self.resolver,
            random=random.Random(),
            ask_broker=ask_broker,
        )
        self.queue.added = self.dispatcher.add
        self.feed = Feed(self.queue, self.scheduler, self.dispatcher.add)
        self.queue.dismiss = self.feed.dismiss
        self.dispatcher.when_woken(self.feed.wake)
        self.authenticator = Authenticator(settings.auth.users_file, spool / "auth-failures")
        self.listeners = Listeners(settings, _tls_context(settings), self.queue, self.authenticator)
        self.answers = Answers(self)
        self.control = Control(spool, self.answers)
        self.admin: Admin | None = None

    def bind(self) -> None:
        """Take what may need root: the spool's directories and every port. OSError."""
        make_directories(self._settings)
        if bind := self._settings.admin.bind:
            self.admin = Admin(admin.bind(bind.host, bind.port), bind.host, self)
            self._exit.push_async_callback(self.admin.close)
        self.listeners.bind()

    async def start(self) -> None:
        """Open the parts; returns when mail is taken. StoreError, OSError."""
        log.gather(asyncio.get_running_loop().call_soon)
        if self.admin:
            self.admin.start()
        self._exit.callback(self.authenticator.close)
        self._exit.push_async_callback(self.resolver.close)
        self._exit.push_async_callback(self.queue.close)
        recovered = await self.queue.open()
        if self._share == ALONE:
            await self.control.start()
            self._exit.push_async_callback(self.control.close)
        self._exit.callback(metrics.watch_queue(self._counts, self._oldest))
        for number, message in enumerate(recovered):
            if self.queue.get(message.envelope.id) is message:  # it may have gone to rest meanwhile
                self.dispatcher.reschedule(message)  # an operator may have released it meanwhile: it is there once
            if number % _ADDED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self.dispatcher.start()
        self._exit.push_async_callback(self.feed.stop)
        await self.feed.start()
        bound = await self.listeners.open()
        self._state = ""
        metrics.workers.set(1)
        listeners = [f"{kind} {host}:{port}" for kind, host, port in bound]
        worker = {} if self._share == ALONE else {"worker": self._share.number}
        log.started(version=__version__, pid=os.getpid(), **worker, listeners=listeners)

    async def stop(self, reason: str, seconds: float = DRAIN_SECONDS) -> None:
        """Stop taking mail, finish what is in flight within that time, close everything."""
        log.stopping(reason)
        self._state = "stopping"
        metrics.workers.set(0)
        self._drains = asyncio.gather(self.listeners.drain(seconds), self.dispatcher.drain(seconds))
        try:
            await self._drains
        except asyncio.CancelledError:
            await self.dispatcher.drain(0)
        await self._exit.aclose()
        log.gather(None)
        log.stopped()

    def reload(self) -> None:
        """Take up what has changed outside of the configuration: the log file, authorities, credentials of routes."""
        log.rotated()
        self.dispatcher.renew(tls.next_hop_contexts())

    def cut(self) -> None:
        """Stop now: what `stop` still waits for is cut. Nothing accepted is lost by that."""
        if self._drains:
            self._drains.cancel()

    # --- what admin and control ask -----------------------------------------------------------------------------------

    def unready(self) -> str:
        """Why mail is not taken now; empty when it is."""
        return self._state or self.queue.trouble or ("" if self.queue.space.enough() else "disk full")

    async def metrics(self) -> CollectorRegistry:
        """The metrics as they are now."""
        return metrics.REGISTRY

    def pages(self) -> AsyncIterator[list[Message]]:
        """All live messages, a page at a time."""
        return self.queue.pages()

    async def message(self, queue_id: str) -> Message | None:
        """One live message."""
        return await self.queue.find(queue_id)

    async def hold(self, queue_id: str, *, held: bool) -> bool:
        """Hold a message, or release it."""
        return await asyncio.shield(self._hold(queue_id, held=held))

    async def _hold(self, queue_id: str, *, held: bool) -> bool:
        message = await holding.hold(self.queue, queue_id, held=held)
        if message is not None:
            self.dispatcher.reschedule(message)
        return message is not None

    def status(self) -> Status:
        """How the service is."""
        return Status(
            version=__version__,
            pid=os.getpid(),
            hostname=self._settings.hostname,
            unready=self.unready(),
            uptime=round(clock.monotonic() - self._started_at, 3),
            queue=self._counts(),
            oldest=round(self._oldest(), 3),
        )

    def _counts(self) -> dict[str, int]:
        """Messages by state: those in memory as they are scheduled, those at rest wait for their time."""
        counts = self.scheduler.counts()
        held = sum(rest.held for rest in self.queue.rests)
        counts["held"] += held
        counts["deferred"] += self.queue.resting - held
        return counts

    def _oldest(self) -> float:
        """Age of the oldest message in seconds, 0 when there is none."""
        accepted_at = self.queue.oldest()
        return 0.0 if accepted_at is None else max(clock.wall() - accepted_at, 0.0)


def _tls_context(settings: Settings) -> tls.Context | None:
    return tls.listener_context(settings.tls.certificate, settings.tls.private_key) if settings.tls else None


def _credentials(settings: Settings) -> dict[str, Credentials]:
    """By the name of the terms that ask for them."""
    routes = enumerate(settings.routes)
    return {f"routes[{number}]": Credentials(route.credentials) for number, route in routes if route.credentials}


def make_directories(settings: Settings) -> None:
    """The spool's, open to their owner alone. OSError."""
    for directory in {settings.spool.path, *settings.spool.paths}:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        sync_directory(directory.parent)


def _stores(directories: Sequence[Path], shards: int, share: Share = ALONE) -> list[JournalStore]:
    """The share's part of the configured shards, and of a former, larger number: these only drain. StoreError.

    A shard stays in the directory where it is; a new one goes where its number says.
    """
    present: dict[int, Path] = {}
    for directory in directories:
        for number, path in recovery.shards(directory):
            if number in present:
                raise StoreError(f"shard {number} is both in {present[number].parent} and in {directory}")
            present[number] = path
    return [
        JournalStore(present.get(number, directories[number % len(directories)] / f"shard-{number:02d}"), number)
        for number in sorted(present.keys() | set(range(shards)))
        if number % share.of == share.number
    ]
