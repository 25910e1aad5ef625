"""`relayd serve`: the relay in the foreground. Owns the process's signals and its end.

SIGTERM and SIGINT drain, a second one cuts; SIGHUP opens the log file anew, and sessions with next
hops under the system's authorities as they are now. A failed start is one line on standard error and an exit code of
sysexits.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal

import uvloop

from relayd import log, tls
from relayd.cli import options, output, process
from relayd.config.schema import Settings
from relayd.config.values import STANDARD_OUTPUT
from relayd.service import Service
from relayd.spool.store import FormatError, StoreError, StoreLockedError


def serve(config: options.Config = None) -> None:
    """Run the relay in the foreground until SIGTERM or SIGINT."""
    settings = options.settings(config)
    try:
        log.configure(str(settings.log.file), settings.log.level)
    except OSError as error:
        output.fail(f"log.file {settings.log.file}: {error.strerror}", os.EX_CANTCREAT)
    process.raise_descriptor_limit()
    try:
        uvloop.run(_run(settings))
    except (OSError, StoreError, tls.TlsError) as error:
        output.fail(*_reason(error))


async def _run(settings: Settings) -> None:
    service = Service(settings)
    signals = _Signals(service)
    starting = asyncio.create_task(_start(service, settings), name="start")
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
        await service.stop(signals.name or "failed start")


async def _start(service: Service, settings: Settings) -> None:
    service.bind()
    if user := settings.process.user:
        for directory in {settings.spool.path, *settings.spool.paths}:
            process.give(directory, user)
        process.give(settings.auth.users_file, user)
        if settings.log.file != STANDARD_OUTPUT:
            process.give(settings.log.file, user)
    process.become(user)
    await service.start()


class _Signals:
    """What the process was told."""

    def __init__(self, service: Service) -> None:
        self.received = asyncio.Event()
        self.name = ""
        self._service = service
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _stop(self, number: signal.Signals) -> None:
        if self.received.is_set():
            self._service.cut()
        self.name = number.name
        self.received.set()

    def _reload(self) -> None:
        _reopen_log()
        self._service.reload()


def _reopen_log() -> None:
    try:
        log.reopen()
    except OSError as error:
        log.alert("log file not reopened; the old one stays in use", error=str(error))


def _reason(error: Exception) -> tuple[str, int]:
    """One line and an exit code for a start that failed; 75 (EX_TEMPFAIL) where trying again may help."""
    text = str(error) or type(error).__name__
    match error:
        case StoreLockedError():
            return text, os.EX_TEMPFAIL
        case FormatError() | tls.TlsError():
            return text, os.EX_CONFIG
        case OSError():
            return text, _ERRNOS.get(_number(error), os.EX_IOERR)
    return text, os.EX_IOERR


def _number(error: OSError) -> int:
    """Its errno, or that of what it was made from."""
    if error.errno is None and isinstance(error.__context__, OSError):
        return _number(error.__context__)
    return error.errno or 0


_ERRNOS = {
    errno.EADDRINUSE: os.EX_TEMPFAIL,
    errno.EADDRNOTAVAIL: os.EX_CONFIG,
    errno.EACCES: os.EX_NOPERM,
    errno.EPERM: os.EX_NOPERM,
    errno.EROFS: os.EX_CANTCREAT,
    errno.ENOENT: os.EX_CANTCREAT,
    errno.ENOTDIR: os.EX_CANTCREAT,
    errno.ENOSPC: os.EX_CANTCREAT,
}
