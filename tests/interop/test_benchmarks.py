"""The benchmarks run: few messages, one round, no figure looked at. What they count they count at the sink."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TICKS = 8 * (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")
"""Seconds by which the machine's CPU time may be short: a tick of each kind of each processor."""


def ran(script: str, *options: str, codes: tuple[int, ...] = (0,)) -> str:
    """What it printed; its exit code is one of these."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("shapes", "peers", "deliveries"),
    [
        (["kept", "each", "large"], ["none", "postfix", "relayd"], 20),
        (["fanout"], ["none", "postfix", "relayd"], 400),
        (["tls-each", "tls-kept"], ["none", "relayd"], 20),
        (["kept"], ["exim", "opensmtpd"], 20),
    ],
)
def test_every_shape_goes_through_its_peers(
    tmp_path: Path, shapes: list[str], peers: list[str], deliveries: int
) -> None:
    file = tmp_path / "results.json"
    ran("end_to_end.py", "--rounds=1", "--messages=20", "--shape", *shapes, "--peers", *peers, "--json", str(file))
    results = json.loads(file.read_bytes())
    runs = {(run["shape"], run["peer"]): run for run in results["runs"]}
    # Nothing stands between the tools under TLS: smtp-sink has none.
    assert runs.keys() == {
        (shape, peer) for shape in shapes for peer in peers if peer != "none" or not shape.startswith("tls")
    }
    for run in runs.values():
        assert run["messages"] == deliveries
        assert run["seconds"] > 0
        # The machine's time comes in ticks, for each way a processor can spend it; that of a tool in microseconds.
        assert run["cpu"] + TICKS >= run["load_cpu"] > 0
    assert results["medians"].keys() == set(shapes)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that Postfix's own user may go through; tmp_path is root's."""
    with tempfile.TemporaryDirectory(prefix="relayd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_was_started_is_ended_when_the_benchmark_is(public: Path) -> None:
    options = ("--messages=1000000", "--shape=kept", "--peers=postfix", f"--directory={public}")
    process = subprocess.Popen([sys.executable, str(BENCHMARKS / "end_to_end.py"), *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not any(public.glob("*/load.out")):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no load was begun"
            time.sleep(0.02)
        (scratch,) = public.iterdir()
        master = int((scratch / "queue" / "pid" / "master.pid").read_text())
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
    assert not scratch.exists()
    while Path(f"/proc/{master}").exists():
        assert time.monotonic() < deadline, "Postfix runs on"
        time.sleep(0.02)


def test_latency_is_told_of_every_message(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    printed = ran("latency.py", "--rate=40", "--seconds=1", "--json", str(file))
    (found,) = json.loads(file.read_bytes())["found"]
    assert found["accept_ms"]["p50"] > 0
    assert 0 < found["delivered_ms"]["p50"] <= found["delivered_ms"]["p99"]
    assert found["achieved"] <= 45
    assert printed.count("accepted p") == 2
    assert printed.count("delivered p99, ms") == 1


def test_memory_is_sampled_under_load_and_under_tls(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    printed = ran("memory.py", "--minutes=0.05", "--interval=1", "--connections=30", "--json", str(file))
    found = json.loads(file.read_bytes())
    assert len(found["under_load"]) >= 3
    assert all(size > 10 for sample in (found["idle"], found["connections"]) for size in sample.values())
    assert sum(found["connections"].values()) > sum(found["idle"].values())
    assert printed.count("MB of a process") == 2


@pytest.mark.parametrize(("curve", "points"), [("destinations", (1, 30)), ("queue", (0, 200)), ("size", (1, 50))])
def test_a_curve_is_measured_and_drawn(tmp_path: Path, curve: str, points: tuple[int, int]) -> None:
    ran(
        "curves.py", "--curve", curve, "--points", *map(str, points), "--rounds=1", "--messages=20",
        "--peers", "none", "relayd", "relayd-1", "--results", str(tmp_path),
    )  # fmt: skip
    results = json.loads((tmp_path / f"curve_{curve}.json").read_bytes())
    medians = results["medians"]
    assert all(0 < ms < 60_000 for line in results["accept_ms"].values() for _, ms in line)
    assert set(results["accept_ms"]) == {f"{peer} {rank}" for peer in medians for rank in ("p50", "p99")}
    assert set(medians) == ({"relayd"} if curve == "queue" else {"none", "relayd", "relayd-1"})
    assert all([at for at, _ in line] == list(points) for line in medians.values())
    assert set(results["own_cpu_ms"]) == set(medians) - {"none"}
    for chart in (f"curve_{curve}.svg", f"curve_{curve}_latency.svg", f"curve_{curve}_cpu.svg"):
        assert (tmp_path / chart).read_bytes().startswith(b"<?xml")


def test_the_check_compares_each_shape_with_both_rivals() -> None:
    printed = ran("check.py", "--rounds=1", "--messages=20", codes=(0, 1))
    for shape in ("kept", "each", "large"):
        assert printed.count(f"{shape}: relayd by ") == 2


def test_the_check_fails_where_nothing_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "end_to_end.json"
    file.write_text(json.dumps({"facts": {"date": "", "python": ""}, "runs": []}))
    assert ran("check.py", "--results", str(file), codes=(1,)) == ""
