"""What `make bench-check` compares, and when it fails."""

import json
from pathlib import Path

import pytest
from check import MESSAGES, RIVALS, Speed, compared, last_recorded, ratio
from results import RESULTS, facts


def speeds(*rates: tuple[float, float, float], shape: str = "kept") -> list[Speed]:
    """A round for each: relayd, postfix, none."""
    peers = ("relayd", "postfix", "none")
    return [Speed(shape, peer, n, rate) for n, of in enumerate(rates) for peer, rate in zip(peers, of, strict=True)]


def test_a_ratio_is_that_within_a_round_however_fast_the_machine_was() -> None:
    assert ratio(speeds((400, 100, 800), (40, 10, 80), (2000, 500, 4000)), "postfix") == 4
    assert ratio(speeds((400, 100, 800), (40, 10, 80), (2000, 500, 4000)), "none") == 0.5


def test_what_never_ran_beside_the_rival_has_no_ratio() -> None:
    alone = [Speed("kept", "relayd", 1, 400.0), Speed("kept", "postfix", 2, 100.0)]
    with pytest.raises(ValueError, match="no round has both relayd and postfix"):
        ratio(alone, "postfix")


@pytest.mark.parametrize(("rate", "met"), [(400, True), (361, True), (359, False), (40, False)])
def test_a_tenth_may_be_lost_and_no_more(rate: float, met: bool) -> None:
    then = speeds((400, 100, 800))
    assert [bound.met for bound in compared("kept", speeds((rate, 100, 800)), then)] == [met] * len(RIVALS)


def test_each_shape_is_compared_with_the_last_results_that_have_it(tmp_path: Path) -> None:
    for name, date, cpus, python, rates in (
        ("a", "2026-03-01T00:00:00+00:00", 2, "3.11 this", {"kept": 3, "each": 3, "large": 3}),
        ("b", "2026-05-01T00:00:00+00:00", 2, "3.11 this", {"kept": 5}),
        ("c", "2026-04-01T00:00:00+00:00", 2, "3.11 this", {"kept": 4}),
        ("d", "2026-06-01T00:00:00+00:00", 2, "3.11 that", {"kept": 6, "each": 6, "fanout": 6}),
        ("e", "2026-07-01T00:00:00+00:00", 8, "3.11 this", {"kept": 7}),
    ):
        runs = [
            {"shape": shape, "peer": "relayd", "round": 1, "messages": rate, "seconds": 1.0}
            for shape, rate in rates.items()
        ]
        measured = {"facts": {"date": date, "cpu": "EPYC", "cpus": cpus, "python": python}, "runs": runs}
        (tmp_path / f"{name}.json").write_text(json.dumps(measured))
    for cpu, cpus, python, expected in (
        ("EPYC", 2, "3.11 this", {"kept": 5, "each": 3, "large": 3, "fanout": 6}),
        ("EPYC", 2, "3.11 that", {"kept": 6, "each": 6, "large": 3, "fanout": 6}),
        ("EPYC", 2, "3.13", {"kept": 6, "each": 6, "large": 3, "fanout": 6}),
        ("EPYC", 8, "3.11 that", {"kept": 7, "each": 6, "large": 3, "fanout": 6}),
        ("Xeon", 2, "3.11 this", {"kept": 7, "each": 3, "large": 3, "fanout": 6}),
    ):
        recorded = last_recorded(sorted(tmp_path.iterdir()), {"cpu": cpu, "cpus": cpus, "python": python})
        assert {shape: speed.rate for shape, [speed] in recorded.items()} == expected


@pytest.mark.parametrize("shape", MESSAGES)
def test_there_are_results_to_compare_with(shape: str) -> None:
    recorded = last_recorded(RESULTS.glob("end_to_end*.json"), facts(None))
    assert all(ratio(recorded[shape], rival) > 0 for rival in RIVALS)
