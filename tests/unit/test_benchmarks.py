"""The benchmarks' own arithmetic: what a figure means must not depend on whether anybody looked."""

import subprocess
import sys
from pathlib import Path

import pytest
from load import body, spread
from measuring import SHAPES, await_all, fits
from results import Bound, draw
from wanted import Wanted


@pytest.mark.parametrize("size", [0, 1, 2, 77, 78, 79, 1024, 5120, 102_400])
def test_a_body_has_whole_lines_and_one_end(size: int) -> None:
    header, _, content = body(size).partition(b"\r\n\r\n")
    assert header.startswith(b"From: ")
    assert content.endswith(b".\r\n")
    lines = content.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert all(0 <= len(line) <= 76 and not set(line) - set(b"x") for line in lines[:-2])
    assert size - 1 <= len(content) - len(b".\r\n") <= size


def test_percentiles_are_of_the_times_themselves() -> None:
    assert spread([]) == {}
    assert spread([0.002]) == {"p50": 2, "p99": 2, "max": 2}
    assert spread([n / 1000 for n in reversed(range(1, 201))]) == {"p50": 101, "p99": 199, "max": 200}


def test_a_bound_that_is_just_reached_is_met() -> None:
    assert [Bound("", value, 15, most=True).met for value in (14, 15, 16)] == [True, True, False]
    assert [Bound("", value, 0.9, most=False).met for value in (0.8, 0.9, 1)] == [False, True, True]
    assert str(Bound("p99, ms", 16.04, 15, most=True)) == "MISSED p99, ms: 16 ≤ 15"


def test_every_domain_has_a_next_hop_of_its_own() -> None:
    routes = Wanted(Path(), 2525, domains=1000).routes()
    assert len(routes) == len(set(routes.values())) == 1000
    assert routes["d0.bench.test"] == "127.0.1.1:2525"
    assert routes["d250.bench.test"] == "127.0.2.1:2525"
    assert Wanted(Path(), 2525).routes() == {"*": "127.0.0.1:2525"}


def test_without_a_relay_as_many_copies_reach_the_sink() -> None:
    for shape in SHAPES.values():
        assert shape.without_relay().deliveries == shape.deliveries == shape.messages * shape.recipients
        assert shape.without_relay().recipients == 1


def test_every_shape_is_measured_beside_postfix() -> None:
    assert all(fits(peer, shape) for shape in SHAPES.values() for peer in ("postfix", "relayd"))
    assert not fits("none", SHAPES["tls-kept"])  # smtp-sink has no TLS
    assert not fits("exim", SHAPES["fanout"])


def test_counters_count_when_they_are_written_whole(tmp_path: Path) -> None:
    counters = tmp_path / "smtp-sink.out"
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert ended.wait(30) == 3
    counters.write_bytes(b"sess=1 quit=0 mesg=6\rsess=1 quit=0 mesg=7\rsess=1 quit=0 mesg=1")
    await_all(tmp_path, 7, ended)
    with pytest.raises(RuntimeError, match="the load gave up with 3 after 7 messages"):
        await_all(tmp_path, 8, ended)
    counters.write_bytes(b"")
    with pytest.raises(RuntimeError, match="after 0 messages"):
        await_all(tmp_path, 1, ended)


def test_a_chart_has_a_place_for_an_empty_queue(tmp_path: Path) -> None:
    file = tmp_path / "chart.svg"
    draw("queue", ("waiting", "a second"), {"relayd": [(0, 900.0), (1000, 880.0), (100_000, 850.0)]}, file)
    chart = file.read_text(encoding="utf-8")
    assert all(f">{place}<" in chart for place in ("0", "1,000", "100,000"))
