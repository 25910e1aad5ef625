"""Whether relayd became slower than it was when results were recorded: a short form of `end_to_end.py`.

Speeds of a machine drift, ratios to what runs beside on the same machine hardly do: compared are relayd by Postfix and
relayd by no relay at all, of each round, in the median. Fails when one of them has lost more than a tenth. Results of
the same processors are preferred, then those of the same build of Python: other ones may differ by more than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from end_to_end import as_root, runs
from measuring import SHAPES, add_where
from processes import end_on_sigterm
from results import RESULTS, Bound, console, facts

KEPT = 0.9
"""Bound: what a ratio keeps of the recorded one."""

RIVALS = ("postfix", "none")
MESSAGES = {"kept": 4_000, "each": 4_000, "large": 1_000}
"""Of a run, by shape: enough for the starts and ends of runs not to matter."""


class Speed(NamedTuple):
    """One relay in one round."""

    shape: str
    peer: str
    round: int
    rate: float


def main() -> None:
    """Measure, compare, and say so with the exit code: 0 for as fast, 1 for slower."""
    end_on_sigterm()
    arguments = _arguments()
    as_root(["relayd", *RIVALS])
    recorded = last_recorded(arguments.results, facts(arguments.directory, arguments.python))
    if missing := [shape for shape in arguments.shape if shape not in recorded]:
        sys.exit(f"nothing recorded for {', '.join(missing)}: measure with end_to_end.py first")
    screen = console()
    slower = False
    for shape in arguments.shape:
        measured = _measured(shape, arguments)
        for bound in compared(shape, measured, recorded[shape]):
            screen.print(str(bound), highlight=False)
            slower = slower or not bound.met
    sys.exit(int(slower))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of all peers (3)")
    parser.add_argument("--messages", type=int, help="a run (default: by shape)")
    parser.add_argument("--shape", nargs="+", choices=MESSAGES, default=list(MESSAGES))
    parser.add_argument("--results", type=Path, nargs="+", default=sorted(RESULTS.glob("end_to_end*.json")))
    add_where(parser)
    return parser.parse_args()


def _measured(shape: str, arguments: argparse.Namespace) -> list[Speed]:
    shapes = {shape: SHAPES[shape]._replace(messages=arguments.messages or MESSAGES[shape])}
    measured = runs(shapes, [*RIVALS, "relayd"], arguments.rounds, arguments.directory, arguments.python)
    return [Speed(run.shape, run.peer, run.round, run.measured.rate) for run in measured]


def last_recorded(files: Iterable[Path], here: Mapping[str, object]) -> dict[str, list[Speed]]:
    """The runs of each shape, from the file measured last of those that have it, and that are the most like `here`."""
    recorded: dict[str, list[Speed]] = {}
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for content in sorted(contents, key=lambda one: (_likeness(one["facts"], here), one["facts"]["date"])):
        found: dict[str, list[Speed]] = {}
        for run in content["runs"]:
            rate = run["messages"] / run["seconds"]
            found.setdefault(run["shape"], []).append(Speed(run["shape"], run["peer"], run["round"], rate))
        recorded |= found
    return recorded


def _likeness(there: Mapping[str, object], here: Mapping[str, object]) -> tuple[bool, bool]:
    return all(there[name] == here[name] for name in ("cpu", "cpus")), there["python"] == here["python"]


def compared(shape: str, now: Iterable[Speed], then: Iterable[Speed]) -> list[Bound]:
    """A bound for each rival. ValueError when one of the two lacks relayd or a rival."""
    now, then = tuple(now), tuple(then)
    bounds = []
    for rival in RIVALS:
        new, old = ratio(now, rival), ratio(then, rival)
        text = f"{shape}: relayd by {rival}, {new:.2f}, of the recorded {old:.2f}"
        bounds.append(Bound(text, new / old, KEPT, most=False))
    return bounds


def ratio(speeds: Iterable[Speed], rival: str) -> float:
    """relayd's rate by that of the rival in the same round, in the median. ValueError when no round has both."""
    rounds: dict[int, dict[str, float]] = {}
    for speed in speeds:
        rounds.setdefault(speed.round, {})[speed.peer] = speed.rate
    ratios = [rates["relayd"] / rates[rival] for rates in rounds.values() if {"relayd", rival} <= rates.keys()]
    if not ratios:
        raise ValueError(f"no round has both relayd and {rival}")
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
