"""A disk that fails or fills up under a relay at work: 4xx and red health, deliveries go on, and it recovers (I4, I5).

Nothing answered 250 is lost, nothing is answered while it cannot be kept, nothing bounces for it, and no client hears
5xx. Errors are those of the kernel where it can be made to give them (a small tmpfs, RLIMIT_FSIZE, an ext4 that went
read-only), else injected by strace. Not by strace are short writes: a result it fakes is of a write that never was.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from relayd.spool.journal import SegmentReader
from relayd.spool.queue import MOST_UNRECORDED
from tests.crash.stage import LARGE, Stage, content, publish, until
from tests.fakes import strace
from tests.fakes.fragile_disk import DiskUnavailableError, FragileDisk
from tests.fakes.judge import Delivery, address, delivery
from tests.fakes.relay_process import RelayProcess
from tests.fakes.sender import Sender
from tests.fakes.small_disk import small_disk

CHANGES = "openat,writev,pwrite64,fsync,fdatasync,ftruncate,fallocate,rename,unlink"
"""All that the thread which writes a shard does to its disk."""

FULL = "452 4.3.1"


def deliveries(numbers: Iterable[int]) -> set[Delivery]:
    return {delivery(address(number)) for number in numbers}


async def settle(stage: Stage, capsys: pytest.CaptureFixture[str], *senders: Sender) -> None:
    """Whatever happened is over: nothing stays queued, nothing was doubled, and a kill brings nothing up again."""
    await stage.becomes("")
    await stage.relay.emptied(30)
    refused = sum((sender.refused for sender in senders), start=type(senders[0].refused)())
    before = stage.judge.verdict()
    assert before.faults() == {}
    assert not before.duplicate
    await stage.kill()
    await stage.restart()
    assert await stage.relay.queued() == 0
    verdict = stage.judge.verdict()
    publish(capsys, verdict, ", ".join(f"{times} x {reply}" for reply, times in refused.items()) or "no reply but 250")
    assert verdict.faults() == {}
    assert not verdict.duplicate
    assert all(reply.startswith("4") for reply in refused)
    assert not list(stage.events("bug", "quarantined"))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fdatasync", pytest.param("writev", marks=pytest.mark.drill)])
async def test_an_error_that_comes_once(tmp_path, capsys, call):
    async with Stage(tmp_path) as stage:
        sender = stage.sender(sessions=5, patient=True)
        async with strace.attached(stage.writer, *strace.fail(call, "EIO", "1")):
            await asyncio.wait_for(sender.send(range(50)), 20)
        assert stage.judge.turned_away.keys() == {"451"}
        assert (await stage.relay.metrics())["relayd_spool_errors_total"] == 1
        await settle(stage, capsys, sender)


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        pytest.param("fsync,fdatasync", "EIO", id="sync"),
        pytest.param("writev", "EDQUOT", id="quota", marks=pytest.mark.drill),
        pytest.param(CHANGES, "EROFS", id="read-only", marks=pytest.mark.drill),
        pytest.param(CHANGES, "EACCES", id="forbidden", marks=pytest.mark.drill),
        pytest.param(CHANGES, "EIO", id="dead", marks=pytest.mark.drill),
    ],
)
async def test_an_error_that_stays(tmp_path, capsys, calls, error):
    """It comes amid accepts and deliveries: some outcomes are owed, and recorded when the disk is back."""
    async with Stage(tmp_path) as stage:
        sender = stage.sender(sessions=20, patient=True)
        sending = asyncio.create_task(sender.send(range(1000)))
        await until(lambda: len(stage.judge.acknowledged) > 100)
        async with strace.attached(stage.writer, *strace.fail(calls, error)):
            await stage.becomes("spool failed")
            acknowledged = set(stage.judge.acknowledged)
            await failures(stage, 2)
            delivered = set(stage.judge.arrivals)
            await failures(stage, 2)
            await until(lambda: sender.refused.total() > 50)
            assert (await stage.relay.metrics())["relayd_spool_healthy"] == 0
            assert stage.judge.acknowledged == acknowledged, "answered 250 while nothing can be kept"
            assert stage.judge.arrivals.keys() == delivered, "delivered while no outcome can be recorded"
        await asyncio.wait_for(sending, 60)
        await settle(stage, capsys, sender)
        assert stage.judge.acknowledged == deliveries(range(1000))


async def test_a_disk_that_stalls(tmp_path, capsys):
    """Deliveries of a long queue run ahead of it only so far, and a kill has no others made again. No mail is taken."""
    connections = 20
    async with Stage(tmp_path, retry_schedule=["5s"]) as stage:
        stage.hop.shut = True
        await stage.sender(sessions=connections).send(range(2000))
        await until(lambda: len(list(stage.events("deferred"))) == 2000)
        async with strace.attached(stage.writer, *strace.delay("fdatasync", 60)):
            stage.hop.shut = False
            await until(lambda: len(stage.judge.arrivals) >= MOST_UNRECORDED)
            await stage.becomes("spool stalled")
            assert (await stage.relay.metrics())["relayd_spool_healthy"] == 0
            ahead = len(stage.judge.arrivals)
            os.kill(stage.pid, signal.SIGKILL)  # dead when strace lets go of it
        assert await stage.falls(lambda: False)
        await stage.restart()
        await stage.relay.emptied(30)
        verdict = stage.judge.verdict()
        publish(capsys, verdict, f"{ahead} delivered ahead of the disk")
        assert ahead <= MOST_UNRECORDED + connections
        assert verdict.faults() == {}
        assert 0 < max(verdict.doubled) <= ahead


async def failures(stage: Stage, more: int) -> None:
    """Return when the disk has refused a group so many times more."""
    name = "relayd_spool_errors_total"
    before = (await stage.relay.metrics())[name]
    deadline = time.monotonic() + 20
    while (await stage.relay.metrics())[name] < before + more:
        assert time.monotonic() < deadline, stage.relay.log()
        await asyncio.sleep(0.05)


@pytest.mark.drill
async def test_a_disk_that_becomes_read_only(tmp_path, capsys):
    """An ext4 does that by itself when it finds an error, files open for writing or not."""
    try:
        with FragileDisk(tmp_path) as disk:
            await read_only(tmp_path, disk, capsys)
    except DiskUnavailableError as error:
        pytest.skip(f"no disk that could become read-only: {error}")


async def read_only(directory: Path, disk: FragileDisk, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(disk.path)], check=True)
    (device,) = (line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(disk.path) in line)
    async with Stage(directory, spool="disk/spool") as stage:
        sender = stage.sender(sessions=20, patient=True)
        sending = asyncio.create_task(sender.send(range(1000)))
        await until(lambda: len(stage.judge.acknowledged) > 100)
        Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1")
        await stage.becomes("spool failed")
        acknowledged = set(stage.judge.acknowledged)
        await until(lambda: sender.refused.total() > 50)
        assert stage.judge.acknowledged == acknowledged, "answered 250 while nothing can be kept"
        await stage.kill()
        await asyncio.to_thread(disk.restore)
        await stage.restart()
        await asyncio.wait_for(sending, 60)
        await stage.relay.emptied(30)
        await stage.relay.stop()
    verdict = stage.judge.verdict()
    publish(capsys, verdict, ", ".join(f"{times} x {reply}" for reply, times in sender.refused.items()))
    assert verdict.faults() == {}
    assert all(reply.startswith("4") for reply in sender.refused)


# --- no room --------------------------------------------------------------------------------------------------------


@pytest.mark.drill
async def test_a_disk_that_is_full(tmp_path, capsys):
    """452 at MAIL; what is queued is delivered, its outcomes find room in the reserve, a restart changes nothing."""
    with small_disk(tmp_path / "disk", "size=24m") as disk:
        async with Stage(tmp_path, spool="disk/spool", limits='disk_reserve = "8MB"') as stage:
            await full(stage, capsys, fill=disk.fill, clear=disk.clear)


@pytest.mark.drill
async def test_a_disk_without_inodes(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "size=64m,nr_inodes=1200") as disk:
        async with Stage(tmp_path, spool="disk/spool", limits='disk_reserve = "8MB"') as stage:
            await full(stage, capsys, fill=disk.crowd, clear=disk.clear)


async def full(stage, capsys, fill, clear):
    queued, later = range(200), range(200, 300)
    stage.hop.shut = True
    await asyncio.wait_for(stage.sender(sessions=20).send(queued), 30)
    fill()
    await stage.becomes("disk full")
    sender = stage.sender(sessions=5, patient=True)
    sending = asyncio.create_task(sender.send(later))
    await until(lambda: sender.refused.total() > 20)
    stage.hop.shut = False
    await until(lambda: deliveries(queued) <= stage.judge.arrivals.keys())
    await stage.relay.emptied(30)
    assert stage.judge.acknowledged == deliveries(queued), "taken without room"
    # While an outcome that found no room waits for the reserve, it is 451; else it is this.
    assert any(reply.startswith(FULL) for reply in sender.refused), sender.refused
    clear()
    await asyncio.wait_for(sending, 30)
    await settle(stage, capsys, sender)
    assert stage.judge.acknowledged == deliveries([*queued, *later])


@pytest.mark.drill
async def test_a_start_without_room(tmp_path, capsys):
    """Its backlog goes out, though nothing new can be taken."""
    with small_disk(tmp_path / "disk", "size=24m") as disk:
        async with Stage(tmp_path, spool="disk/spool", limits='disk_reserve = "8MB"') as stage:
            stage.hop.shut = True
            sender = stage.sender(sessions=20)
            await asyncio.wait_for(sender.send(range(200)), 30)
            disk.fill()
            await stage.kill()
            stage.hop.shut = False
            stage.relay.launch()
            await until(lambda: deliveries(range(200)) <= stage.judge.arrivals.keys())
            await stage.becomes("disk full")
            await stage.relay.emptied(30)
            disk.clear()
            await settle(stage, capsys, sender)


@pytest.mark.drill
async def test_a_disk_that_becomes_full_amid_a_message(tmp_path, capsys):
    """There was room at MAIL. At the final dot there is none, and the message is not taken."""
    with small_disk(tmp_path / "disk", "size=24m") as disk:
        limits = 'disk_reserve = "8MB"\ninline_body = "2MB"'
        async with Stage(tmp_path, spool="disk/spool", limits=limits) as stage:
            filled = []

            def amid(number: int) -> bytes:
                if number == LARGE and not filled:
                    disk.fill(leave=400_000)
                    filled.append(number)
                return content(number)

            stage.judge.content = amid
            sender = stage.sender(patient=True)
            sending = asyncio.create_task(sender.send([LARGE]))
            await until(lambda: stage.judge.turned_away)
            await stage.becomes("disk full")
            assert not stage.judge.acknowledged
            disk.clear()
            await asyncio.wait_for(sending, 20)
            assert stage.judge.turned_away.keys() == {"451"}
            assert any(reply.startswith(FULL) for reply in sender.refused)
            await settle(stage, capsys, sender)


# --- short writes ---------------------------------------------------------------------------------------------------


@pytest.mark.drill
async def test_a_write_that_falls_short_and_then_fails(tmp_path, capsys):
    """The limit of a file's size lets the kernel write half a frame. It is cut off again, and the next segment is new."""
    async with Stage(tmp_path) as stage:
        await asyncio.wait_for(stage.sender(sessions=5).send(range(50)), 20)
        await stage.relay.emptied()
        with SegmentReader(max(stage.journal.iterdir())) as segment:
            limit = segment.end + 3000
        resource.prlimit(stage.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sender = stage.sender(patient=True)
        await asyncio.wait_for(sender.send(range(50, 60)), 20)
        assert stage.judge.turned_away == {"451": 1}
        await settle(stage, capsys, sender)


class Stingy(RelayProcess):
    """A relay whose disk takes 1000 octets at a time, and which is otherwise the real one."""

    PROGRAM = """
import os
writev = os.writev
os.writev = lambda descriptor, buffers: writev(descriptor, [b"".join(buffers)[:1000]])
from relayd.cli.app import main
main()
"""

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *arguments, "--config", str(self.configuration)]


@pytest.mark.drill
async def test_writes_that_fall_short(tmp_path, capsys):
    """Each is taken up where it ended: nobody notices, also not a start that reads what was written."""
    async with Stage(tmp_path, Stingy) as stage:
        stage.hop.shut = True
        sender = stage.sender(sessions=5)
        await asyncio.wait_for(sender.send(range(100)), 30)
        await stage.kill()
        stage.hop.shut = False
        await stage.restart()
        await settle(stage, capsys, sender)
        assert not sender.refused
