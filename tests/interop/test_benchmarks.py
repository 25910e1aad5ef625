"""The benchmarks run: few messages, one round, no figure looked at. What they count they count at the sink."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
        assert run["cpu"] >= run["load_cpu"] > 0
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
