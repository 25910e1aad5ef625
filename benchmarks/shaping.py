"""Shaping: what a next hop that limits costs, and what a slow site or a large account costs the others.

By default two runs under a backlog that never ends, of minutes each: a next hop that takes 5 connections and greets
others with 421, and one that takes 50 messages a second and answers others 450. Told by the minute: the part of the
attempts that was deferred, and what was delivered of what the limit allows. --tarpit: twenty sites with and without one
beside them that never answers. --account: messages of one account past one with 100,000 waiting.

See README.md here for the method. Prints tables and bounds, writes JSON, and draws windows and rates over time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import leather
import uvloop
from processes import HOST, beside_the_loop, free_port, running
from results import RESULTS, Bound, console, facts, write
from rich.console import Console
from rich.table import Table

from tests.fakes.limited_peer import LimitedPeer, SlidingWindow
from tests.fakes.sink import Received, Sink

CONNECTIONS, SERVICE = 5, 0.05
"""The first next hop's limit, and the seconds it takes for a message: 100 messages a second."""

RATE = 50
"""Messages a second: the second next hop's limit."""

BACKLOG = 500
"""Messages kept ready to go, so that what is delivered is what was allowed."""

FIRST, LATER, GOODPUT = 0.20, 0.05, 0.90
"""Bounds: deferred in the first minute, in each later one, and delivered of the limit in each later one."""

SITES, THROUGHPUT = 20, 0.95
"""Of --tarpit: the other sites, and what they keep of their throughput at least."""

OTHER = "127.0.0.2"
"""Where the mail of the other account comes from."""

WINDOW = 20
"""Connections of a site at most: the messages that may pass one of another account."""

_BODY = b"Subject: shaping\r\n\r\n" + (b"x" * 76 + b"\r\n") * 13
_PATIENCE = 600.0

_CONFIGURATION = """\
hostname = "relay.bench.test"
workers = 1
[[listeners]]
bind = "{host}:{port}"
kind = "relay"
[relay]
trusted_networks = ["{host}/32", "{other}/32"]
[admin]
bind = "{host}:{admin}"
[log]
file = "events.log"
level = "debug"
"""

_ROUTE = '[[routes]]\ndomains = ["{domain}"]\nnext_hops = ["{host}:{port}"]\n'


class Minute(NamedTuple):
    """A minute of a run. deferred: the part of its attempts; delivered: messages; goodput: of what the limit allows.

    refused: what the next hop refused, connections and messages, of all it was asked: no deferral need follow.
    """

    run: str
    minute: int
    delivered: float
    deferred: float
    goodput: float
    refused: float


class Change(NamedTuple):
    """A window or a rate became another. at: seconds from the run's start; limit: None for none."""

    run: str
    aspect: str
    at: float
    limit: float | None
    reply: str


class Relay(NamedTuple):
    """A relayd at work."""

    port: int
    admin: int
    events: Path

    async def samples(self) -> dict[str, float]:
        """Every sample of its metrics, by name and labels as they are written."""
        text = await asyncio.to_thread(self._read)
        lines = (line for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def _read(self) -> str:
        with urllib.request.urlopen(f"http://{HOST}:{self.admin}/metrics", timeout=30) as response:
            text: str = response.read().decode()
            return text


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="of each run (3)")
    parser.add_argument("--tarpit", action="store_true", help="measure the others beside a tarpit instead")
    parser.add_argument("--account", action="store_true", help="measure one account behind another instead")
    parser.add_argument("--rounds", type=int, default=3, help="of --tarpit, with and without it (3)")
    parser.add_argument("--messages", type=int, help="of a round of --tarpit (10,000), of the large account (100,000)")
    parser.add_argument("--json", type=Path, default=RESULTS / "shaping.json", help="where results go")
    parser.add_argument("--directory", type=Path, help="where queues lie: a disk, not memory (the temporary directory)")
    arguments = parser.parse_args()
    known = facts(arguments.directory)
    screen = console()
    parts = [part for name, part in _OTHER_PARTS.items() if getattr(arguments, name)] or [_limits]
    # What other parts found stays.
    results = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    for part in parts:
        found, bounds = uvloop.run(part(screen, arguments))
        results |= {name: {"facts": known, "found": value} for name, value in found.items()}
        for bound in bounds:
            screen.print(str(bound), highlight=False)
    write(arguments.json, results)
    screen.print(f"written to {arguments.json}")
    if parts == [_limits]:
        _draw(results, arguments.json.with_suffix(".svg"))


Found = tuple[dict[str, object], list[Bound]]
"""Results by the name they have in the file, and how they compare."""


# --- a next hop that limits -------------------------------------------------------------------------------------------


async def _limits(screen: Console, arguments: argparse.Namespace) -> Found:
    found: dict[str, object] = {}
    bounds = []
    peers = {
        "connections": (
            LimitedPeer(connections=CONNECTIONS, service=SERVICE, on_message=_ignore),
            CONNECTIONS / SERVICE,
        ),
        "rate": (LimitedPeer(law=SlidingWindow(RATE), on_message=_ignore), float(RATE)),
    }
    table = Table("limit", "minute", "deferred", "refused by the next hop", "of the limit delivered", "delivered")
    for run, (peer, limit) in peers.items():
        minutes, changes = await _under_load(run, peer, limit, arguments)
        for minute in minutes:
            shares = (f"{share:.1%}" for share in (minute.deferred, minute.refused, minute.goodput))
            table.add_row(run, str(minute.minute), *shares, f"{minute.delivered:,.0f}")
        found[run] = {
            "minutes": [minute._asdict() for minute in minutes],
            "changes": [change._asdict() for change in changes],
            "seconds": {at: vars(second) for at, second in peer.seconds.items()},
        }
        bounds += _bounds(run, minutes)
    screen.print(table)
    return found, bounds


def _bounds(run: str, minutes: Sequence[Minute]) -> list[Bound]:
    bounds = [Bound(f"{run}: deferred in the first minute", minutes[0].deferred, FIRST, most=True)]
    for minute in minutes[1:]:
        bounds.append(Bound(f"{run}: deferred in minute {minute.minute}", minute.deferred, LATER, most=True))
        bounds.append(Bound(f"{run}: goodput in minute {minute.minute}", minute.goodput, GOODPUT, most=False))
    return bounds


async def _under_load(
    run: str, peer: LimitedPeer, limit: float, arguments: argparse.Namespace
) -> tuple[list[Minute], list[Change]]:
    """Minutes of a run, the last one as long as is left, and what changed meanwhile."""
    async with _scratch(arguments) as scratch, peer, _relayd(scratch, {"*": peer.port}) as relay:
        peer.restart()
        began, wall = time.monotonic(), time.time()
        offering = asyncio.create_task(_offer(relay))
        minutes = []
        before = await _seen(relay, peer)
        ends = [*range(60, math.ceil(60 * arguments.minutes), 60), 60 * arguments.minutes]
        for number, (start, end) in enumerate(itertools.pairwise([0, *ends]), 1):
            # Ends early when no mail can be offered any more.
            await asyncio.wait([offering], timeout=began + end - time.monotonic())
            if offering.done():
                offering.result()
            after = await _seen(relay, peer)
            differences = {name: after[name] - before.get(name, 0.0) for name in after}
            minutes.append(_minute(run, number, differences, (end - start) * limit))
            before = after
        offering.cancel()
        return minutes, _changes(run, relay.events, wall)


async def _seen(relay: Relay, peer: LimitedPeer) -> dict[str, float]:
    """relayd's samples, and what the next hop counted."""
    refused = float(peer.refused + peer.turned_away)
    accepted = float(sum(second.accepted for second in peer.seconds.values()))
    return {**await relay.samples(), "refused": refused, "accepted": accepted}


def _minute(run: str, number: int, counted: dict[str, float], allowed: float) -> Minute:
    delivered, deferred, failed = (
        counted[f'relayd_deliveries_total{{result="{result}"}}'] for result in ("delivered", "deferred", "failed")
    )
    refused = counted["refused"] / max(counted["refused"] + counted["accepted"], 1)
    attempted = max(delivered + deferred + failed, 1)
    return Minute(run, number, delivered, deferred / attempted, delivered / allowed, refused)


async def _offer(relay: Relay) -> None:
    """Mail without end, so much that BACKLOG is ready to go."""
    async with _client(relay.port) as client:
        while True:
            ready = (await relay.samples())['relayd_queue_messages{state="ready"}']
            for _ in range(int(BACKLOG - ready)):
                await client.send("sink.test")
            await asyncio.sleep(0.2)


def _changes(run: str, events: Path, began: float) -> list[Change]:
    """What the log says of windows and rates. began: wall seconds."""
    changes = []
    for line in events.read_text(encoding="utf-8").splitlines():
        if '"event":"window"' in line or '"event":"rate"' in line:
            event = json.loads(line)
            at = datetime.datetime.fromisoformat(event["time"]).timestamp() - began
            changes.append(Change(run, event["event"], at, event["limit"], event.get("reply", "")))
    return changes


def _ignore(_received: Received) -> None:
    """Nobody looks at the messages."""


def _draw(results: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]], file: Path) -> None:
    """Both runs over time: what relayd allowed itself, and what the next hop saw."""
    grid = leather.Grid()
    for run, aspect, seen in (("connections", "window", "most"), ("rate", "rate", "accepted")):
        found = results[run]["found"]
        seconds = [(int(at), second[seen]) for at, second in found["seconds"].items()]
        changes = [(change["at"], change["limit"]) for change in found["changes"] if change["aspect"] == aspect]
        chart = leather.Chart(f"a limit of {CONNECTIONS} connections" if run == "connections" else f"{RATE} messages/s")
        chart.add_x_axis(name="seconds")
        chart.add_y_axis(name="connections" if run == "connections" else "messages a second")
        chart.add_line(seconds, name="as the next hop saw it")
        known = [(at, limit) for at, limit in changes if limit is not None]
        if known:
            chart.add_line(_steps(known, seconds[-1][0]), name=f"{aspect} of the site")
        grid.add_one(chart)
    grid.to_svg(str(file))


def _steps(changes: list[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """A limit holds until it is another."""
    points = []
    for (at, limit), (until, _) in itertools.pairwise([*changes, (max(end, changes[-1][0]), 0.0)]):
        points += [(at, limit), (until, limit)]
    return points


# --- a site that never answers ----------------------------------------------------------------------------------------


async def _tarpit(screen: Console, arguments: argparse.Namespace) -> Found:
    messages = arguments.messages or 10_000
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(arguments.rounds):
        for beside in (True, False) if number % 2 else (False, True):
            rates[beside].append(messages / await _beside(arguments, messages, tarpit=beside))
    without, beside = (statistics.median(rates[which]) for which in (False, True))
    table = Table("20 sites", "msg/s", "slowest to fastest")
    for name, which in (("alone", False), ("beside a tarpit", True)):
        span = f"{min(rates[which]):,.0f} to {max(rates[which]):,.0f}"
        table.add_row(name, f"{statistics.median(rates[which]):,.0f}", span)
    screen.print(table)
    bound = Bound("throughput beside a tarpit, of that without", beside / without, THROUGHPUT, most=False)
    return {"tarpit": {"alone": rates[False], "beside": rates[True]}}, [bound]


async def _beside(arguments: argparse.Namespace, messages: int, *, tarpit: bool) -> float:
    """Seconds from the first message to twenty sites until they have all."""
    arrived = itertools.count(1)
    last = asyncio.Event()

    def take(_received: Received) -> None:
        if next(arrived) == messages:
            last.set()

    async with contextlib.AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(_scratch(arguments))
        sinks = [await stack.enter_async_context(Sink(take)) for _ in range(SITES)]
        slow = await stack.enter_async_context(LimitedPeer(service=2 * _PATIENCE))
        ports = {f"d{number}.test": sink.port for number, sink in enumerate(sinks)}
        relay = await stack.enter_async_context(_relayd(scratch, {**ports, "slow.test": slow.port}))
        if tarpit:
            await _send(relay.port, ["slow.test"] * 1000)
            await _settled(lambda: slow.connections)
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE):
            await _send(relay.port, [f"d{number % SITES}.test" for number in range(messages)])
            await last.wait()
        return time.monotonic() - began


async def _settled(count: Callable[[], int]) -> None:
    """Return when it is positive and has been the same for a second."""
    before = 0
    async with asyncio.timeout(30):
        while (now := count()) != before or not now:
            before = now
            await asyncio.sleep(1)


# --- an account with much mail ----------------------------------------------------------------------------------------


class _Arrivals:
    """What the next hop took, in order, and whom that concerns."""

    def __init__(self) -> None:
        self.recipients: list[str] = []
        self._awaited: dict[str, asyncio.Event] = {}

    def take(self, received: Received) -> None:
        """A message of one recipient."""
        (recipient,) = received.addresses
        self.recipients.append(recipient)
        if recipient in self._awaited:
            self._awaited[recipient].set()

    def expect(self, recipient: str) -> asyncio.Event:
        """Set when mail for them has come."""
        return self._awaited.setdefault(recipient, asyncio.Event())


async def _account(screen: Console, arguments: argparse.Namespace) -> Found:
    messages = arguments.messages or 100_000
    arrivals = _Arrivals()
    async with contextlib.AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(_scratch(arguments))
        peer = await stack.enter_async_context(LimitedPeer(service=SERVICE, on_message=arrivals.take))
        relay = await stack.enter_async_context(_relayd(scratch, {"*": peer.port}))
        await _send(relay.port, ["sink.test"] * messages)
        waiting = messages - len(arrivals.recipients)
        other = await stack.enter_async_context(_client(relay.port, OTHER))
        passed = [await _passed(other, arrivals, f"other{number}") for number in range(20)]
    screen.print(f"{waiting:,} messages waiting; passed a message of another account: {sorted(passed)}")
    bound = Bound("messages that passed one of another account", max(passed), WINDOW, most=True)
    return {"account": {"waiting": waiting, "passed": passed}}, [bound]


async def _passed(client: _Client, arrivals: _Arrivals, name: str) -> int:
    """How many others the next hop took between the 250 to a message and that message."""
    recipient = f"{name}@sink.test"
    arrived = arrivals.expect(recipient)
    await client.send("sink.test", name)
    before = len(arrivals.recipients)
    async with asyncio.timeout(_PATIENCE):
        await arrived.wait()
    return max(arrivals.recipients.index(recipient) - before, 0)


# --- relayd and its clients -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _scratch(arguments: argparse.Namespace) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as directory:
        yield Path(directory)


@contextlib.asynccontextmanager
async def _relayd(scratch: Path, routes: dict[str, int]) -> AsyncIterator[Relay]:
    """A relayd with a route for each domain, to a port here."""
    port, admin = free_port(), free_port()
    text = _CONFIGURATION.format(host=HOST, other=OTHER, port=port, admin=admin)
    text += "".join(_ROUTE.format(domain=domain, host=HOST, port=hop) for domain, hop in routes.items())
    (scratch / "relayd.toml").write_text(text, encoding="utf-8")
    serve = [sys.executable, "-m", "relayd", "serve", "--config", str(scratch / "relayd.toml")]
    async with beside_the_loop(running(serve, scratch / "relayd.out", port)):
        yield Relay(port, admin, scratch / "events.log")


class _Client:
    """A connection to relayd that sends a message at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, domain: str, name: str = "recipient") -> None:
        """A message to somebody there; RuntimeError when it is not taken."""
        recipient = f"{name}@{domain}".encode()
        self._writer.write(b"MAIL FROM:<source@bench.test>\r\nRCPT TO:<%s>\r\nDATA\r\n" % recipient)
        for _ in range(3):
            answer = await self._reader.readline()
        if answer.startswith(b"354"):
            self._writer.write(_BODY + b".\r\n")
            answer = await self._reader.readline()
        if not answer.startswith(b"250"):
            raise RuntimeError(f"a message was answered {answer!r}")


@contextlib.asynccontextmanager
async def _client(port: int, source: str = HOST) -> AsyncIterator[_Client]:
    reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
    with contextlib.closing(writer):
        await reader.readline()
        writer.write(b"EHLO bench.test\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
        yield _Client(reader, writer)


async def _send(port: int, domains: Sequence[str], connections: int = 8) -> None:
    """A message to each, over some connections."""

    async def some(part: Sequence[str]) -> None:
        async with _client(port) as client:
            for domain in part:
                await client.send(domain)

    async with asyncio.TaskGroup() as group:
        for first in range(connections):
            group.create_task(some(domains[first::connections]))


_OTHER_PARTS = {"tarpit": _tarpit, "account": _account}


if __name__ == "__main__":
    main()
