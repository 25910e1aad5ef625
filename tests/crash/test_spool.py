"""Whatever ends the process or fails the disk, what was acknowledged is found again (I1, I2, I5)."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreLockedError
from relayd.spool.viewer import Viewer
from tests.crash.spool_writer import body
from tests.fakes.mail import name

ROOT = Path(__file__).parents[2]


def command(directory: Path, first: int, count: int, at_once: int, segment_octets: int = 64 * 1024) -> list[str]:
    arguments = (first, count, at_once, segment_octets)
    return [sys.executable, "-m", "tests.crash.spool_writer", str(directory), *map(str, arguments)]


def check(directory: Path, lines: Iterable[str]) -> None:
    """What the writers told against what is found: nothing acknowledged is missing, altered or risen again."""
    told: dict[str, set[int]] = {mark: set() for mark in "?+~-!"}
    for line in lines:
        # What is logged tells of trouble on the disk, where there is some.
        if line != "open" and not line.startswith("{"):
            told[line[0]].add(int(line[1:]))
    with Viewer(directory.parent) as recovered:
        listed = list(recovered.messages())
        found = {message.envelope.id: b"".join(recovered.body(message)) for message in listed}
        quarantined = recovered.quarantined
    bodies = {name(n): body(n) for n in told["?"]}
    assert found.items() <= bodies.items()
    must = {name(n) for n in told["+"] - told["~"]}
    assert must <= found.keys(), "acknowledged and lost"
    assert not {name(n) for n in told["-"]} & found.keys(), "settled and risen again"
    assert len(listed) == len(found), "told twice"
    assert quarantined == 0


def test_twenty_kills(tmp_path):
    directory = tmp_path / "spool" / "shard-00"
    rng = random.Random(7)
    lines: list[str] = []
    for turn in range(20):
        first = 100_000 * turn
        writer = subprocess.Popen(command(directory, first, 100_000, 8), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with writer:
            assert writer.stdout is not None
            # A kill may have torn a batch: then the files of bodies that it may have named are set aside, with an alert.
            for line in iter(writer.stdout.readline, "open\n"):
                assert '"bodies quarantined"' in line
            lines += [line for _, line in zip(range(rng.randrange(1, 300)), writer.stdout, strict=False)]
            writer.kill()
            lines += [line for line in writer.stdout if line.endswith("\n")]
    told = [line.strip() for line in lines]
    assert not [line for line in told if "not moved" in line or "not removed" in line]
    assert len([line for line in told if line[0] == "+"]) > 200
    check(directory, told)


def test_a_second_process_waits_for_the_first_and_then_gives_up(tmp_path):
    directory = tmp_path / "spool" / "shard-00"
    writer = subprocess.Popen(command(directory, 0, 10**9, 1), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        second = subprocess.run(
            [sys.executable, "-c", OPEN, str(directory)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        writer.kill()
    assert "StoreLockedError" in second.stderr
    assert float(second.stdout) >= 0.3


OPEN = """
import asyncio, sys, time
from pathlib import Path
from relayd.spool.shard import JournalStore
start = time.monotonic()
try:
    asyncio.run(JournalStore(Path(sys.argv[1]), 0, lock_seconds=0.3).open())
finally:
    print(time.monotonic() - start)
"""


async def test_a_start_right_after_a_kill(tmp_path):
    directory = tmp_path / "spool" / "shard-00"
    for turn in range(3):
        writer = subprocess.Popen(command(directory, 1000 * turn, 1000, 4), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline().strip() for _ in range(20)]
            writer.kill()
            store = JournalStore(directory, 0)
            started = time.monotonic()
            try:
                await store.open()
            except StoreLockedError:
                pytest.fail("a dying predecessor was not waited for")
            assert time.monotonic() - started < 5
            await store.close()
            lines += [line.strip() for line in writer.stdout if line.endswith("\n")]
        assert any(line.startswith("+") for line in lines)


def traced(directory: Path, watched: str, *more: str) -> tuple[list[str], list[str]]:
    """What 30 messages one by one told, and the system calls they took; a small segment is soon full."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace, which watches the disk and makes it fail, is not installed")
    trace = directory.parent / "trace"
    trace.parent.mkdir()
    watch = [strace, "-f", "-y", "-qq", "-s", "64", "-o", str(trace), "-e", f"trace={watched}", *more]
    done = subprocess.run(
        [*watch, *command(directory, 0, 30, 1, 8 * 1024)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), list(whole(trace.read_text()))


def whole(trace: str) -> Iterator[str]:
    """The calls at their ends, those of one thread never cut in two by another's; what is told, at its beginning."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, call = line.split(maxsplit=1)
        if call.endswith(" <unfinished ...>"):
            begun[thread] = call.removesuffix(" <unfinished ...>")
            if call.startswith("write(1<"):
                yield call
        elif match := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            if not begun[thread].startswith("write(1<"):
                yield begun.pop(thread) + match[1]
        else:
            yield call


def test_nothing_is_told_before_it_is_on_disk(tmp_path):
    """I1: data by fdatasync, and a new segment with its directory entry, before anybody hears of it."""
    told, trace = traced(tmp_path / "spool" / "shard-00", "openat,write,writev,pwrite64,fsync,fdatasync")
    assert len([line for line in told if line[0] == "+"]) == 30
    unsynced: set[str] = set()
    unentered: set[str] = set()
    for call in trace:
        if match := re.match(r'openat\(.*"[^"]*/(\d+\.log)", \S*O_CREAT', call):
            unentered.add(match[1])
        elif match := re.match(r"writev\(\d+<.*/(\d+\.log)>", call):
            unsynced.add(match[1])
        elif match := re.match(r"(?:fsync|fdatasync)\(\d+<.*/(\d+\.log)>\) += 0", call):
            unsynced.discard(match[1])
        elif match := re.match(r'openat\(\d+<.*/bodies/\w+>, "(\w+)", \S*O_CREAT', call):
            unentered.add(match[1])
        elif match := re.match(r"(?:writev|pwrite64)\(\d+<.*/bodies/\w+/(\w+)>", call):
            unsynced.add(match[1])
        elif match := re.match(r"fsync\(\d+<.*/bodies/\w+/(\w+)>\) += 0", call):
            unsynced.discard(match[1])
        elif re.match(r"fsync\(\d+<.*/(journal|bodies/\w+)>\) += 0", call):
            unentered.clear()
        elif re.match(r'write\(1<.*"[+-]', call):
            assert not unsynced, call
            assert not unentered, call
    assert len(set(re.findall(r"/(\d+\.log)", "".join(trace)))) >= 3


@pytest.mark.parametrize(
    ("call", "error", "when"),
    [("fdatasync", "EIO", "3"), ("fdatasync", "EIO", "12+7"), ("fsync", "EIO", "5+2"), ("writev", "ENOSPC", "4+3")],
)
def test_a_disk_that_fails(tmp_path, call, error, when):
    """Each thread counts for itself: behind its opening, the index meets the second of these too."""
    directory = tmp_path / "spool" / "shard-00"
    watched = "openat,writev,fsync,fdatasync,ftruncate,close"
    told, trace = traced(directory, watched, "-e", f"inject={call}:error={error}:when={when}")
    assert any(line.startswith("!") for line in told)
    assert told[-1] in {"+29", "-29", "!29"}
    check(directory, told)
    assert_failed_descriptors_are_closed(trace, call)


def assert_failed_descriptors_are_closed(trace: Iterable[str], call: str) -> None:
    """I5: behind a failed write or sync there is only ftruncate and close on that descriptor of the journal."""
    matches = (re.match(r"(\w+)\((\d+)<.*/journal/.*= (-?\d+)", line) for line in trace)
    calls = [match.groups() for match in matches if match]
    failed: set[str] = set()
    failures = 0
    for called, descriptor, outcome in calls:
        if descriptor in failed:
            assert called in {"ftruncate", "close"}, f"{called} on a failed descriptor"
        if called == "close":
            failed.discard(descriptor)
        if called == call and outcome == "-1":
            failed.add(descriptor)
            failures += 1
    assert failures > 0
