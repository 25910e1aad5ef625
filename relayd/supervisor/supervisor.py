"""The supervisor: binds what all workers share, keeps each place filled, answers for all of them. Carries no mail.

Owns the listeners' sockets, the admin port and the control socket. Knows nothing of queues: workers answer, `merging`
adds. Started and stopped by `relayd serve`, where `workers` is above 1.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import assert_never

from prometheus_client import CollectorRegistry

from relayd import __version__, clock, log, metrics
from relayd.admin import server as admin
from relayd.admin.server import Admin
from relayd.config import load
from relayd.config.load import ConfigError, Loaded
from relayd.control import snapshot
from relayd.control.answers import NO_SUCH_MESSAGE
from relayd.control.messages import LeasesAsked, LeasesGranted, LoginFailed, Note, QuotasUsed, Reload, Setup
from relayd.control.protocol import (
    Answered,
    Done,
    Listing,
    MessageView,
    QueueHold,
    QueueList,
    QueueShow,
    RefusedError,
    Request,
    Status,
    StatusQuery,
)
from relayd.control.server import Control
from relayd.inbound import headcount, sockets
from relayd.inbound.headcount import Headcount
from relayd.message import queue_id
from relayd.outbound.brokerage import Brokerage
from relayd.scheduler.usage import AT_ONCE, Usage
from relayd.service import make_directories
from relayd.supervisor import merging
from relayd.supervisor.place import Place

ASK_SECONDS = 20.0
"""For a worker's answer to a command: to list a long queue takes its time."""

FIXED = ("workers", "listeners", "spool", "admin", "process", "log")
"""Options that take a restart: sockets are bound, directories made and shards shared out once."""


class Supervisor:
    """All workers of one relay. `bind`, then `start`, then `stop`; `stop` is right after any of them."""

    def __init__(self, loaded: Loaded) -> None:
        """Make the parts; called in the event loop's thread, by root where only root can read the private key."""
        self._loaded = loaded
        self._pems = _pems(loaded)
        self._started_at = clock.monotonic()
        self._state = "starting"
        self._sockets: Sequence[sockets.Bound] = ()
        self._headcount = headcount.table(loaded.settings.workers)
        self._admin: Admin | None = None
        self._control = Control(loaded.settings.spool.path, self)
        self._brokerage = Brokerage()
        self._usage = Usage()
        self._places = [Place(number, self) for number in range(loaded.settings.workers)]
        self._keeping: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """Take what may need root: the spool's directories and every port. OSError."""
        settings = self._loaded.settings
        make_directories(settings)
        if bind := settings.admin.bind:
            self._admin = Admin(admin.bind(bind.host, bind.port), bind.host, self)
        self._sockets = sockets.bind(settings.listeners)

    async def start(self) -> None:
        """Start the workers; returns when all take mail. WorkerFailedError, OSError."""
        if self._admin:
            self._admin.start()
        self._keeping = [asyncio.create_task(place.keep(), name=f"place {place.number}") for place in self._places]
        await asyncio.gather(*(place.first for place in self._places))
        await self._control.start()
        self._rolling = asyncio.create_task(self._roll(), name="roll")
        self._state = ""
        log.started(version=__version__, pid=os.getpid(), workers=len(self._places))

    async def stop(self, reason: str) -> None:
        """Let all workers drain, and close everything."""
        log.stopping(reason)
        self._state = "stopping"
        for place in self._places:
            place.stop(reason)
        for bound in self._sockets:  # no process is started with them from here on
            bound.socket.close()
        if self._rolling:
            self._rolling.cancel()
            await asyncio.gather(self._rolling, return_exceptions=True)
        await asyncio.gather(*self._keeping)
        os.close(self._headcount)
        self._brokerage.close()
        await self._control.close()
        if self._admin:
            await self._admin.close()
        log.stopped()

    def cut(self) -> None:
        """Stop now. Nothing accepted is lost by that."""
        for place in self._places:
            place.cut()

    def reload(self) -> None:
        """Open the log anew, take up the configuration, and replace the workers, one after the other."""
        log.rotated()
        for place in self._places:
            place.tell(Reload())
        # At once, though a roll may be waiting for a worker that the former configuration keeps from starting.
        if self._take_up():
            self._changed.set()
            for place in self._places:
                place.hurry()

    # --- workers ------------------------------------------------------------------------------------------------------

    def setup(self, number: int) -> Setup:
        """What the next process of a place is to be told."""
        certificate, private_key = self._pems
        return Setup(
            number=number,
            workers=len(self._places),
            file=str(self._loaded.file.absolute()),
            options={**self._loaded.raw, "workers": len(self._places)},
            certificate=certificate,
            private_key=private_key,
            sockets=[(bound.listener, bound.socket.fileno()) for bound in self._sockets],
            headcount=self._headcount,
        )

    def begun(self, sender: Place) -> None:
        """Its process leases what it needs of sites, and is told what accounts have used of their quotas."""
        used = self._usage.all(clock.monotonic())
        for start in range(0, len(used), AT_ONCE):
            sender.tell(QuotasUsed(used[start : start + AT_ONCE]))
        self._brokerage.join(sender.number, lambda replies: sender.tell(LeasesGranted(list(replies))))

    def ended(self, sender: Place) -> None:
        """What it had of sites is free, and it has no connections."""
        Headcount(self._headcount, sender.number).clear()
        self._brokerage.leave(sender.number)

    def told(self, sender: Place, note: Note) -> None:
        """Pass on what concerns the others, divide what all have together."""
        match note:
            case LoginFailed():
                self._tell_others(sender, note)
            case QuotasUsed(used):
                self._usage.add(used)
                self._tell_others(sender, note)
            case LeasesAsked(requests):
                self._brokerage.receive(sender.number, requests)

    def _tell_others(self, sender: Place, note: Note) -> None:
        for place in self._places:
            if place is not sender:
                place.tell(note)

    async def _roll(self) -> None:
        """One worker drains at a time: the others take its connections meanwhile."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for place in self._places:
                await place.roll("reload")

    def _take_up(self) -> bool:
        """Read the configuration anew; where it is wrong the former one stays."""
        former = self._loaded
        try:
            found = load.loaded(former.file)
            fixed = [name for name in FIXED if getattr(found.settings, name) != getattr(former.settings, name)]
            if fixed:
                log.alert("options changed that take a restart", options=fixed)
            raw = {name: value for name, value in found.raw.items() if name not in FIXED}
            raw |= {name: value for name, value in former.raw.items() if name in FIXED}
            # Looked at once more: what is new may contradict what stays.
            taken = Loaded(former.file, raw, load.checked(former.file, raw))
            self._loaded, self._pems = taken, _pems(taken)
        except ConfigError as error:
            log.alert("configuration not taken up", problems=[str(problem) for problem in error.problems])
            return False
        except OSError as error:
            log.alert("configuration not taken up", problems=[str(error)])
            return False
        return True

    # --- what admin and control ask -----------------------------------------------------------------------------------

    def unready(self) -> str:
        """Why mail is not taken; empty when it is. Workers of which one is being replaced or restarted take it."""
        if self._state:
            return self._state
        statuses = [place.status for place in self._places]
        if not any(statuses):
            return "starting"
        reasons = [f"worker {place.number} is not answering" for place in self._places if place.silent]
        reasons += [status.unready for status in statuses if status and status.unready not in ("", "stopping")]
        return reasons[0] if reasons else ""

    async def metrics(self) -> CollectorRegistry:
        """Those of all processes, as they are now; of a worker that does not answer, as they were."""
        await self._refresh()
        own = merging.labelled(snapshot.take(metrics.REGISTRY), "supervisor")
        parts = [merging.without_gauges(own), *(place.families() for place in self._places)]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(merging.Totals(merging.added(parts)))
        return registry

    async def answer(self, request: Request) -> Answered:
        """The answer of all workers, or of the one that has the message. RefusedError."""
        match request:
            case QueueList(limit=limit):
                asked = (place.ask(request, Listing, ASK_SECONDS) for place in self._places)
                return merging.listings(await asyncio.gather(*asked), limit)
            case QueueShow(id=wanted):
                return await self._owner(wanted).ask(request, MessageView, ASK_SECONDS)
            case QueueHold(id=wanted):
                return await self._owner(wanted).ask(request, Done, ASK_SECONDS)
            case StatusQuery():
                await self._refresh()
                return self._status()
        assert_never(request)

    def _owner(self, wanted: str) -> Place:
        if not queue_id.is_valid(wanted):
            raise RefusedError(NO_SUCH_MESSAGE)
        return self._places[queue_id.shard_of(wanted) % len(self._places)]

    def _status(self) -> Status:
        statuses = [status for place in self._places if (status := place.status)]
        return Status(
            version=__version__,
            pid=os.getpid(),
            hostname=self._loaded.settings.hostname,
            unready=self.unready(),
            uptime=round(clock.monotonic() - self._started_at, 3),
            queue=merging.counts(status.queue for status in statuses),
            oldest=max((status.oldest for status in statuses), default=0.0),
        )

    async def _refresh(self) -> None:
        await asyncio.gather(*(place.refresh() for place in self._places))


def _pems(loaded: Loaded) -> tuple[bytes, bytes]:
    """Certificate and private key, empty without [tls]: workers may not be allowed to read them. OSError."""
    tls = loaded.settings.tls
    return (tls.certificate.read_bytes(), tls.private_key.read_bytes()) if tls else (b"", b"")
