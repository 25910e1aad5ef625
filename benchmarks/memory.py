"""The memory of relayd: under full load for a long time, and with many connections open under TLS.

Sampled is the resident set (VmRSS) of each of its processes. See README.md here for the method. Prints a table and
bounds, writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from load import PATIENCE, Client, Plan
from measuring import SHAPES, add_where, load_command, scratch_directory, smtp_sink
from peers import relayd_command
from processes import HOST, end_on_sigterm, free_port, running
from results import RESULTS, Bound, console, facts, write
from rich.table import Table
from wanted import PASSWORD, USER, Wanted

MOST = 150.0
"""Bound: MB of one process."""

CONNECTIONS = 1_000
AT_ONCE = 20
"""Connections that log in at the same time: more would measure how relayd refuses a crowd."""

Sample = dict[int, float]
"""MB by process id."""


def main() -> None:
    """Measure what the arguments say."""
    end_on_sigterm()
    arguments = _arguments()
    screen = console()
    about = facts(arguments.directory, arguments.python)
    loaded = _under_load(arguments)
    idle, held = _holding(arguments)
    table = Table("relayd", "process", "first MB", "most MB", "last MB")
    parts = {"under full load": loaded, f"{arguments.connections:,} connections under TLS": [(0.0, idle), (0.0, held)]}
    for part, samples in parts.items():
        for pid, sizes in _by_process(samples).items():
            table.add_row(part, str(pid), *(f"{size:.0f}" for size in (sizes[0], max(sizes), sizes[-1])))
    screen.print(table)
    for part, samples in parts.items():
        most = max(size for _, sample in samples for size in sample.values())
        screen.print(str(Bound(f"{part}: MB of a process", most, MOST, most=True)), highlight=False)
    found = {"minutes": arguments.minutes, "under_load": loaded, "idle": idle, "connections": held}
    write(arguments.json, {"facts": about, **found})
    screen.print(f"written to {arguments.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of full load (30)")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples (5)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help=f"open at once ({CONNECTIONS:,})")
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json", help="where results go")
    add_where(parser)
    return parser.parse_args()


@contextlib.contextmanager
def _relayd(arguments: argparse.Namespace, *, tls: bool) -> Iterator[tuple[Path, subprocess.Popen[bytes], int]]:
    """relayd before a smtp-sink: its directory, its first process, its port."""
    sink_port, port = free_port(), free_port()
    with scratch_directory(arguments.directory) as scratch, smtp_sink(scratch, sink_port):
        wanted = Wanted(scratch, sink_port, tls=tls, python=arguments.python)
        command, environment = relayd_command(wanted, port, free_port())
        with running(command, scratch / "relayd.out", port, environment) as process:
            yield scratch, process, port


def _under_load(arguments: argparse.Namespace) -> list[tuple[float, Sample]]:
    """Samples by seconds, while load.py sends as much as goes. RuntimeError when it does not get through."""
    seconds = 60 * arguments.minutes
    samples: list[tuple[float, Sample]] = []
    with _relayd(arguments, tls=False) as (scratch, relay, port):
        command = load_command(scratch, SHAPES["kept"], port, "--seconds", str(seconds))
        began = time.monotonic()
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while load.poll() is None and time.monotonic() < began + seconds + PATIENCE:
                samples.append((time.monotonic() - began, _sample(relay.pid)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    load.wait(arguments.interval)
        finally:
            load.terminate()
            load.wait(10)
        samples.append((time.monotonic() - began, _sample(relay.pid)))
    if load.returncode:
        raise RuntimeError(f"the load gave up with {load.returncode}")
    return samples


def _holding(arguments: argparse.Namespace) -> tuple[Sample, Sample]:
    """A sample before anybody came, and one with so many clients logged in."""
    with _relayd(arguments, tls=True) as (scratch, relay, port):
        before = _sample(relay.pid)
        held = uvloop.run(_held(arguments.connections, scratch / "ca.pem", port, relay.pid))
    return before, held


async def _held(count: int, ca: Path, port: int, pid: int) -> Sample:
    plan = Plan(HOST, port, 0, 0.0, ca=ca, user=USER, password=PASSWORD)
    context = ssl.create_default_context(cafile=ca)
    clients = [Client() for _ in range(count)]
    turns = asyncio.Semaphore(AT_ONCE)

    async def enter(client: Client) -> None:
        async with turns:
            await client.open(plan, context)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(enter, clients))
        # A connection that was dropped would be no memory.
        await asyncio.gather(*(client.ask(b"NOOP\r\n") for client in clients))
    sample = _sample(pid)
    for client in clients:
        client.close()
    return sample


def _sample(pid: int) -> Sample:
    """What the process and its descendants have in memory now. One that ends meanwhile is left out."""
    sample: Sample = {}
    for one in _family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            sample[one] = _rss(one)
    return sample


def _family(pid: int) -> Iterator[int]:
    """The process and its descendants."""
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in tasks.read_text(encoding="ascii").split():
                yield from _family(int(child))


def _rss(pid: int) -> float:
    """MB (proc(5), VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def _by_process(samples: list[tuple[float, Sample]]) -> dict[int, list[float]]:
    sizes: dict[int, list[float]] = {}
    for _, sample in samples:
        for pid, size in sample.items():
            sizes.setdefault(pid, []).append(size)
    return sizes


if __name__ == "__main__":
    main()
