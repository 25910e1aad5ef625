"""How long a message takes at half of what the relay can do: until its 250, and until the next hop has it.

First the most it takes of the shape "kept" is measured as `end_to_end.py` does. Then load.py sends half as many a
second, evenly, to a relay started afresh. The sink is this process: each message carries the moment of its sending, on
a clock the whole machine shares.

See README.md here for the method. Prints a table and bounds, writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import uvloop
from end_to_end import as_root
from load import PATIENCE, Report, spread
from measuring import SHAPES, add_where, load_command, measure, scratch_directory
from peers import PEERS
from processes import beside_the_loop, end_on_sigterm
from results import RESULTS, Bound, console, facts, write
from rich.table import Table
from wanted import PASSWORD, Wanted

from tests.fakes.sink import Received, Sink

SHAPE = SHAPES["kept"]
ACCEPT_P50, ACCEPT_P99, DELIVERED_P99 = 3.0, 15.0, 50.0
"""Bounds in milliseconds."""

_SENT = re.compile(rb"^X-Sent: (\d+)\r$", re.MULTILINE)


class Latency(NamedTuple):
    """A relay at half of what it can do.

    most: messages a second; rate: half of them, aimed at; achieved: what was sent. accept_ms: from the final dot to its
    250; delivered_ms: from that dot until the sink had its own; late_ms: how late the load tool was. All p50, p99, max.
    """

    peer: str
    most: float
    rate: float
    achieved: float
    accept_ms: dict[str, float]
    delivered_ms: dict[str, float]
    late_ms: dict[str, float]


def main() -> None:
    """Measure what the arguments say."""
    end_on_sigterm()
    arguments = _arguments()
    as_root(arguments.peers)
    screen = console()
    about = facts(arguments.directory, arguments.python)
    found = []
    for peer in arguments.peers:
        most = 2 * arguments.rate if arguments.rate else _most(peer, arguments)
        found.append(uvloop.run(_at_half(peer, most, arguments)))
    screen.print(_table(found))
    for latency in found:
        for bound in _bounds(latency):
            screen.print(str(bound), highlight=False)
    write(arguments.json, {"facts": about, "seconds": arguments.seconds, "found": [one._asdict() for one in found]})
    screen.print(f"written to {arguments.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="at half of the most (20)")
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second (half of the most, as measured)")
    parser.add_argument("--rounds", type=int, default=3, help="that the most is the median of (3)")
    parser.add_argument("--messages", type=int, default=SHAPE.messages, help=f"of such a round ({SHAPE.messages:,})")
    choices = [peer for peer in PEERS if peer != "none"]
    parser.add_argument("--peers", nargs="+", choices=choices, default=["relayd"])
    parser.add_argument("--json", type=Path, default=RESULTS / "latency.json", help="where results go")
    add_where(parser)
    return parser.parse_args()


def _most(peer: str, arguments: argparse.Namespace) -> float:
    """Messages a second, flat out."""
    shape = SHAPE._replace(messages=arguments.messages)
    rounds = (measure(peer, shape, arguments.directory, arguments.python) for _ in range(arguments.rounds))
    return statistics.median(one.rate for one in rounds)


async def _at_half(peer: str, most: float, arguments: argparse.Namespace) -> Latency:
    """A relay of its own for the steady part."""
    rate = most / 2
    arrivals = _Arrivals(max(int(rate * arguments.seconds), 1))
    async with Sink(arrivals.take) as sink:
        with scratch_directory(arguments.directory) as scratch:
            relay = PEERS[peer].start(Wanted(scratch, sink.port, python=arguments.python))
            async with beside_the_loop(relay) as port:
                options = ("--rate", str(rate), "--messages", str(arrivals.expected))
                report = await _loaded(load_command(scratch, SHAPE, port, *options))
                async with asyncio.timeout(PATIENCE):
                    await arrivals.complete.wait()
    achieved = report.messages / report.seconds
    return Latency(peer, most, rate, achieved, report.accept_ms, spread(arrivals.delays), report.late_ms)


async def _loaded(command: list[str]) -> Report:
    """What the load tool reports. RuntimeError when it gave up."""
    environment = {**os.environ, "LOAD_PASSWORD": PASSWORD}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load gave up with {process.returncode}")
    return Report(**json.loads(output))


class _Arrivals:
    """How long each message took, as the sink sees it."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.delays: list[float] = []
        self.complete = asyncio.Event()

    def take(self, received: Received) -> None:
        """A message of load.py's."""
        now = time.monotonic_ns()
        sent = _SENT.search(received.content)
        if sent is None:
            raise ValueError("a message came without the time it was sent")
        self.delays.append((now - int(sent[1])) / 1e9)
        if len(self.delays) == self.expected:
            self.complete.set()


def _table(found: list[Latency]) -> Table:
    table = Table("relay", "the most /s", "sent /s", "accepted: p50 ms", "p99", "delivered: p50", "p99", "late: p99")
    for one in found:
        spans = (one.accept_ms["p50"], one.accept_ms["p99"], one.delivered_ms["p50"], one.delivered_ms["p99"])
        cells = (f"{span:.2f}" for span in (*spans, one.late_ms["p99"]))
        table.add_row(one.peer, f"{one.most:,.0f}", f"{one.achieved:,.0f}", *cells)
    return table


def _bounds(found: Latency) -> list[Bound]:
    peer = found.peer
    return [
        Bound(f"{peer}: accepted p50, ms", found.accept_ms["p50"], ACCEPT_P50, most=True),
        Bound(f"{peer}: accepted p99, ms", found.accept_ms["p99"], ACCEPT_P99, most=True),
        Bound(f"{peer}: delivered p99, ms", found.delivered_ms["p99"], DELIVERED_P99, most=True),
    ]


if __name__ == "__main__":
    main()
