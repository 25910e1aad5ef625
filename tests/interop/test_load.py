"""20,000 messages through a running relay: all arrive, from Postfix's load tools and across kills of the process."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.judge import Judge
from tests.fakes.relay_process import HOST, RelayProcess, free_ports
from tests.fakes.sender import Sender
from tests.fakes.sink import Sink

MESSAGES = 20_000
KILLS = 3


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
    judge = Judge()
    async with Sink(on_message=judge.take) as sink, RelayProcess(tmp_path, [sink.port]) as relay:
        sender = Sender(relay.ports["relay"], judge)
        sending = asyncio.create_task(sender.send(range(MESSAGES)))
        for turn in range(KILLS):
            await answered(judge, MESSAGES * (turn + 1) // (KILLS + 1), relay)
            killed = time.monotonic()
            await relay.kill()
            await sink.abandoned()
            judge.cut(killed, time.monotonic())
            await relay.start()
        await asyncio.wait_for(sending, 400)
        await relay.emptied(120)
    verdict = judge.verdict()
    with capsys.disabled():
        sys.stdout.write(f"\n{verdict}\n")
    assert verdict.faults() == {}
    assert verdict.acknowledged + len(judge.unanswered) == MESSAGES
    assert not sender.refused


async def answered(judge: Judge, count: int, relay: RelayProcess) -> None:
    """Return when so many are answered 250."""
    deadline = time.monotonic() + 200
    while len(judge.acknowledged) < count:
        got = len(judge.acknowledged)
        assert time.monotonic() < deadline, f"only {got} of {count} answered:\n{relay.log()}"
        await asyncio.sleep(0.002)
