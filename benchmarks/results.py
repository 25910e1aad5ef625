"""What becomes of figures: what they depend on, how they compare with a bound, files and charts.

Knows nothing of relays or loads; every benchmark here writes its results with it.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import leather
from processes import ROOT
from rich.console import Console

RESULTS = Path(__file__).parent / "results"
"""Where results go unless the caller says otherwise."""


class Bound(NamedTuple):
    """What was measured against what it should be. most: the limit is the largest value allowed, else the smallest."""

    text: str
    value: float
    limit: float
    most: bool

    @property
    def met(self) -> bool:
        """Whether it is on the right side."""
        return self.value <= self.limit if self.most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.most else "≥"
        return f"{'met   ' if self.met else 'MISSED'} {self.text}: {self.value:.3g} {sign} {self.limit:g}"


_COLOURS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#999999")
"""Of a chart's lines: ColorBrewer's Set1 without its yellow. The library has five, and fails at a sixth."""


def console() -> Console:
    """For tables: as wide as the terminal, 140 columns in a file."""
    return Console(width=None if sys.stdout.isatty() else 140)


def write(path: Path, content: object) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
    file: Path,
    scale: tuple[float, float] | None = None,
) -> None:
    """A chart: x, which grows by factors, is spaced evenly by its logarithm, 0 one factor of ten before the first.

    axes: what x and y are. lines: points by name. scale: of y, by default what the points need, from 0.
    """
    places = sorted({x for points in lines.values() for x, _ in points})
    first = min((x for x in places if x > 0), default=1.0)
    place = {x: math.log10(x) if x > 0 else math.log10(first) - 1 for x in places}
    names = {where: f"{x:,.0f}" for x, where in place.items()}
    chart = leather.Chart(title)
    chart.add_x_axis(ticks=list(names), tick_formatter=lambda where, *_: names[where], name=axes[0])
    chart.add_y_axis(name=axes[1])
    chart.add_y_scale(*(scale or (0, 1.1 * max(y for points in lines.values() for _, y in points))))
    for (name, points), colour in zip(lines.items(), itertools.cycle(_COLOURS), strict=False):
        chart.add_line([(place[x], y) for x, y in points], name=name, stroke_color=colour)
    chart.to_svg(str(file))


def facts(queues: Path | None, interpreter: str = sys.executable) -> dict[str, object]:
    """What the figures depend on: the machine, the versions, the file system of the queues.

    interpreter: the Python that runs relayd.
    """
    directory = str(queues or tempfile.gettempdir())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "file_system": _printed("stat", "--file-system", "--format=%T", directory),
        "python": build(interpreter),
        "relayd": _printed("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "postfix": _printed("postconf", "-dh", "mail_version"),
        "dovecot": _printed("dovecot", "--version"),
        "load_before": os.getloadavg(),
    }


def build(interpreter: str) -> str:
    """Tells two builds of one Python version apart: profile-guided optimization alone is worth a fifth of the time."""
    return _printed(interpreter, "-c", "import sys; print(sys.version)")


def _first(file: str, name: str) -> str:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _printed(*command: str) -> str:
    """What a program prints, nothing when it is not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
