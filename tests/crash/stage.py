"""What a drill plays on: a relay, its next hop, clients that send numbered mail, and the judge of it all.

Every wait has a deadline, and every death of the relay is told to the judge as a cut. Restarts are timed. Knows what
drills have in common, not what any of them breaks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.fakes import strace
from tests.fakes.judge import Judge, Verdict, delivery, message
from tests.fakes.relay_process import RelayProcess
from tests.fakes.sender import Sender
from tests.fakes.sink import OK, Sink

LARGE = 1_000_000
"""From this number on messages are of 1.2 MB: more than a segment holds when nothing is live."""

RESTART_SECONDS = 2.0
"""What a restart may take, half of it for loading the program; a slow machine may need longer for that."""


def content(number: int) -> bytes:
    return message(number, 1_200_000 if number >= LARGE else 5120)


def loading() -> float:
    """Seconds it takes just now to load the program."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import relayd.cli.app"], check=True)
    return time.monotonic() - started


class Hop(Sink):
    """Refuses refused.test for good and later.test at first; while it is `shut`, everybody for now."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(on_message=judge.take)
        self.shut = False
        self._judge = judge
        self._asked: set[str] = set()

    def recipient(self, address: str) -> bytes:
        domain = address.partition("@")[2]
        if domain == "refused.test":
            self._judge.refused.add(delivery(address))
            return b"550 5.1.1 No such user\r\n"
        if self.shut or (domain == "later.test" and address not in self._asked):
            self._asked.add(address)
            return b"451 4.2.0 Not now\r\n"
        return OK


class Stage:
    """`async with Stage(directory) as stage:` a relay that is ready; it is stopped, and everything closed, at the end.

    restarts: seconds from the launch of a process until it took mail, less those for which others had the processor.
    slow_restarts: how many took longer than they may.
    """

    def __init__(
        self, directory: Path, relay: type[RelayProcess] = RelayProcess, *, spool: str = "spool", **options: Any
    ) -> None:
        self.judge = Judge(content)
        self.hop = Hop(self.judge)
        self.restarts: list[float] = []
        self.slow_restarts = 0
        self.relay: RelayProcess
        self.spool = directory / spool
        self._directory = directory
        self._kind = relay
        self._options = {"extra": f'[spool]\npath = "{spool}"\n', **options}

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as opening:
            await opening.enter_async_context(self.hop)
            self.relay = self._kind(self._directory, [self.hop.port], **self._options)
            opening.push_async_exit(self._stop)
            await self.relay.start()
            self._exit = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)

    async def _stop(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.relay.process is not None:
            status = await self.relay.stop()
            assert kind is not None or status == 0, f"relayd ended with {status}:\n{self.relay.log()}"

    @property
    def pid(self) -> int:
        assert self.relay.process is not None
        return self.relay.process.pid

    @property
    def writer(self) -> int:
        """The thread that writes the one shard: the second oldest, behind the event loop."""
        return strace.threads(self.pid)[1]

    @property
    def journal(self) -> Path:
        return self.spool / "shard-00" / "journal"

    def sender(self, *, sessions: int = 1, patient: bool = False) -> Sender:
        return Sender(self.relay.ports["relay"], self.judge, sessions=sessions, patient=patient)

    # --- the relay's deaths -----------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """SIGKILL, from here."""
        alive = time.monotonic()
        await self.relay.kill()
        await self._cut(alive)

    async def falls(self, otherwise: Callable[[], bool], seconds: float = 30.0) -> bool:
        """Return when the relay is dead, True, or when something else is the case, False."""
        process = self.relay.process
        assert process is not None
        started = alive = time.monotonic()
        while True:
            now = time.monotonic()
            if process.poll() is not None:
                await self._cut(alive)
                return True
            alive = now
            if otherwise():
                return False
            assert now < started + seconds, f"neither dead nor done within {seconds} s:\n{self.relay.log()}"
            await asyncio.sleep(0.002)

    async def _cut(self, alive: float) -> None:
        """Whatever the dead relay had sent is read before anything else happens."""
        await self.hop.abandoned()
        self.judge.cut(alive, time.monotonic())

    async def restart(self) -> None:
        started = time.monotonic()
        await self.relay.start()
        seconds = time.monotonic() - started - self._kept_waiting()
        self.restarts.append(seconds)
        if seconds >= RESTART_SECONDS:
            self.slow_restarts += seconds - await asyncio.to_thread(loading) >= RESTART_SECONDS / 2

    def _kept_waiting(self) -> float:
        """Seconds for which the relay could have run and others did: this is about the relay, not about the machine."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0

    def restarted(self) -> str:
        return f"restarts in {statistics.median(self.restarts):.1f} s, the longest in {max(self.restarts):.1f} s"

    # --- what the relay tells ---------------------------------------------------------------------------------------

    async def unready(self) -> str:
        """Why it takes no mail, as /readyz has it; empty when it does."""
        try:
            await self.relay.get("/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()
        return ""

    async def becomes(self, unready: str, seconds: float = 20.0) -> None:
        """Return when /readyz says this."""
        deadline = time.monotonic() + seconds
        while (said := await self.unready()) != unready:
            assert time.monotonic() < deadline, f"{said!r} after {seconds} s, not {unready!r}:\n{self.relay.log()}"
            await asyncio.sleep(0.02)

    @property
    def told(self) -> int:
        """How much is in the log by now: a place for `events` to begin from."""
        return (self._directory / "events.log").stat().st_size

    def events(self, *names: str, since: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """What the log tells from a place on, and where it stands, less lines that a kill cut short."""
        with (self._directory / "events.log").open("rb") as file:
            file.seek(since)
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                finally:
                    place, since = since, since + len(line)
                if event["event"] in names:
                    yield place, event

    def told_of(self, name: str, recipient: str, since: int = 0) -> bool:
        """Whether the log tells of such an event for a recipient."""
        return any(event["recipient"] == recipient for _, event in self.events(name, since=since))

    def ended_twice(self) -> set[tuple[str, str]]:
        """Deliveries whose end is told of more than once: it is told when it is durable, so nothing may come behind."""
        ends = collections.Counter(
            (event["id"], event["recipient"]) for _, event in self.events("delivered", "failed", "expired")
        )
        return {end for end, times in ends.items() if times > 1}


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Return when the condition holds; an AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.002)


def publish(capsys: pytest.CaptureFixture[str], verdict: Verdict, facts: str) -> None:
    """The one line that counts, and one of circumstances."""
    with capsys.disabled():
        sys.stdout.write(f"\n{verdict}\n  {facts}\n")


def chosen_seed() -> int:
    """Given in DRILL_SEED, or a new one; told at once, for a drill that does not get as far as a verdict."""
    seed = int(os.environ.get("DRILL_SEED") or secrets.randbelow(1 << 32))
    sys.stdout.write(f"DRILL_SEED={seed}\n")
    return seed
