"""One measurement: a load through a relay into a sink, counted at the sink, and the CPU time of everybody.

Owns the shapes of loads and the method of a run; README.md tells the method to people. Which relays there are is in
`peers.py`, what becomes of the figures in `results.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from load import Report
from peers import PEERS
from processes import HOST, free_port, program, running
from wanted import PASSWORD, USER, Wanted

_PATIENCE = 600.0
_DESCRIPTORS = 20_000
_TICKS = os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """A kind of load.

    messages: of one run. size: octets of a body. kept: many messages a connection, else one. recipients: of a message.
    domains: that they are at, in turn, each with a next hop of its own; 0 for one that shares the next hop of all. tls:
    STARTTLS and AUTH. own: sent by load.py, else by smtp-source.
    """

    text: str
    messages: int
    connections: int = 20
    size: int = 5120
    kept: bool = True
    recipients: int = 1
    domains: int = 0
    tls: bool = False
    own: bool = False

    @property
    def deliveries(self) -> int:
        """Transactions the sink must see."""
        return self.messages * self.recipients

    def without_relay(self) -> Shape:
        """As many copies, each sent as a message of its own: what the sink sees behind a relay."""
        return self._replace(messages=self.deliveries, recipients=1, domains=0)


SHAPES = {
    "kept": Shape("5 KB, 20 kept connections", 10_000),
    "each": Shape("5 KB, 50 connections, one per message", 10_000, connections=50, kept=False),
    "large": Shape("100 KB, 20 kept connections", 3_000, size=102_400),
    "fanout": Shape("5 KB to 20 domains, 20 kept connections", 1_000, recipients=20, domains=20, own=True),
    "tls-each": Shape("5 KB, TLS and AUTH, 50 connections, one per message", 5_000, 50, kept=False, tls=True, own=True),
    "tls-kept": Shape("5 KB, TLS and AUTH, 20 kept connections", 10_000, tls=True, own=True),
}


class Sent(NamedTuple):
    """A load that went through. seconds: from its first connection until the sink had all. cpu: of the load tool.

    accept_ms: from a final dot to its 250, p50, p99 and max; where load.py was the tool.
    """

    seconds: float
    cpu: float
    accept_ms: dict[str, float]


class Measured(NamedTuple):
    """A measurement. messages: copies at the sink; seconds: until it had all.

    cpu: seconds of the whole machine, all processes; load_cpu, sink_cpu: of the tools among them.
    accept_ms: as of `Sent`.
    """

    messages: int
    seconds: float
    cpu: float
    load_cpu: float
    sink_cpu: float
    accept_ms: dict[str, float]

    @property
    def rate(self) -> float:
        """Deliveries per second, end to end."""
        return self.messages / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a delivery, of the whole machine."""
        return 1000 * self.cpu / self.messages

    @property
    def rest_ms(self) -> float:
        """The same without the tools: the relay's, and what the kernel does for nobody in particular."""
        return 1000 * (self.cpu - self.load_cpu - self.sink_cpu) / self.messages


def add_where(parser: argparse.ArgumentParser) -> None:
    """--python and --directory, which every measurement of a relay has."""
    parser.add_argument("--python", default=sys.executable, help="runs relayd, whose dependencies it has (this one)")
    parser.add_argument("--directory", type=Path, help="where queues lie: a disk, not memory (the temporary directory)")


def fits(peer: str, shape: Shape) -> bool:
    """Whether that relay is set up for such a load."""
    found = PEERS[peer]
    return (found.tls or not shape.tls) and (found.domains or not shape.domains)


def measure(
    peer: str,
    shape: Shape,
    directory: Path | None = None,
    python: str = sys.executable,
    prepare: Callable[[Path], object] = lambda _scratch: None,
) -> Measured:
    """A run of a relay that is started for it. prepare: what to do with its directory before."""
    sink_port = free_port()
    if peer == "none":
        shape = shape.without_relay()
    with scratch_directory(directory) as scratch, smtp_sink(scratch, sink_port, everywhere=bool(shape.domains)) as sink:
        prepare(scratch)
        with PEERS[peer].start(Wanted(scratch, sink_port, shape.domains, shape.tls, python)) as port:
            os.sync()
            cpu, sink_cpu = _machine_cpu(), _cpu_of(sink.pid)
            sent = measure_through(scratch, shape, port)
            cpu, sink_cpu = _machine_cpu() - cpu, _cpu_of(sink.pid) - sink_cpu
    return Measured(shape.deliveries, sent.seconds, cpu, sent.cpu, sink_cpu, sent.accept_ms)


@contextlib.contextmanager
def scratch_directory(directory: Path | None) -> Iterator[Path]:
    """A directory for one run, removed behind it. directory: where; the temporary one by default."""
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=directory) as name:
        scratch = Path(name)
        scratch.chmod(0o755)  # other servers' own users go through it
        yield scratch


@contextlib.contextmanager
def smtp_sink(scratch: Path, port: int, *, everywhere: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A smtp-sink, whose counters `await_all` reads. everywhere: on all addresses, many of loopback's among them."""
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    counters = _counters(scratch)
    counters.unlink(missing_ok=True)
    _allow_descriptors()
    address = "0.0.0.0" if everywhere else HOST  # noqa: S104  # it throws away what it gets, for as long as a run lasts
    # By default it serves 256 connections and lets others wait, which a relay to twenty hosts would take for silence.
    command = [program("smtp-sink"), *user, "-c", "-m", "4096", f"inet:{address}:{port}", "1024"]
    with running(command, counters, port) as process:
        yield process


def _allow_descriptors() -> None:
    """More than the 1,024 that are usual, for this process and those it starts: relays to many hosts open many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def measure_through(scratch: Path, shape: Shape, port: int) -> Sent:
    """A load through a relay that runs, into the smtp-sink of that directory. RuntimeError when it does not arrive."""
    started, cpu = time.monotonic(), _children_cpu()
    said, complaints = scratch / "load.out", scratch / "load.err"
    with said.open("wb") as output, complaints.open("wb") as errors:
        environment = {**os.environ, "LOAD_PASSWORD": PASSWORD}
        source = subprocess.Popen(_command(scratch, shape, port), stdout=output, stderr=errors, env=environment)
    try:
        ended = _ended(scratch, shape, source)
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{complaints.read_text('utf-8', 'replace')}") from None
    finally:
        if source.poll() is None:
            source.terminate()
            source.wait(10)
    cpu = _children_cpu() - cpu
    if not shape.own:
        return Sent(ended - started, cpu, {})
    report = Report(**json.loads(said.read_bytes()))
    return Sent(ended - report.began, cpu, report.accept_ms)  # it began behind the start of its interpreter


def _ended(scratch: Path, shape: Shape, source: subprocess.Popen[bytes]) -> float:
    """When the sink had all; the load tool has ended since. RuntimeError when either did not get there."""
    await_all(scratch, shape.deliveries, source)
    ended = time.monotonic()
    if source.wait(_PATIENCE):
        raise RuntimeError(f"the load gave up with {source.returncode} in the end")
    return ended


def _command(scratch: Path, shape: Shape, port: int) -> list[str]:
    if shape.own:
        return load_command(scratch, shape, port, "--messages", str(shape.messages))
    options = ["-s", str(shape.connections), "-l", str(shape.size), "-m", str(shape.messages)]
    kept = ["-d"] if shape.kept else []
    return [
        program("smtp-source"), *kept, *options, "-f", "source@bench.test", "-t", "sink@bench.test",
        f"inet:{HOST}:{port}",
    ]  # fmt: skip


def load_command(scratch: Path, shape: Shape, port: int, *further: str) -> list[str]:
    """What runs load.py for such a load; the password is to be in LOAD_PASSWORD. further: how long, at what rate."""
    options = {"connections": shape.connections, "size": shape.size, "recipients": shape.recipients}
    if shape.domains:
        options["domains"] = shape.domains
    command = [sys.executable, str(Path(__file__).with_name("load.py")), f"{HOST}:{port}", *further]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if not shape.kept:
        command.append("--each")
    if shape.tls:
        command += ["--ca", str(scratch / "certificate.pem"), "--user", USER]
    return command


def await_all(scratch: Path, deliveries: int, source: subprocess.Popen[bytes] | None = None) -> None:
    """Return when smtp-sink has counted so many. RuntimeError when the load ends otherwise, or in 10 minutes."""
    deadline = time.monotonic() + _PATIENCE
    with _counters(scratch).open("rb") as file:
        while (counted := _counted(file.fileno())) < deliveries:
            if source is not None and source.poll():
                raise RuntimeError(f"the load gave up with {source.returncode} after {counted} messages at the sink")
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {counted} of {deliveries} messages at the sink after {_PATIENCE:.0f} s")
            time.sleep(0.005)


def _counters(scratch: Path) -> Path:
    return scratch / "smtp-sink.out"


def _counted(descriptor: int) -> int:
    """Messages by smtp-sink's running counters: "sess=1 quit=1 mesg=5" CR, again and again."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 256, max(size - 256, 0))
    last = tail.rpartition(b"\r")[0].rpartition(b"mesg=")[2]
    return int(last) if last else 0


def _machine_cpu() -> float:
    """CPU seconds the whole machine has worked since it started, waiting for disks aside (/proc/stat)."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / _TICKS


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process that runs (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children_cpu() -> float:
    """CPU seconds of the processes that ended: between two calls, of the load tool alone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
