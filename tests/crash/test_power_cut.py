"""The power goes, again and again, under the spool of a relay at work: what was answered 250 is there afterwards.

I1, I2 and I4 hold across every cut, and a delivery is doubled only by one (I3). Needs root and loop devices. The seed
of a failed drill is on its standard output and in its verdict; DRILL_SEED=... repeats the plan.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.power_cuts import BEHIND_A_250, Plan, PowerCuts, Witness, drawn
from tests.crash.stage import chosen_seed
from tests.fakes.fragile_disk import MAKE, DiskUnavailableError, FragileDisk, missing
from tests.fakes.judge import Verdict
from tests.fakes.relay_process import RelayProcess

KINDS = [kind for kind in MAKE if not missing(kind)] or ["ext4"]


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FragileDisk]:
    with contextlib.ExitStack() as stack:
        try:
            fragile = stack.enter_context(FragileDisk(tmp_path, kind=request.param))
        except DiskUnavailableError as error:
            pytest.skip(f"no disk whose power could be cut: {error}")
        yield fragile


async def drill(cuts: PowerCuts, capsys: pytest.CaptureFixture[str], count: int, seconds: float) -> Verdict:
    """A drill that must find nothing."""
    seed = chosen_seed()
    await cuts.run(drawn(seed, count), seconds)
    verdict = cuts.judge.verdict(seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{verdict}\n  {cuts.circumstances()}\n")
    assert verdict.cuts == count
    assert verdict.faults() == {}, verdict
    assert cuts.judge.lies == set(), verdict
    assert cuts.ended_twice() == set(), verdict
    # Power cuts tear an end off, and do no other damage.
    assert list(cuts.events("quarantined", "bug")) == [], verdict
    assert all(reply.startswith("4") for reply in cuts.refused), cuts.refused
    return verdict


async def test_five_power_cuts(tmp_path, disk, capsys):
    verdict = await drill(PowerCuts(tmp_path, disk), capsys, 5, seconds=60)
    assert verdict.acknowledged > 0


@pytest.mark.drill
@pytest.mark.timeout(460)
async def test_fifty_power_cuts(tmp_path, disk, capsys):
    cuts = PowerCuts(tmp_path, disk)
    verdict = await drill(cuts, capsys, 50, seconds=120)
    assert verdict.acknowledged >= 1000
    assert len(cuts.how) == 3 and cuts.sink.put_off and cuts.judge.bounces, cuts.circumstances()


# --- the drill can fail -----------------------------------------------------------------------------------------------


def test_what_was_not_synced_is_gone(disk):
    with (disk.path / "half").open("wb", buffering=0) as half:
        half.write(b"synced")
        os.fsync(half.fileno())
        half.write(b" and not synced")
        (disk.path / "none").write_bytes(b"not synced")
        disk.cut()
        with pytest.raises(OSError, match="Input/output error"):
            half.write(b"too late")
    disk.restore()
    assert (disk.path / "half").read_bytes() == b"synced"
    assert not (disk.path / "none").exists()


def test_what_is_said_behind_a_cut_promises_nothing_and_may_not_be_made_up():
    witness = Witness()
    before, under_way, behind, after = [(n, f"n{n}@sink.test") for n in range(4)]
    for one in (before, under_way):
        witness.sending([one])
    witness.answered([before], b"250 2.0.0 Ok")
    witness.darken()
    witness.answered([under_way], b"250 2.0.0 Ok")
    witness.sending([behind])
    witness.answered([behind], b"250 2.0.0 Ok")
    witness.lighten()
    witness.sending([after])
    witness.answered([after], b"250 2.0.0 Ok")
    assert witness.acknowledged == {before, after}
    assert witness.lies == {behind}
    assert witness.unanswered == {under_way, behind}
    assert witness.verdict().lost == {before, after}


class Forgetful(RelayProcess):
    """A relay that never syncs, and is otherwise the real one."""

    PROGRAM = """
import os
os.fsync = os.fdatasync = lambda descriptor: None
from relayd.cli.app import main
main()
"""

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *arguments, "--config", str(self.configuration)]


class Hasty(Forgetful):
    """A relay that syncs its mail, but answers 20 ms before that is done."""

    PROGRAM = """
import os, threading
fdatasync = os.fdatasync
def later(descriptor):
    threading.Timer(0.02, fdatasync, [os.dup(descriptor)]).start()
os.fdatasync = later
from relayd.cli.app import main
main()
"""


@pytest.mark.drill
@pytest.mark.parametrize("relay", [Forgetful, Hasty])
async def test_a_relay_that_promises_too_much_is_found_out(tmp_path, disk, relay):
    cuts = PowerCuts(tmp_path, disk, relay)
    # A cut finds it out only where it falls into the moment in between: on a busy machine not each of them does.
    await cuts.run([Plan(BEHIND_A_250, answers=50)] * 10, seconds=60)
    assert cuts.judge.verdict().lost
