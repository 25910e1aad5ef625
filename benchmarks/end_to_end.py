"""relayd and Postfix side by side, end to end: messages per second and CPU time, on this machine, over loopback.

smtp-source sends, smtp-sink takes, the relay stands between; a run lasts from the first connection until the sink has
counted every message. See README.md here for the method. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from peers import HOST, PEERS, free_port, program, running
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "end_to_end.json"
_PATIENCE = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """A kind of load. options: of smtp-source; messages: of one run, unless said otherwise."""

    text: str
    options: tuple[str, ...]
    messages: int


SHAPES = {
    "kept": Shape("5 KB, 20 kept connections", ("-s", "20", "-d", "-l", "5120"), 10_000),
    "each": Shape("5 KB, 50 connections, one per message", ("-s", "50", "-l", "5120"), 10_000),
    "large": Shape("100 KB, 20 kept connections", ("-s", "20", "-d", "-l", "102400"), 3_000),
}


class Run(NamedTuple):
    """One measurement. seconds: until the sink had all; cpu: seconds of the whole machine, all processes."""

    shape: str
    peer: str
    round: int
    messages: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Messages per second, end to end."""
        return self.messages / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a message, of the whole machine."""
        return 1000 * self.cpu / self.messages


class Summary(NamedTuple):
    """Medians of one peer in one shape. own_cpu_ms: the machine's CPU a message less that of no relay."""

    rate: float
    slowest: float
    fastest: float
    cpu_ms: float
    own_cpu_ms: float | None


def main() -> None:
    """Measure what the arguments say."""
    arguments = _arguments()
    if os.geteuid() != 0 and "postfix" in arguments.peers:
        sys.exit("Postfix runs only as root: become root, or leave it out with --peers none relayd")
    console = Console(width=None if sys.stdout.isatty() else 140)
    about = facts(arguments.directory)
    runs = []
    for run in _runs(arguments):
        runs.append(run)
        console.print(f"round {run.round} {run.shape:6} {run.peer:8} {run.rate:8.0f} msg/s {run.cpu_ms:7.2f} ms CPU")
    summaries = _summaries(runs)
    console.print(_table(summaries))
    _write(arguments.json, about, runs, summaries)
    console.print(f"written to {arguments.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of all peers (3)")
    parser.add_argument("--messages", type=int, help="a run (default: by shape)")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"where results go ({RESULTS.name})")
    parser.add_argument("--directory", type=Path, help="where queues lie: a disk, not memory (the temporary directory)")
    return parser.parse_args()


def _runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """Every shape in every round; every second round takes the peers in reverse, so that drift hits all alike."""
    for number in range(1, arguments.rounds + 1):
        order = arguments.peers if number % 2 else arguments.peers[::-1]
        for shape in arguments.shape:
            for peer in order:
                messages = arguments.messages or SHAPES[shape].messages
                with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=arguments.directory) as directory:
                    scratch = Path(directory)
                    scratch.chmod(0o755)  # Postfix's own user goes through it
                    seconds, cpu = _measure(scratch, shape, peer, messages)
                yield Run(shape, peer, number, messages, seconds, cpu)


def _measure(scratch: Path, shape: str, peer: str, messages: int) -> tuple[float, float]:
    """Seconds and CPU seconds from the first connection until the sink has counted all."""
    sink_port = free_port()
    counters = scratch / "smtp-sink.out"
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    sink = [program("smtp-sink"), *user, "-c", f"inet:{HOST}:{sink_port}", "1024"]
    with running(sink, counters, sink_port), PEERS[peer](scratch, sink_port) as port:
        os.sync()
        cpu = _cpu()
        seconds = measure_through(scratch, counters, SHAPES[shape].options, messages, port)
        return seconds, _cpu() - cpu


def measure_through(scratch: Path, counters: Path, load: Sequence[str], messages: int, port: int) -> float:
    """Seconds from smtp-source's start until a running smtp-sink has counted all."""
    started = time.monotonic()
    with (scratch / "smtp-source.out").open("wb") as output:
        source = subprocess.Popen(_source(load, messages, port), stdout=output, stderr=output)
    try:
        await_all(counters, messages, source)
        return time.monotonic() - started
    finally:
        if source.poll() is None:
            source.terminate()
        source.wait(10)


def _source(load: Sequence[str], messages: int, port: int) -> list[str]:
    options = (*load, "-m", str(messages), "-f", "source@bench.test", "-t", "sink@bench.test")
    return [program("smtp-source"), *options, f"inet:{HOST}:{port}"]


def await_all(counters: Path, messages: int, source: subprocess.Popen[bytes] | None = None) -> None:
    """Return when smtp-sink has counted so many. RuntimeError when the source ends otherwise, or in 10 minutes."""
    deadline = time.monotonic() + _PATIENCE
    with counters.open("rb") as file:
        while (counted := _counted(file.fileno())) < messages:
            if source is not None and source.poll():
                raise RuntimeError(f"smtp-source gave up with {source.returncode} after {counted} messages at the sink")
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {counted} of {messages} messages at the sink after {_PATIENCE:.0f} s")
            time.sleep(0.005)


def _counted(descriptor: int) -> int:
    """Messages by smtp-sink's running counters: "sess=1 quit=1 mesg=5" CR, again and again."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 256, max(size - 256, 0))
    last = tail.rpartition(b"\r")[0].rpartition(b"mesg=")[2]
    return int(last) if last else 0


def _cpu() -> float:
    """CPU seconds the whole machine has worked since it started, waiting for disks aside (/proc/stat)."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / _TICKS


def _summaries(runs: list[Run]) -> dict[str, dict[str, Summary]]:
    """By shape, then by peer."""
    summaries: dict[str, dict[str, Summary]] = {}
    for shape in dict.fromkeys(run.shape for run in runs):
        by_peer: dict[str, list[Run]] = {}
        for run in runs:
            if run.shape == shape:
                by_peer.setdefault(run.peer, []).append(run)
        tools = statistics.median(run.cpu_ms for run in by_peer["none"]) if "none" in by_peer else None
        summaries[shape] = {peer: _summary(peer, of_peer, tools) for peer, of_peer in by_peer.items()}
    return summaries


def _summary(peer: str, runs: list[Run], tools: float | None) -> Summary:
    rates = [run.rate for run in runs]
    cpu_ms = statistics.median(run.cpu_ms for run in runs)
    own = None if tools is None or peer == "none" else cpu_ms - tools
    return Summary(statistics.median(rates), min(rates), max(rates), cpu_ms, own)


def _table(summaries: dict[str, dict[str, Summary]]) -> Table:
    table = Table("load", "relay")
    for column in ("msg/s", "slowest to fastest", "× Postfix", "CPU ms/msg", "the relay's own", "of Postfix's"):
        table.add_column(column, justify="right")
    for shape, by_peer in summaries.items():
        rival = by_peer.get("postfix")
        for peer, summary in by_peer.items():
            table.add_row(SHAPES[shape].text, peer, *_cells(summary, rival))
        table.add_section()
    return table


def _cells(summary: Summary, rival: Summary | None) -> list[str]:
    own = summary.own_cpu_ms
    share = own / rival.own_cpu_ms if rival and rival.own_cpu_ms and own is not None else None
    return [
        f"{summary.rate:,.0f}",
        f"{summary.slowest:,.0f} to {summary.fastest:,.0f}",
        f"{summary.rate / rival.rate:.1f}" if rival else "",
        f"{summary.cpu_ms:.2f}",
        "" if own is None else f"{own:.2f}",
        "" if share is None else f"1/{1 / share:.1f}" if share > 0 else "none",
    ]


def _write(path: Path, about: dict[str, object], runs: list[Run], summaries: dict[str, dict[str, Summary]]) -> None:
    medians = {shape: {peer: one._asdict() for peer, one in by_peer.items()} for shape, by_peer in summaries.items()}
    content = {"facts": about, "medians": medians, "runs": [run._asdict() for run in runs]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def facts(queues: Path | None) -> dict[str, object]:
    """What the figures depend on: the machine, the versions, the file system of the queues."""
    directory = str(queues or tempfile.gettempdir())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "file_system": _printed("stat", "--file-system", "--format=%T", directory),
        "python": platform.python_version(),
        "python_optimized": "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
        "relayd": _printed("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "postfix": _printed(program("postconf"), "-dh", "mail_version"),
        "load_before": os.getloadavg(),
    }


def _first(file: str, name: str) -> str:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
