"""What a worker process is: a `Service` with a share of the shards, on shared sockets, led by its supervisor's channel.

Owns nothing that another worker could want: the admin port and the control socket are the supervisor's. Ends when told,
on SIGTERM, and at once when the supervisor is gone. Run by the hidden command `relayd worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import uvloop

from relayd import log, metrics
from relayd.config import load
from relayd.config.schema import Settings, Tls
from relayd.control import snapshot
from relayd.control.channel import Channel
from relayd.control.messages import (
    Cut,
    Drain,
    LeasesAsked,
    LeasesGranted,
    LoginFailed,
    Note,
    Question,
    QuotasUsed,
    Reload,
    Report,
    ReportQuery,
    Setup,
    StartFailed,
)
from relayd.control.protocol import RefusedError
from relayd.inbound.headcount import Headcount
from relayd.inbound.sockets import Bound
from relayd.scheduler import lease_messages
from relayd.scheduler.usage import Used
from relayd.service import DRAIN_SECONDS, Service, Share
from relayd.supervisor import failure

_ORPHAN_SECONDS = 1.5
"""What a worker without a supervisor gets to close; a new relay waits for its shards."""


class NoSupervisorError(Exception):
    """Nobody is at the other end of the channel."""


def run(descriptor: int) -> int:
    """Serve, over the channel on this descriptor, until told to end; the exit code. NoSupervisorError."""
    # The terminal sends these to all processes of a relay; what they mean is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise NoSupervisorError from error
    return uvloop.run(_run(sock))


async def _run(sock: socket.socket) -> int:
    worker = Worker()
    return await worker.serve(await Channel.open(sock, worker))


class Worker:
    """One process's life, and the `Peer` of its channel. Invariant: `_service` is None until it was set up."""

    def __init__(self) -> None:
        self._setup: Setup | None = None
        self._begun = asyncio.Event()
        self._service: Service | None = None
        self._used: list[Used] = []
        """What was heard of quotas before there was a service to count it."""
        self._ending = asyncio.Event()
        self._reason = ""
        self._seconds = DRAIN_SECONDS

    async def serve(self, channel: Channel) -> int:
        """Everything, from the setup to the last word; the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, "SIGTERM", DRAIN_SECONDS)
        watching = asyncio.create_task(self._watch(channel), name="supervisor")
        try:
            return await self._serve(channel)
        except failure.STARTING as error:
            reason, code = failure.reason(error)
            channel.tell(StartFailed(reason, code))
            return code
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await channel.close()

    async def _serve(self, channel: Channel) -> int:
        await self._begun.wait()
        if self._setup is not None:
            self._service = _service(self._setup, functools.partial(_ask_broker, channel))
            self._service.authenticator.failed = functools.partial(_tell_of_failure, channel)
            self._service.listeners.quotas.told = functools.partial(_tell_of_quotas, channel)
            self._service.listeners.quotas.heard(self._used)
            await self._work(self._service, channel)
        return os.EX_OK

    async def _work(self, service: Service, channel: Channel) -> None:
        starting = asyncio.create_task(service.start(), name="start")
        ending = asyncio.create_task(self._ending.wait(), name="ending")
        try:
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                gc.freeze()
                channel.tell(self._report(service))
                await ending
        finally:
            for task in (starting, ending):
                task.cancel()
            await asyncio.gather(starting, ending, return_exceptions=True)
            await service.stop(self._reason or "failed start", self._seconds)
        if not starting.cancelled():
            channel.tell(self._report(service))

    def _report(self, service: Service) -> Report:
        return Report(service.status(), snapshot.take(metrics.REGISTRY))

    # --- what the supervisor says -------------------------------------------------------------------------------------

    async def answer(self, question: Question) -> msgspec.Struct:
        """Of the service. RefusedError, StoreError."""
        if self._service is None:
            raise RefusedError("starting")
        if isinstance(question, ReportQuery):
            return self._report(self._service)
        return await self._service.answers.answer(question)

    def told(self, note: Note) -> None:
        """Do it."""
        match note:
            case Setup():
                self._setup = note
                self._begun.set()
            case Drain(reason):
                self._end(reason, DRAIN_SECONDS)
            case Cut():
                self._end("cut", 0)
            case Reload() if self._service:
                self._service.reload()
            case LoginFailed(keys, at) if self._service:
                self._service.authenticator.heard(keys, at)
            case QuotasUsed(used) if self._service:
                self._service.listeners.quotas.heard(used)
            case QuotasUsed(used):
                self._used += used
            case LeasesGranted(replies) if self._service:
                self._service.dispatcher.granted(replies)

    async def _watch(self, channel: Channel) -> None:
        """Nothing that was accepted is lost by an end at once; going on without a supervisor would keep the shards."""
        await channel.closed.wait()
        asyncio.get_running_loop().call_later(_ORPHAN_SECONDS, os._exit, os.EX_TEMPFAIL)
        self._end("supervisor gone", 0)

    def _end(self, reason: str, seconds: float) -> None:
        """End within that time; where the end has begun already, it is cut if there is none."""
        if self._ending.is_set():
            if self._service and not seconds:
                self._service.cut()
            return
        self._reason, self._seconds = reason, seconds
        self._begun.set()
        self._ending.set()


# --- a share of the relay -------------------------------------------------------------------------------------------


def _service(setup: Setup, ask_broker: Callable[[Sequence[lease_messages.Request]], None]) -> Service:
    """The service of this worker's share. OSError, StoreError, TlsError."""
    settings = portion(load.trusted(Path(setup.file), setup.options), setup.workers)
    log.configure(str(settings.log.file), settings.log.level)
    with _readable(settings, setup) as readable:
        service = Service(readable, Share(setup.number, setup.workers), ask_broker)
    shared = [Bound(listener, _inherited(descriptor)) for listener, descriptor in setup.sockets]
    service.listeners.adopt(shared, Headcount(setup.headcount, setup.number))
    os.close(setup.headcount)
    return service


def portion(settings: Settings, workers: int) -> Settings:
    """The settings of one of several: each has an equal part of the memory. Connections are counted for all of them."""
    limits = settings.limits
    part = limits.model_copy(update={"memory": max(limits.memory // workers, 1)})
    return settings.model_copy(update={"limits": part})


@contextlib.contextmanager
def _readable(settings: Settings, setup: Setup) -> Iterator[Settings]:
    """The settings with certificate and key in memory: the files may be root's, and may have changed meanwhile."""
    with contextlib.ExitStack() as exit_:
        if settings.tls is None:
            yield settings
            return
        paths = []
        for name, pem in (("certificate", setup.certificate), ("private_key", setup.private_key)):
            file = exit_.enter_context(os.fdopen(os.memfd_create(name), "wb", buffering=0))
            file.write(pem)
            paths.append(Path(f"/proc/self/fd/{file.fileno()}"))
        yield settings.model_copy(update={"tls": Tls(certificate=paths[0], private_key=paths[1])})


def _inherited(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _ask_broker(channel: Channel, requests: Sequence[lease_messages.Request]) -> None:
    channel.tell(LeasesAsked(list(requests)), surely=True)


def _tell_of_failure(channel: Channel, keys: Sequence[str], at: float) -> None:
    channel.tell(LoginFailed(list(keys), at))


def _tell_of_quotas(channel: Channel, used: list[Used]) -> None:
    channel.tell(QuotasUsed(used), surely=True)
