"""kill -9 at every system call with which a relay changes a file or answers somebody, one kill a run (I1, I2, I3).

A rehearsal under strace lists the calls that an act takes, thread by thread; then the act is played once for each of
them and the relay killed right before that call. Started again, it delivers what is left, and the judge looks: nothing
lost, nothing altered, at most one delivery doubled by a kill. The acts are played one by one on a quiet relay, so that
the calls are the same each time; nothing is asked of it over HTTP meanwhile.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from relayd.spool.journal import SegmentReader
from relayd.spool.shard import JournalStore
from tests.crash.stage import LARGE, Stage, publish, until
from tests.crash.test_spool import ROOT, check, command
from tests.fakes import strace
from tests.fakes.judge import Arrival, Judge, Verdict, address
from tests.fakes.mail import name
from tests.fakes.relay_process import RelayProcess

LOOP, WRITER = 0, 1
"""A relay's threads by age: the event loop and the writer of its one shard. The resolver's, the third, changes nothing."""

TRIES = 3


@pytest.fixture(autouse=True)
def tracer() -> str:
    """Nothing here can be done without."""
    return strace.program()


class Point(NamedTuple):
    """Where to kill: at the `when`-th call of this name, in one thread or on one path."""

    name: str
    when: int
    thread: int = LOOP
    path: str = ""


class Act:
    """What is played while the kill waits: a message from its client to its end. `number` is the message's."""

    domain = "sink.test"
    first = 0
    threads: tuple[int, ...] = (LOOP, WRITER)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._numbers = itertools.count(self.first)

    async def prepare(self) -> None:
        """What comes before and is not looked at."""

    def begin(self) -> None:
        self.number = next(self._numbers)
        self.recipient = address(self.number, self.domain)
        self.since = self.stage.told
        self._sending = asyncio.create_task(self.stage.sender().send([self.number], self.domain))

    def ended(self) -> bool:
        """Whether all of it has happened, and told: nothing follows by itself."""
        return self.stage.told_of("delivered", self.recipient, self.since)

    async def finish(self) -> None:
        """Behind the restart: the client gets its message in if it could not before, and the queue becomes empty."""
        await asyncio.wait_for(self._sending, 20)
        await self.stage.relay.emptied(20)


class Delivery(Act):
    """One accept, one delivery."""


class Deferral(Act):
    """The next hop says 451, and takes it a second later."""

    domain = "later.test"


class Bounce(Act):
    """The next hop says 550; the notification is made, and delivered."""

    domain = "refused.test"

    def ended(self) -> bool:
        return self.stage.told_of("delivered", "ledger@ledger.test", self.since)


IN_THE_JOURNAL = 'disk_reserve = "16MB"\ninline_body = "2MB"'
"""Limits under which the largest message here is a record, not a file of its own."""


class Rotation(Act):
    """A message so large that the segment is sealed behind it, the next one begun, and the old one unlinked."""

    first = LARGE
    threads = (WRITER,)

    def begin(self) -> None:
        self._before = set(self.stage.journal.iterdir())
        super().begin()

    def ended(self) -> bool:
        now = set(self.stage.journal.iterdir())
        return super().ended() and len(now) == 1 and not now & self._before


class Stop(Act):
    """SIGTERM while a message waits for its next attempt: the segment is sealed. The end is the process's own."""

    async def prepare(self) -> None:
        self.stage.hop.shut = True
        super().begin()
        await until(lambda: self.stage.told_of("deferred", self.recipient, self.since))

    def begin(self) -> None:
        assert self.stage.relay.process is not None
        self.stage.relay.process.send_signal(signal.SIGTERM)

    def ended(self) -> bool:
        return False

    async def finish(self) -> None:
        self.stage.hop.shut = False
        await super().finish()


async def rehearse(act: Act, trace: Path) -> list[Point]:
    """The calls of one undisturbed run."""
    stage = act.stage
    threads = strace.threads(stage.pid)
    await act.prepare()
    async with strace.attached(stage.pid, "-f", *strace.watch(trace)):
        act.begin()
        fell = await stage.falls(act.ended)
    if fell:
        await stage.restart()
    await act.finish()
    return [point for point in points(strace.calls(trace), threads) if point.thread in act.threads]


def points(calls: Iterable[strace.Call], threads: list[int]) -> Iterator[Point]:
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    for call in calls:
        thread = threads.index(call.thread)
        counts[call.name, thread] += 1
        yield Point(call.name, counts[call.name, thread], thread)


async def strike(act: Act, point: Point) -> bool:
    """Play the act and kill the relay at this point; whether it came to that. Afterwards nothing is queued."""
    stage = act.stage
    thread = strace.threads(stage.pid)[point.thread]
    await act.prepare()
    async with strace.attached(thread, *strace.kill(point.name, point.when)):
        act.begin()
        fell = await stage.falls(act.ended)
    if not fell:
        await stage.kill()
    await stage.restart()
    await act.finish()
    return fell


async def sweep(act: Act, plan: list[Point]) -> None:
    """Strike at each point. Now and then a call is made in another turn of the loop, and the point does not come."""
    for point in plan:
        struck = [await strike(act, point)]
        while not struck[-1]:
            assert len(struck) < TRIES, f"{point} did not come"
            struck.append(await strike(act, point))


def tally(capsys: pytest.CaptureFixture[str], verdict: Verdict, plan: list[Point], more: str = "") -> None:
    calls = collections.Counter(point.name for point in plan)
    publish(capsys, verdict, f"kills: {', '.join(f'{count} {call}' for call, count in calls.items())}{more}")
    assert verdict.faults() == {}
    assert max(verdict.doubled) <= 1


def hold(stage: Stage, capsys: pytest.CaptureFixture[str], plan: list[Point]) -> None:
    """Tell the verdict, and hold the relay to it."""
    tally(capsys, stage.judge.verdict(), plan, f"; {stage.restarted()}")
    assert stage.ended_twice() == set()
    assert stage.slow_restarts <= len(plan) // 20


@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize("act", [Delivery, Deferral, Bounce, Rotation, Stop])
async def test_a_kill_at_every_call(tmp_path, capsys, act):
    async with Stage(tmp_path, limits=IN_THE_JOURNAL) as stage:
        acting = act(stage)
        plan = await rehearse(acting, tmp_path / "trace")
        await sweep(acting, plan)
    hold(stage, capsys, plan)


async def test_a_kill_at_each_write_and_sync_of_a_delivery(tmp_path, capsys):
    """The short form: what the writer does from a client's dot to the next hop's answer."""
    async with Stage(tmp_path) as stage:
        acting = Delivery(stage)
        plan = [point for point in await rehearse(acting, tmp_path / "trace") if point.thread == WRITER]
        await sweep(acting, plan)
    hold(stage, capsys, plan)
    assert {point.name for point in plan} >= {"writev", "fdatasync"}


# --- a start --------------------------------------------------------------------------------------------------------


class Relic(NamedTuple):
    """What a kill left: mail that waits, and a torn frame behind it. Segments have other names each time."""

    number: int
    segment: int
    octets: int

    def general(self, path: str) -> str:
        """A path without what is this relic's alone."""
        for own, stand_in in self._names():
            path = path.replace(own, stand_in)
        return path

    def particular(self, path: str) -> str:
        for own, stand_in in self._names():
            path = path.replace(stand_in, own)
        return path

    def _names(self) -> list[tuple[str, str]]:
        return [(f"{self.segment:08}", "{old}"), (f"{self.segment + 1:08}", "{new}"), (f"-{self.octets}", "-{end}")]


async def relic(stage: Stage, number: int) -> Relic:
    """Kill the relay while a message is put off, and tear its last frame."""
    stage.hop.shut = True
    since = stage.told
    await asyncio.wait_for(stage.sender().send([number]), 10)
    await until(lambda: list(stage.events("deferred", since=since)))
    await stage.kill()
    stage.hop.shut = False
    segment = max(stage.journal.iterdir())
    with SegmentReader(segment) as reader:
        octets = reader.end
    with segment.open("r+b") as file:
        file.seek(octets)
        file.write(b"\xf1RLF" + bytes([1]) * 300)
    return Relic(number, int(segment.stem), octets)


async def start(stage: Stage, relic: Relic, *tracer: str) -> bool:
    """Start under strace. Whether it fell, before it had delivered what it found and removed the old segment."""
    since = stage.told

    def delivered() -> bool:
        found = stage.told_of("delivered", address(relic.number), since)
        return found and len(list(stage.journal.iterdir())) == 1

    stage.relay.launch(*strace.launcher(*tracer))
    return await stage.falls(delivered)


def points_on_paths(calls: Iterable[strace.Call], spool: Path) -> Iterator[Point]:
    """As the threads of a process that only starts are not known, these count by path: one thread alone changes it.

    An open for reading is counted and left out: it changes nothing, so the kill at the next call comes to the same. So
    does a sync of a directory that two threads have files in: the index is made beside the journal, before any mail.
    """
    counts: collections.Counter[tuple[str, str, int]] = collections.Counter()
    owners: collections.defaultdict[tuple[str, str], set[int]] = collections.defaultdict(set)
    made = [call for call in calls if Path(call.path).is_relative_to(spool)]
    for call in made:
        if "O_RDONLY" not in call.arguments:
            owners[call.name, call.path].add(call.thread)
    for call in made:
        key = call.name, call.path, call.thread
        counts[key] += 1
        if "O_RDONLY" in call.arguments:
            continue
        if len(owners[call.name, call.path]) > 1:
            assert call.name == "fsync", key
            assert Path(call.path).is_dir(), key
        else:
            yield Point(call.name, counts[key], path=call.path)


@pytest.mark.drill
@pytest.mark.timeout(600)
async def test_a_kill_at_every_call_of_a_start(tmp_path, capsys):
    """Recovery, the torn tail set aside, a new segment, the recovered message's delivery, the old segment's end."""
    trace = tmp_path / "trace"
    async with Stage(tmp_path) as stage:
        first = await relic(stage, 1000)
        assert not await start(stage, first, *strace.watch(trace))
        found = points_on_paths(strace.calls(trace), tmp_path / "spool")
        plan = [point._replace(path=first.general(point.path)) for point in found]
        await stage.relay.emptied()
        for number, point in enumerate(plan, 1001):
            one = await relic(stage, number)
            where = "-P", one.particular(point.path)
            assert await start(stage, one, *strace.kill(point.name, point.when), *where), f"{point} did not come"
            await stage.restart()
            await stage.relay.emptied()
    hold(stage, capsys, plan)
    assert {"rename", "ftruncate", "unlink"} <= {point.name for point in plan}


# --- segments that become full, in the writer alone -----------------------------------------------------------------


def write(directory: Path, *tracer: str) -> subprocess.CompletedProcess[str]:
    """Eight messages of over 2 KB, one by one, each more than a segment holds; every third of them is not delivered."""
    writer = command(directory, 60, 8, 1, 2048)
    arguments = [strace.program(), "-f", "-qq", "-o", os.devnull, *tracer, *writer]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


async def recount(judge: Judge, turn: int, directory: Path, told: list[str]) -> None:
    """What the writer told, and what a start finds: that would be delivered now, again if it had been before."""
    check(directory, told)
    killed = time.monotonic()
    judge.cut(killed, killed)
    store = JournalStore(directory, 0)
    awake = (await store.open()).messages
    _, resting = await store.rest.page(0, 100)
    found = {message.envelope.id for message in (*awake, *resting)}
    await store.close()
    check(directory, told)
    for line in told:
        if line == "open":
            continue
        one = turn, line[1:]
        match line[0]:
            case "?":
                judge.sending([one])
            case "+":
                judge.answered([one], b"250")
            case "~":
                judge.arrivals[one].append(Arrival(killed - 0.01))
        if line[0] == "?" and name(int(line[1:])) in found:
            judge.arrivals[one].append(Arrival(killed + 0.01))


@pytest.mark.drill
@pytest.mark.timeout(600)
async def test_a_kill_at_every_call_of_a_writer_whose_segments_become_full(tmp_path, capsys):
    """Segments sealed with the frame that fills them and begun; survivors moved into the index, segments unlinked;
    bodies written into files, and these unlinked: many times over.
    """
    trace = tmp_path / "trace"
    directory = tmp_path / "rehearsal" / "spool" / "shard-00"
    assert write(directory, *strace.watch(trace)).returncode == 0
    plan = list(points_on_paths(strace.calls(trace), directory))
    judge = Judge()
    for turn, point in enumerate(plan):
        again = tmp_path / str(turn) / "spool" / "shard-00"
        path = str(again / Path(point.path).relative_to(directory))
        done = write(again, *strace.kill(point.name, point.when), "-P", path)
        assert done.returncode == -signal.SIGKILL, f"{point} was missed: {done.stderr}"
        if again.is_dir():
            await recount(judge, turn, again, done.stdout.split())
    tally(capsys, judge.verdict(), plan)
    assert {"unlink", "unlinkat", "fallocate", "pwrite64"} <= {point.name for point in plan}
    assert {"journal", "index.db-wal", "bodies"} <= {part for point in plan for part in Path(point.path).parts}


# --- the sweep itself can fail --------------------------------------------------------------------------------------


class Late(RelayProcess):
    """A relay whose writes come late, each when the next one does, and which is otherwise the real one."""

    PROGRAM = """
from relayd.spool import writer
write_all, kept = writer.write_all, []
def late(*what):
    kept.append(what)
    if len(kept) > 1:
        write_all(*kept.pop(0))
writer.write_all = late
from relayd.cli.app import main
main()
"""

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *arguments, "--config", str(self.configuration)]


async def test_a_relay_that_answers_before_it_has_written_is_found_out(tmp_path):
    async with Stage(tmp_path, Late) as stage:
        acting = Delivery(stage)
        plan = await rehearse(acting, tmp_path / "trace")
        told = [point for point in plan if point.thread == LOOP]
        # To a client: greeting, EHLO, MAIL, RCPT, DATA; a line to the log; the 250. The kill comes right behind that.
        assert await strike(acting, told[7])
    assert len(stage.judge.verdict().lost) == 1
