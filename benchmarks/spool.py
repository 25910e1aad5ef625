"""The spool: what a commit costs, and what a large queue costs everything else.

commits: commits a second and their latency against how many are handed over at once, on a shard of its own. moving: the
latency of commits, a thousand a second, while survivors move into the index and while they do not.
waiting: relayd over a queue of 10,000 to 1,000,000 deferred messages beside relayd over an empty one: seconds until it
listens, memory, messages a second end to end, disk use. due: as many due at the same instant: memory, and what leaves.
large: a hundred clients that send 50 MB each, at once, under a memory budget of 64 MB.

See README.md here for the method. Prints tables, writes JSON, and draws a chart of `waiting`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from measuring import SHAPES, await_all, measure_through, smtp_sink
from peers import relayd_command
from processes import HOST, free_port, running
from results import RESULTS, console, draw, facts, write
from rich.console import Console
from rich.table import Table
from wanted import Wanted

from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool import journal
from relayd.spool.index import Index, Put, Waiting
from relayd.spool.records import Accepted, Message, Result, State
from relayd.spool.shard import JournalStore
from relayd.spool.writer import make_directories

BODY = b"Subject: waiting\r\n\r\n" + (b"x" * 76 + b"\r\n") * 66
_LINES = (b"x" * 76 + b"\r\n") * 800
DOMAINS = 1000
DEFERRED = Reply(451, "4.4.1", "mx.example.net[192.0.2.1]:25: no connection in time")

_LIMITS = '[limits]\nmemory = "64MB"\nmessage_size = "60MB"\n'


class Waited(NamedTuple):
    """relayd over a queue.

    queue: messages in the larger of the two that alternate; messages: in this one. listening: seconds from its start.
    rss: MB, the most seen. rate: messages a second of new mail, end to end. disk: octets the queue takes, by those of
    its bodies.
    """

    queue: int
    messages: int
    round: int
    listening: float
    rss: float
    rate: float
    disk: float


class Served(NamedTuple):
    """relayd at work. scratch: its directory, that of smtp-sink too. listening: seconds from its start."""

    scratch: Path
    process: subprocess.Popen[bytes]
    listening: float
    port: int
    admin: int


Row = dict[str, float]


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--queue", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="messages waiting")
    parser.add_argument("--rounds", type=int, default=3, help="alternating with an empty queue (3)")
    parser.add_argument("--messages", type=int, default=10_000, help="new messages of a round")
    parser.add_argument("--json", type=Path, default=RESULTS / "spool.json", help="where results go")
    parser.add_argument("--directory", type=Path, help="where queues lie: a disk, not memory (the temporary directory)")
    arguments = parser.parse_args()
    known = facts(arguments.directory)
    screen = console()
    rows = {part: PARTS[part](screen, arguments) for part in arguments.parts}
    write(arguments.json, {"facts": known, **rows})
    screen.print(f"written to {arguments.json}")
    if "waiting" in rows:
        _draw(arguments.queue, rows["waiting"], arguments.json.with_suffix(".svg"))


# --- commits ----------------------------------------------------------------------------------------------------------


def _commits(screen: Console, arguments: argparse.Namespace) -> list[Row]:
    table = Table("at once", "commits/s", "p50 ms", "p99 ms")
    rows = []
    for at_once in (1, 4, 16, 64, 256, 1024):
        with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as scratch:
            seconds, latencies = asyncio.run(_commit(Path(scratch) / "shard-00", at_once))
        p50, p99 = _percentiles(latencies)
        rows.append({"at_once": at_once, "rate": len(latencies) / seconds, "p50_ms": p50, "p99_ms": p99})
        table.add_row(str(at_once), f"{len(latencies) / seconds:,.0f}", f"{p50:.2f}", f"{p99:.2f}")
    screen.print(table)
    return rows


async def _commit(shard: Path, at_once: int, seconds: float = 5.0) -> tuple[float, list[float]]:
    """Commits of 5 KB messages by so many clients, each waiting for its own; how long, and each one's latency."""
    store = JournalStore(shard, 0)
    await store.open()
    latencies: list[float] = []
    started = time.perf_counter()

    async def client(first: int) -> None:
        number = first
        while (since := time.perf_counter()) < started + seconds:
            await store.commit([_accepted(number, number % DOMAINS)])
            latencies.append(time.perf_counter() - since)
            number += at_once

    await asyncio.gather(*(client(first) for first in range(at_once)))
    taken = time.perf_counter() - started
    await store.close()
    return taken, latencies


def _percentiles(latencies: list[float]) -> tuple[float, float]:
    """The 50th and the 99th, in milliseconds."""
    hundredths = statistics.quantiles(latencies, n=100)
    return 1000 * hundredths[49], 1000 * hundredths[98]


# --- commits beside moves ---------------------------------------------------------------------------------------------


def _moving(screen: Console, arguments: argparse.Namespace) -> list[Row]:
    table = Table("1,000 commits/s", "commits", "p50 ms", "p99 ms")
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as scratch:
        beside, moved = asyncio.run(_commit_beside_moves(Path(scratch) / "shard-00"))
    rows = []
    for name, latencies in beside.items():
        p50, p99 = _percentiles(latencies)
        rows.append({"moving": float(name == "moving"), "commits": len(latencies), "p50_ms": p50, "p99_ms": p99})
        table.add_row(name, f"{len(latencies):,}", f"{p50:.2f}", f"{p99:.2f}")
    screen.print(table, f"{moved:,} messages moved")
    return rows


async def _commit_beside_moves(shard: Path, seconds: float = 60.0) -> tuple[dict[str, list[float]], int]:
    """Commits of messages that nobody settles, so that every segment has survivors; small segments, many moves."""
    store = JournalStore(shard, 0, segment_octets=16 * 1024**2)
    await store.open()
    gc.freeze()  # as `relayd serve` does
    found: dict[str, list[float]] = {"moving": [], "not moving": []}

    async def one(number: int) -> None:
        since = time.perf_counter()
        moving = any(segment.moving for segment in store.ledger.segments)
        await store.commit([_accepted(number, number % DOMAINS)])
        found["moving" if moving else "not moving"].append(time.perf_counter() - since)

    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(1000 * seconds)):
            await asyncio.sleep(started + number / 1000 - loop.time())
            group.create_task(one(number))
    moved = store.rest.count
    await store.close()
    return found, moved


# --- a large queue ----------------------------------------------------------------------------------------------------


def _waiting(screen: Console, arguments: argparse.Namespace) -> list[Row]:
    table = Table("waiting", "listening s", "RSS MB", "msg/s", "of the empty queue's", "disk / bodies")
    rows = []
    for count in arguments.queue:
        with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as directory:
            full, empty = Path(directory) / "full", Path(directory) / "empty"
            empty.mkdir()
            octets = fill(full, count, due=time.time() + 36_000)
            os.sync()  # what is still on its way to the disk would slow the first rounds
            runs = []
            for number in range(arguments.rounds):
                pair = [(full, count), (empty, 0)]
                for scratch, waiting in pair if number % 2 else pair[::-1]:
                    runs.append(_waited(scratch, (count, waiting, number), arguments.messages, octets))
        large, small = ([run for run in runs if bool(run.messages) is full] for full in (True, False))
        rows += [run._asdict() for run in runs]
        share = _share(rows, count, "rate")
        for name, of in ((f"{count:,}", large), ("0", small)):
            listening, rss, rate, disk = (
                statistics.median(getattr(run, key) for run in of) for key in ("listening", "rss", "rate", "disk")
            )
            cells = (f"{listening:.2f}", f"{rss:.0f}", f"{rate:,.0f}", f"{share:.2f}" if of is large else "")
            table.add_row(name, *cells, f"{disk:.2f}" if of is large else "")
    screen.print(table)
    return rows


def _waited(scratch: Path, which: tuple[int, int, int], messages: int, octets: int) -> Waited:
    with _served_from(scratch) as served:
        disk = sum(file.stat().st_size for file in (scratch / "spool").rglob("*") if file.is_file())
        taken = measure_through(scratch, SHAPES["kept"]._replace(messages=messages), served.port).seconds
        rss = _peak_rss(served.process.pid)
    return Waited(*which, served.listening, rss, messages / taken, disk / octets)


@contextlib.contextmanager
def _served_from(scratch: Path) -> Iterator[Served]:
    """relayd over the spool in a directory, and behind it smtp-sink."""
    sink_port, port, admin = free_port(), free_port(), free_port()
    serve, environment = relayd_command(Wanted(scratch, sink_port), port, admin)
    with (scratch / "relayd.toml").open("a", encoding="utf-8") as configuration:
        configuration.write(_LIMITS)
    with smtp_sink(scratch, sink_port):
        started = time.monotonic()
        with running(serve, scratch / "relayd.out", port, environment) as process:
            yield Served(scratch, process, time.monotonic() - started, port, admin)


def _draw(queues: list[int], rows: list[Row], file: Path) -> None:
    """A chart of what a queue costs, as shares of what the empty one beside it does."""
    keys = {"messages a second": "rate", "seconds until it listens": "listening", "memory": "rss"}
    lines = {name: [(float(count), _share(rows, count, key)) for count in queues] for name, key in keys.items()}
    title = "relayd over a queue of waiting messages, by what it does over an empty one"
    draw(title, ("messages waiting", "by the empty queue's"), lines, file, scale=(0, 2))


def _share(rows: list[Row], count: int, key: str) -> float:
    """The median over a queue by that over the empty one, of the runs that alternated."""
    full, empty = ([row[key] for row in rows if (row["queue"], row["messages"]) == (count, of)] for of in (count, 0))
    return statistics.median(full) / statistics.median(empty)


def _due(screen: Console, arguments: argparse.Namespace) -> list[Row]:
    table = Table("due at once", "RSS MB", "msg/s leaving, in a minute")
    rows = []
    for count in arguments.queue[-1:]:
        with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as directory:
            scratch = Path(directory) / "full"
            fill(scratch, count, due=time.time() - 60)
            rss, rate = _drained(scratch)
        rows.append({"messages": count, "rss": rss, "rate": rate})
        table.add_row(f"{count:,}", f"{rss:.0f}", f"{rate:,.0f}")
    screen.print(table)
    return rows


def _drained(scratch: Path, seconds: float = 60.0) -> tuple[float, float]:
    with _served_from(scratch) as served:
        time.sleep(seconds)
        delivered = _metric(served.admin, 'relayd_deliveries_total{result="delivered"}')
        return _peak_rss(served.process.pid), delivered / seconds


# --- large messages ---------------------------------------------------------------------------------------------------


def _large(screen: Console, arguments: argparse.Namespace) -> list[Row]:
    clients, octets = 100, 50_000_000
    scratch = tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory)
    with scratch as directory, _served_from(Path(directory)) as served:
        started = time.monotonic()
        put_off = asyncio.run(_send_large(served.port, clients, octets))
        answered = time.monotonic() - started
        await_all(served.scratch, clients)
        delivered = time.monotonic() - started
        rss = _peak_rss(served.process.pid)
    table = Table("100 clients, 50 MB each", "RSS MB", "all answered s", "all delivered s", "452 at MAIL")
    table.add_row("", f"{rss:.0f}", f"{answered:.1f}", f"{delivered:.1f}", str(put_off))
    screen.print(table)
    return [{"clients": clients, "octets": octets, "rss": rss, "answered": answered, "delivered": delivered}]


async def _send_large(port: int, clients: int, octets: int) -> int:
    """So many clients, a message each, all at once; how often one was told at MAIL to come again."""
    return sum(await asyncio.gather(*(_send_one(port, octets) for _ in range(clients))))


async def _send_one(port: int, octets: int) -> int:
    reader, writer = await asyncio.open_connection(HOST, port)

    async def ask(command: str) -> bytes:
        writer.write(command.encode() + b"\r\n")
        while (line := await reader.readline())[3:4] == b"-":
            pass
        return line

    put_off = 0
    with contextlib.closing(writer):
        await reader.readline()
        await ask("EHLO bench.test")
        while not (reply := await ask("MAIL FROM:<source@bench.test>")).startswith(b"250"):
            if not reply.startswith(b"452"):
                raise RuntimeError(f"MAIL was answered {reply!r}")
            put_off += 1
            await asyncio.sleep(1)
        await ask("RCPT TO:<sink@bench.test>")
        await ask("DATA")
        writer.write(b"Subject: large\r\n\r\n")
        for _ in range(octets // len(_LINES)):
            writer.write(_LINES)
            await writer.drain()
        if not (reply := await ask(".")).startswith(b"250"):
            raise RuntimeError(f"the end of data was answered {reply!r}")
    return put_off


def fill(scratch: Path, count: int, due: float) -> int:
    """A spool of so many messages at rest, as after their first deferral; the octets of their bodies."""
    shard = scratch / "spool" / "shard-00"
    shard.parent.mkdir(parents=True)
    make_directories(shard)
    index = Index(shard / "index.db", 0)
    for start in range(0, count, 500):
        index.move(list(_puts(range(start, min(start + 500, count)), due)), ())
    index.close()
    return count * len(BODY)


def _puts(numbers: range, due: float) -> Iterator[Put]:
    for number in numbers:
        accepted = _accepted(number, number % DOMAINS)
        message = Message.of(accepted)
        message.apply((Result(0, State.DEFERRED, 1, time.time(), due, DEFERRED, "mx.example.net"),))
        waiting = Waiting(f"domain{number % DOMAINS}.test", accepted.envelope.account, due)
        yield Put(accepted.envelope.id, journal.head(message), [waiting], BODY)


def _accepted(number: int, domain: int) -> Accepted:
    envelope = Envelope(
        id=queue_id.compose(0, number.to_bytes(10, "big")),
        sender=Address("sender@bench.test"),
        recipients=(Address(f"recipient{number}@domain{domain}.test"),),
        account="net:127.0.0.0/8",
        accepted_at=time.time(),
        size=len(BODY),
        client=HOST,
    )
    return Accepted(envelope, BODY)


def _peak_rss(pid: int) -> float:
    """MB, the most the process has had."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=30) as response:
        text: str = response.read().decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


PARTS = {"commits": _commits, "moving": _moving, "waiting": _waiting, "due": _due, "large": _large}


if __name__ == "__main__":
    main()
