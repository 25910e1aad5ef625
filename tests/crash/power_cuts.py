"""A relay over a disk whose power is cut again and again, while 20 clients send and a fickle next hop takes their mail.

The spool alone lies on that disk; log and configuration stay outside, so that the relay can tell. Owns the order of
things in a cut and the plan of all cuts, which a seed repeats; what happens between them is never the same. What the
outcome ought to be is for the tests to say. Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakes.fickle_sink import FickleSink
from tests.fakes.fragile_disk import FragileDisk
from tests.fakes.judge import Delivery, Judge, address, delivery, message
from tests.fakes.relay_process import RelayProcess
from tests.fakes.sender import Sender

ENOUGH = 500_000
"""Messages nobody gets through."""

ANSWER_SECONDS = 60.0
"""A relay that is up takes some hundred messages in this time, whatever else the machine does."""

AT_RANDOM, BEHIND_A_250, WHILE_STARTING = "at random", "behind a 250", "while starting"


class Plan(NamedTuple):
    """One life of the relay. Seconds, but for `answers`.

    how: when the power goes: `instant` behind the start, where the `answers`-th 250 is read, or in the midst of
    recovery. delay: until the next hop answers. linger: life without a disk, in which it could say what is not true.
    neighbour: between two syncs by somebody else; 0 for nobody.
    """

    how: str
    instant: float = 0.0
    answers: int = 1
    delay: float = 0.0
    linger: float = 0.0
    neighbour: float = 0.0


def drawn(seed: int, count: int) -> list[Plan]:
    """So many lives: always the same ones for a seed."""
    draw = random.Random(seed)
    return [
        Plan(
            how=draw.choices((AT_RANDOM, BEHIND_A_250, WHILE_STARTING), (4, 4, 2))[0],
            instant=draw.uniform(0, 1.5),
            answers=draw.randrange(1, 300),
            delay=draw.choice((0.0, 0.0, 0.01, 0.2)),
            linger=draw.choice((0.0, 0.0, 0.05, 0.4)),
            neighbour=draw.choice((0.0, 0.001, 0.02)),
        )
        for _ in range(count)
    ]


def content(number: int) -> bytes:
    """Of all sizes: most are small, 1 in 30 takes many blocks of the disk."""
    return message(number, 400_000 if number % 30 == 7 else 400 + number * 7919 % 20_000)


class Witness(Judge):
    """A judge of power cuts, who calls out, too, in the moment the k-th 250 is read.

    With the power the whole machine is gone: a 250 that is read behind the cut was said by nobody and promises nothing.
    Nor is it true: a sync that is under way in that moment may succeed though its data is dropped (without any relay,
    in 17 of 300 cuts of ext4; on xfs, too). But none that begins behind the cut does: what was sent then and answered
    250 is a lie. unheard: messages answered 250 by a machine that was gone.
    """

    def __init__(self) -> None:
        super().__init__(content)
        self.lies: set[Delivery] = set()
        self.unheard = 0
        self._cuts = 0
        self._dark = False
        self._sent_in: dict[Delivery, tuple[int, bool]] = {}
        self._left = 0
        self._call: Callable[[], None] | None = None

    def darken(self) -> None:
        """The power is off from now on."""
        self._cuts += 1
        self._dark = True

    def lighten(self) -> None:
        """Whatever lives from now on has a disk."""
        self._dark = False

    def call(self, call: Callable[[], None], *, after: int) -> None:
        """Call once, where so many more messages were acknowledged."""
        self._left, self._call = after, call

    def sending(self, deliveries: Iterable[Delivery]) -> None:
        sent = set(deliveries)
        self._sent_in |= dict.fromkeys(sent, (self._cuts, self._dark))
        super().sending(sent)

    def answered(self, deliveries: Iterable[Delivery], reply: bytes) -> None:
        answered = set(deliveries)
        sent = {self._sent_in.pop(one) for one in answered}
        if not reply.startswith(b"250"):
            super().answered(answered, reply)
        elif any(dark for _, dark in sent):
            self.lies |= answered
        elif sent != {(self._cuts, self._dark)}:
            self.unheard += 1
        else:
            super().answered(answered, reply)
            self._left -= 1
            if self._left == 0 and self._call is not None:
                self._call()


class Crowd(Sender):
    """Every third message goes to two recipients of one domain and one of another: some of them can be done."""

    async def _message(self, talk: Any, number: int, recipient: str) -> None:
        recipients = [recipient]
        if number % 3 == 0:
            recipients += [f"n{number}-too@sink.test", address(number, "other.test")]
        try:
            for command in ("MAIL FROM:<ledger@ledger.test>", *(f"RCPT TO:<{one}>" for one in recipients), "DATA"):
                await self._ask(talk, command)
        except BaseException:
            self._pending.appendleft(number)
            raise
        deliveries = [delivery(one) for one in recipients]
        self._judge.sending(deliveries)
        reply = await talk.ask(self._judge.content(number).replace(b"\r\n.", b"\r\n..") + b".\r\n")
        self._judge.answered(deliveries, reply)
        if not reply.startswith(b"250"):
            self._refused(reply)

    async def _ask(self, talk: Any, command: str) -> None:
        reply = await talk.ask(command.encode() + b"\r\n")
        if not reply.startswith((b"250", b"354")):
            self._refused(reply)
            raise ConnectionAbortedError(reply)


class Neighbour:
    """Somebody else on the same disk, who syncs all of it: what the relay was just writing gets there in part."""

    def __init__(self, directory: Path, pause: float) -> None:
        self._directory = directory
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> None:
        if self._pause:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._pause:
            self._thread.join(10)

    def _work(self) -> None:
        sync = ctypes.CDLL(None).syncfs
        root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not self._over.wait(self._pause) and sync(root) == 0:
                pass
        finally:
            os.close(root)


class PowerCuts:
    """`run` plays it, `judge` saw it all. how: cuts by their kind. refused: what senders were told instead of 250."""

    def __init__(self, directory: Path, disk: FragileDisk, relay: type[RelayProcess] = RelayProcess) -> None:
        self.judge = Witness()
        self.sink = FickleSink(self.judge)
        self.how: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self._disk = disk
        self._directory = directory
        self._log = directory / "events.log"
        self._kind = relay
        self._cut_at = 0.0
        self._dark: list[tuple[int, int]] = []
        """Parts of the log, from octet to octet, that a machine without power had not written."""

    async def run(self, plans: Iterable[Plan], seconds: float) -> None:
        """A cut for each plan; then whatever is left has to leave the relay, within so many seconds."""
        async with self.sink:
            self.relay = self._kind(self._directory, [self.sink.port], extra='[spool]\npath = "disk/spool"\n')
            sender = Crowd(self.relay.ports["relay"], self.judge)
            self.refused = sender.refused
            sending = asyncio.create_task(sender.send(range(ENOUGH)))
            try:
                for plan in plans:
                    await self._life(plan)
                    assert not sending.done(), sending
                await self._last_life(sending, seconds)
            finally:
                await _ended(sending)
                if self.relay.process is not None:
                    await self.relay.kill()

    async def _life(self, plan: Plan) -> None:
        """The relay starts, works, loses its disk, lives on without it, and dies."""
        self.how[plan.how] += 1
        self.sink.delay = plan.delay
        with Neighbour(self._disk.path, plan.neighbour):
            if plan.how == WHILE_STARTING:
                self.relay.launch()
                await self._recovering()
                await asyncio.sleep(plan.instant / 20)  # recovery takes a tenth of a second, or less
                self._cut()
            else:
                await self.relay.start()
                await self._working(plan)
            await asyncio.sleep(plan.linger)
            await self.relay.kill()
        await self.sink.abandoned()
        self.judge.cut(self._cut_at, time.monotonic())
        self._dark.append((self._log_at_cut, self._log_octets()))
        await asyncio.to_thread(self._disk.restore)
        self.judge.lighten()

    async def _last_life(self, sending: asyncio.Task[None], seconds: float) -> None:
        """Nothing more is sent, and nothing is slow."""
        self.sink.delay = 0.0
        await self.relay.start()
        await _ended(sending)
        await self.relay.emptied(seconds)
        assert await self.relay.stop() == 0, self.relay.log()

    async def _working(self, plan: Plan) -> None:
        """Until the power goes."""
        if plan.how == AT_RANDOM:
            await asyncio.sleep(plan.instant)
            self._cut()
            return
        dark = asyncio.Event()

        def cut() -> None:
            # Here, and not in a task that is told: nothing else happens between the client's reading and the cut.
            self._cut()
            dark.set()

        self.judge.call(cut, after=plan.answers)
        await asyncio.wait_for(dark.wait(), ANSWER_SECONDS)

    async def _recovering(self) -> None:
        """Return when the relay has locked its spool, or has ended: it reads the journal from then on."""
        process = self.relay.process
        assert process is not None
        deadline = time.monotonic() + 30
        while process.poll() is None and not _has_open(process.pid, "lock"):
            assert time.monotonic() < deadline, f"no lock within 30 s:\n{self.relay.log()}"
            await asyncio.sleep(0.001)

    def _cut(self) -> None:
        self._cut_at, self._log_at_cut = time.monotonic(), self._log_octets()
        self._disk.cut()
        self.judge.darken()

    def _log_octets(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    # --- what the relay itself tells --------------------------------------------------------------------------------

    def events(self, *names: str) -> Iterator[dict[str, Any]]:
        """Its log, less lines that a kill cut short."""
        return _events(self._log.read_bytes(), names)

    def ended_twice(self) -> set[tuple[str, str]]:
        """Recipients it told to be done with and did again: it tells that when it is durable, so there are none."""
        log, begin = self._log.read_bytes(), 0
        ends: collections.Counter[tuple[str, str]] = collections.Counter()
        for cut, dead in [*self._dark, (len(log), len(log))]:
            told = _events(log[begin:cut], ("delivered", "failed", "expired"))
            ends.update((event["id"], event["recipient"]) for event in told)
            begin = dead
        return {end for end, count in ends.items() if count > 1}

    def circumstances(self) -> str:
        """What else there was, for people to see that much was at stake."""
        cuts = ", ".join(f"{count} {how}" for how, count in sorted(self.how.items()))
        found = list(self.events("recovered"))
        recovered, torn = (sum(event[name] for event in found) for name in ("messages", "torn"))
        return (
            f"{self._disk.kind}, {cuts}; next hop answered {self.sink.put_off} x 4xx, {self.sink.refusals} x 5xx; "
            f"{len(self.judge.bounces)} bounced, {recovered} recovered by a start, {torn} torn ends, "
            f"{self.judge.unheard} x 250 behind a cut"
        )


def _events(lines: bytes, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["event"] in names:
                yield event


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _has_open(pid: int, name: str) -> bool:
    """Whether a process of ours has a file of this name open."""
    with contextlib.suppress(OSError):  # a file was closed, or the process ended, meanwhile
        return any(Path(file.readlink()).name == name for file in Path(f"/proc/{pid}/fd").iterdir())
    return False
