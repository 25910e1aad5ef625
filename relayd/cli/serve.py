"""`relayd serve`: the relay in the foreground. Owns the process's signals and its end.

SIGTERM and SIGINT drain, a second one cuts; SIGHUP opens the log file anew, and sessions with next hops under the
system's authorities as they are now; where workers serve, it also takes up the configuration, with new workers. A
failed start is one line on standard error and an exit code of sysexits.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Protocol

import uvloop

from relayd import log
from relayd.cli import options, output, process
from relayd.config.load import Loaded
from relayd.config.schema import Settings
from relayd.config.values import STANDARD_OUTPUT
from relayd.service import Service
from relayd.supervisor import failure
from relayd.supervisor.supervisor import Supervisor


class Relay(Protocol):
    """What serves: one process, or the supervisor of several."""

    def bind(self) -> None:
        """Take what may need root. OSError."""

    async def start(self) -> None:
        """Returns when mail is taken. What `failure.STARTING` names."""

    async def stop(self, reason: str) -> None:
        """Drain, and close everything."""

    def reload(self) -> None:
        """Take up what has changed."""

    def cut(self) -> None:
        """Stop now: what `stop` still waits for is cut."""


def serve(config: options.Config = None) -> None:
    """Run the relay in the foreground until SIGTERM or SIGINT."""
    loaded = options.loaded(config)
    settings = loaded.settings
    try:
        log.configure(str(settings.log.file), settings.log.level)
    except OSError as error:
        output.fail(f"log.file {settings.log.file}: {error.strerror}", os.EX_CANTCREAT)
    process.raise_descriptor_limit()
    process.prefer_throughput()
    try:
        uvloop.run(_run(loaded))
    except failure.STARTING as error:
        output.fail(*failure.reason(error))


async def _run(loaded: Loaded) -> None:
    relay: Relay = Service(loaded.settings) if loaded.settings.workers == 1 else Supervisor(loaded)
    signals = _Signals(relay)
    starting = asyncio.create_task(_start(relay, loaded.settings), name="start")
    signalled = asyncio.create_task(signals.received.wait(), name="signals")
    try:
        await asyncio.wait({starting, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            # What was made to start stays: the collector need not look at it again, on every pass, for years.
            gc.freeze()
            process.notify("READY=1")
            await signalled
        process.notify("STOPPING=1")
    finally:
        for task in (starting, signalled):
            task.cancel()
        await asyncio.gather(starting, signalled, return_exceptions=True)
        await relay.stop(signals.name or "failed start")


async def _start(relay: Relay, settings: Settings) -> None:
    relay.bind()
    if user := settings.process.user:
        for directory in {settings.spool.path, *settings.spool.paths}:
            process.give(directory, user)
        process.give(settings.auth.users_file, user)
        if settings.log.file != STANDARD_OUTPUT:
            process.give(settings.log.file, user)
    process.become(user)
    await relay.start()


class _Signals:
    """What the process was told."""

    def __init__(self, relay: Relay) -> None:
        self.received = asyncio.Event()
        self.name = ""
        self._relay = relay
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, relay.reload)

    def _stop(self, number: signal.Signals) -> None:
        if self.received.is_set():
            self._relay.cut()
        self.name = number.name
        self.received.set()
