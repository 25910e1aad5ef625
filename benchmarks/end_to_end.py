"""relayd beside Postfix and others, end to end: deliveries per second and CPU time, on this machine, over loopback.

A load tool sends, smtp-sink takes, the relay stands between; a run lasts from the first connection until the sink has
counted every message. See README.md here for the method. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import SHAPES, Measured, Shape, add_where, fits, measure
from peers import PEERS
from processes import end_on_sigterm
from results import RESULTS, console, facts, write
from rich.table import Table


class Run(NamedTuple):
    """A measurement of a relay under one shape of load, in one round."""

    shape: str
    peer: str
    round: int
    measured: Measured

    def document(self) -> dict[str, object]:
        """As results have it."""
        return {"shape": self.shape, "peer": self.peer, "round": self.round, **self.measured._asdict()}


class Summary(NamedTuple):
    """Medians of one peer in one shape. load_cpu_ms: the load tool's; own_cpu_ms: the relay's, a delivery."""

    rate: float
    slowest: float
    fastest: float
    cpu_ms: float
    load_cpu_ms: float
    own_cpu_ms: float | None


def main() -> None:
    """Measure what the arguments say."""
    end_on_sigterm()
    arguments = _arguments()
    as_root(arguments.peers)
    screen = console()
    about = facts(arguments.directory, arguments.python)
    found = []
    shapes = {name: SHAPES[name] for name in arguments.shape}
    if arguments.messages:
        shapes = {name: shape._replace(messages=arguments.messages) for name, shape in shapes.items()}
    for run in runs(shapes, arguments.peers, arguments.rounds, arguments.directory, arguments.python):
        found.append(run)
        speed = f"{run.measured.rate:8.0f} /s {run.measured.cpu_ms:7.2f} ms CPU"
        screen.print(f"round {run.round} {run.shape:8} {run.peer:9} {speed}")
    by_shape = summaries(found)
    screen.print(table(by_shape))
    medians = {shape: {peer: one._asdict() for peer, one in by_peer.items()} for shape, by_peer in by_shape.items()}
    write(arguments.json, {"facts": about, "medians": medians, "runs": [run.document() for run in found]})
    screen.print(f"written to {arguments.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of all peers (3)")
    parser.add_argument("--messages", type=int, help="a run (default: by shape)")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["none", "postfix", "relayd"])
    parser.add_argument("--json", type=Path, default=RESULTS / "end_to_end.json", help="where results go")
    add_where(parser)
    return parser.parse_args()


def as_root(peers: Iterable[str]) -> None:
    """Give up unless we may run them."""
    if os.geteuid() != 0 and (of_root := [peer for peer in peers if PEERS[peer].root]):
        sys.exit(f"only root may run {', '.join(of_root)}: become root, or leave them out with --peers none relayd")


def runs(
    shapes: Mapping[str, Shape], peers: Sequence[str], rounds: int, directory: Path | None, python: str
) -> Iterator[Run]:
    """Every shape in every round; every second round takes the peers in reverse, so that drift hits all alike."""
    for number in range(1, rounds + 1):
        order = peers if number % 2 else peers[::-1]
        for name, shape in shapes.items():
            for peer in order:
                if fits(peer, shape):
                    yield Run(name, peer, number, measure(peer, shape, directory, python))


def summaries(found: Iterable[Run]) -> dict[str, dict[str, Summary]]:
    """By shape, then by peer."""
    by_shape: dict[str, dict[str, list[Measured]]] = {}
    for run in found:
        by_shape.setdefault(run.shape, {}).setdefault(run.peer, []).append(run.measured)
    summed: dict[str, dict[str, Summary]] = {}
    for shape, by_peer in by_shape.items():
        # What the kernel does for nobody in particular it does without a relay, too. There is no "none" under TLS.
        nobody = statistics.median(one.rest_ms for one in by_peer["none"]) if "none" in by_peer else 0.0
        summed[shape] = {peer: _summary(peer, of_peer, nobody) for peer, of_peer in by_peer.items()}
    return summed


def _summary(peer: str, measured: list[Measured], nobody: float) -> Summary:
    rates = [one.rate for one in measured]
    cpu_ms = statistics.median(one.cpu_ms for one in measured)
    load_cpu_ms = statistics.median(1000 * one.load_cpu / one.messages for one in measured)
    own = None if peer == "none" else statistics.median(one.rest_ms for one in measured) - nobody
    return Summary(statistics.median(rates), min(rates), max(rates), cpu_ms, load_cpu_ms, own)


def table(found: dict[str, dict[str, Summary]]) -> Table:
    """What people read."""
    rows = Table("load", "relay")
    for column in ("a second", "slowest to fastest", "× Postfix", "CPU ms", "load tool's", "relay's", "of Postfix's"):
        rows.add_column(column, justify="right")
    for shape, by_peer in found.items():
        for peer, summary in by_peer.items():
            rows.add_row(SHAPES[shape].text, peer, *_cells(summary, by_peer.get("postfix")))
        rows.add_section()
    return rows


def _cells(summary: Summary, rival: Summary | None) -> list[str]:
    own = summary.own_cpu_ms
    share = own / rival.own_cpu_ms if rival and rival.own_cpu_ms and own is not None else None
    return [
        f"{summary.rate:,.0f}",
        f"{summary.slowest:,.0f} to {summary.fastest:,.0f}",
        f"{summary.rate / rival.rate:.1f}" if rival else "",
        f"{summary.cpu_ms:.2f}",
        f"{summary.load_cpu_ms:.2f}",
        "" if own is None else f"{own:.2f}",
        "" if share is None else f"1/{1 / share:.1f}" if share > 0 else "none",
    ]


if __name__ == "__main__":
    main()
