"""Throughput, latency and CPU against one thing that grows: connections, messages' size, the queue, or destinations.

The shape is "kept" in all but that one thing, and load.py sends it. See README.md here for the method. Prints a table;
writes JSON and three charts for each curve.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from end_to_end import as_root
from measuring import SHAPES, Measured, Shape, add_where, fits, measure
from peers import PEERS
from processes import end_on_sigterm
from results import RESULTS, console, draw, facts, write
from rich.table import Table
from spool import fill

KEPT = SHAPES["kept"]._replace(own=True)
_OCTETS = 300_000_000
"""Of bodies in one run at most, so that large messages do not take all day."""


class Curve(NamedTuple):
    """What grows. name: of the axis; points: by default; shape: the load at a point; filled: the queue is so long."""

    name: str
    points: tuple[int, ...]
    shape: Callable[[int], Shape]
    filled: bool = False


def _of_size(kilobytes: int) -> Shape:
    size = 1024 * kilobytes
    return KEPT._replace(size=size, messages=max(min(KEPT.messages, _OCTETS // size), 100))


CURVES = {
    "connections": Curve("connections", (1, 2, 5, 20, 40, 80, 200), lambda count: KEPT._replace(connections=count)),
    "size": Curve("KB", (1, 5, 20, 100, 1_000, 10_000), _of_size),
    "queue": Curve("messages waiting", (0, 1_000, 10_000, 100_000), lambda _: KEPT, filled=True),
    "destinations": Curve("domains", (1, 5, 20, 100, 500), lambda count: KEPT._replace(domains=count)),
}


def main() -> None:
    """Measure what the arguments say."""
    end_on_sigterm()
    arguments = _arguments()
    curves = {name: CURVES[name] for name in arguments.curve}
    peers = {name: [peer for peer in arguments.peers if _can(peer, curve)] for name, curve in curves.items()}
    as_root(peer for of_curve in peers.values() for peer in of_curve)
    screen = console()
    about = facts(arguments.directory, arguments.python)
    for name, curve in curves.items():
        points = arguments.points or curve.points
        runs = list(_measured(curve, peers[name], points, arguments))
        rates = _medians(runs, lambda one: one.rate)
        latencies = {
            f"{peer} {rank}": line
            for rank in ("p50", "p99")
            for peer, line in _medians(runs, lambda one, rank=rank: one.accept_ms[rank]).items()
        }
        own = _own(_medians(runs, lambda one: one.rest_ms))
        screen.print(_table(curve, {"a second": rates, "ms": latencies, "own CPU ms": own}, points))
        file = arguments.results / f"curve_{name}"
        raw = [[peer, at, one._asdict()] for peer, at, one in runs]
        medians = {"medians": rates, "accept_ms": latencies, "own_cpu_ms": own}
        write(file.with_suffix(".json"), {"facts": about, **medians, "runs": raw})
        draw(f"{name}: deliveries a second", (curve.name, "a second"), rates, file.with_suffix(".svg"))
        title = f"{name}: milliseconds from the final dot to its 250, flat out"
        draw(title, (curve.name, "ms"), latencies, file.with_name(f"{file.name}_latency.svg"))
        title = f"{name}: the relay's own CPU milliseconds a delivery"
        draw(title, (curve.name, "ms"), own, file.with_name(f"{file.name}_cpu.svg"))
        screen.print(f"written to {file}.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", nargs="+", choices=CURVES, default=list(CURVES), help="(all)")
    parser.add_argument("--points", type=int, nargs="+", help="where to measure (by curve)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of all peers at each point (3)")
    parser.add_argument("--messages", type=int, help="a run at most (default: by shape)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["none", "postfix", "relayd"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    add_where(parser)
    return parser.parse_args()


def _can(peer: str, curve: Curve) -> bool:
    """Whether the relay is set up for it: only relayd's queue can be filled."""
    return fits(peer, curve.shape(1)) and (not curve.filled or peer == "relayd")


def _measured(
    curve: Curve, peers: Sequence[str], points: Sequence[int], arguments: argparse.Namespace
) -> Iterator[tuple[str, int, Measured]]:
    """Each round goes through all points, so that drift is spread over the whole curve."""
    for number in range(arguments.rounds):
        for at in points:
            shape = curve.shape(at)
            shape = shape._replace(messages=min(arguments.messages or shape.messages, shape.messages))
            prepare = functools.partial(_fill, at if curve.filled else 0)
            for peer in peers if number % 2 else peers[::-1]:
                yield peer, at, measure(peer, shape, arguments.directory, arguments.python, prepare)


def _fill(messages: int, scratch: Path) -> None:
    """A queue that is due in ten hours."""
    if messages:
        fill(scratch, messages, due=time.time() + 36_000)


def _medians(
    runs: list[tuple[str, int, Measured]], figure: Callable[[Measured], float]
) -> dict[str, list[tuple[float, float]]]:
    """By relay: where, and the median of that figure."""
    figures: dict[str, dict[int, list[float]]] = {}
    for peer, at, measured in runs:
        figures.setdefault(peer, {}).setdefault(at, []).append(figure(measured))
    return {
        peer: [(float(at), statistics.median(found)) for at, found in line.items()]
        for peer, line in sorted(figures.items())
    }


def _own(rest: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """What is left of the machine's CPU without the tools, less what is left where there is no relay."""
    nobody = dict(rest.get("none", ()))
    own = {peer: line for peer, line in rest.items() if peer != "none"}
    return {peer: [(at, ms - nobody.get(at, 0.0)) for at, ms in line] for peer, line in own.items()}


def _table(curve: Curve, kinds: dict[str, dict[str, list[tuple[float, float]]]], points: Sequence[int]) -> Table:
    table = Table(curve.name, *(f"{at:,}" for at in points))
    for unit, lines in kinds.items():
        for name, line in lines.items():
            table.add_row(f"{name}: {unit}", *(_figure(value) for _, value in line))
    return table


def _figure(value: float) -> str:
    """Two or three digits of it that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


if __name__ == "__main__":
    main()
