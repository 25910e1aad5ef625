"""Programs of others and our own as child processes: where they are, when they listen, how they end.

Everything here listens on loopback, on ports nobody had; only processes started here are ended, by their own id. Knows
no relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
"""The repository that is measured."""

_PATIENCE = 30.0
T = TypeVar("T")


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it started is ended first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def running(
    command: list[str], output: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that listens on `port`, its output in a file, ended by SIGTERM."""
    with running_until(lambda: _listens(port), command, output, environment) as process:
        yield process


@contextlib.contextmanager
def running_until(
    ready: Callable[[], bool], command: list[str], output: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process; it is let work once it is ready. RuntimeError with its output when it ends or takes too long."""
    with output.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        _await(ready, f"{command[0]} is not ready; see below\n", process, output)
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE)


@contextlib.asynccontextmanager
async def beside_the_loop(context: contextlib.AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave in a thread: for a process whose connections this loop serves, the first and the last, too."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def await_listener(port: int) -> None:
    """Return when somebody accepts connections there. RuntimeError when nobody does in time."""
    _await(lambda: _listens(port), f"nobody listens on port {port}")


def _await(
    ready: Callable[[], bool], trouble: str, process: subprocess.Popen[bytes] | None = None, output: Path | None = None
) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise RuntimeError(trouble + (output.read_text("utf-8", "replace") if output else ""))
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str:
    """Where it is installed. RuntimeError when it is not."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"{name} is missing: benchmarks/install.sh installs it")
    return path
