"""20,000 messages through a running relay: all arrive, from Postfix's load tools and across kills of the process."""

import asyncio
import itertools
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes.ledger import Arrivals, Ledger
from tests.fakes.relay_process import HOST, RelayProcess, free_ports
from tests.fakes.sink import Sink

MESSAGES = 20_000
KILLS = 3


class Kill(NamedTuple):
    """A SIGKILL, and when the relay was ready again."""

    at: float
    restarted: float


def program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert path, f"{name} is not installed"
    return path


@pytest.fixture
async def smtp_sink(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a running smtp-sink."""
    (port,) = free_ports(1)
    user = ("-u", "nobody") if os.geteuid() == 0 else ()
    with (tmp_path / "smtp-sink.out").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program("smtp-sink"), *user, "-c", f"inet:{HOST}:{port}", "1024", stdout=output, stderr=output
        )
    yield port
    process.terminate()
    await asyncio.wait_for(process.wait(), 10)


@pytest.mark.timeout(600)
async def test_every_message_of_smtp_source_reaches_smtp_sink(tmp_path: Path, smtp_sink: int) -> None:
    async with RelayProcess(tmp_path, [smtp_sink]) as relay:
        source = await asyncio.create_subprocess_exec(
            program("smtp-source"), "-s", "20", "-m", str(MESSAGES), "-l", "5120",
            "-f", "source@example.net", "-t", "sink@example.org", f"inet:{HOST}:{relay.ports['relay']}",
        )  # fmt: skip
        assert await asyncio.wait_for(source.wait(), 400) == 0
        await relay.emptied(120)
        samples = await relay.metrics()
    assert samples["relayd_messages_accepted_total"] == MESSAGES
    assert samples['relayd_deliveries_total{result="delivered"}'] == MESSAGES
    counters = (tmp_path / "smtp-sink.out").read_bytes().replace(b"\r", b"\n").split()
    assert counters[-1] == b"mesg=%d" % MESSAGES


@pytest.mark.timeout(600)
async def test_nothing_answered_250_is_lost_across_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrivals = Arrivals()
    async with Sink(on_message=arrivals.take) as sink, RelayProcess(tmp_path, [sink.port]) as relay:
        ledger = Ledger(relay.ports["relay"])
        sending = asyncio.create_task(ledger.send(MESSAGES))
        kills = [await kill_at(relay, ledger, MESSAGES * (turn + 1) // (KILLS + 1)) for turn in range(KILLS)]
        await asyncio.wait_for(sending, 400)
        await relay.emptied(120)

    assert ledger.answered - arrivals.times.keys() == set(), "answered 250 and lost"
    assert arrivals.times.keys() - ledger.answered - ledger.unanswered == set(), "arrived without having been sent"
    assert arrivals.altered == set()
    assert not ledger.refused
    repeated = {number: times for number, times in arrivals.times.items() if len(times) > 1}
    # I3: a delivery is doubled only where a kill fell between its two arrivals.
    assert {number for number, times in repeated.items() if not explained(times, kills)} == set()
    summary = f"{len(kills)} kills: {len(ledger.answered)} answered 250, {len(ledger.unanswered)} unanswered, "
    with capsys.disabled():
        sys.stdout.write(f"\n{summary}0 lost, {len(repeated)} doubled by a kill\n")


async def kill_at(relay: RelayProcess, ledger: Ledger, answered: int) -> Kill:
    """Wait until so many are answered, kill the relay and start it again."""
    deadline = time.monotonic() + 200
    while len(ledger.answered) < answered:
        assert time.monotonic() < deadline, f"only {len(ledger.answered)} of {answered} answered:\n{relay.log()}"
        await asyncio.sleep(0.002)
    killed = time.monotonic()
    await relay.kill()
    await relay.start()
    return Kill(killed, time.monotonic())


def explained(times: list[float], kills: list[Kill]) -> bool:
    """Whether a kill lies between each arrival and the next."""
    return all(any(a <= kill.restarted and kill.at <= b for kill in kills) for a, b in itertools.pairwise(times))
