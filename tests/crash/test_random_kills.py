"""200 times kill -9 at random moments, of a relay at work with 20 clients and 20 connections to its next hop (I2, I3).

Half of the kills come while it starts, half while it works. DRILL_SEED repeats the plan, not what happens in between.

A kill may double a delivery whose dot the next hop answered and whose outcome was not durable: a kill lies between its
arrivals, and the relay, which logs an outcome once it is durable, had logged none of the first. How many can that be?
An outcome goes to the disk in the turn of the loop that reads the answer, so a kill finds those of the group that is
being written and of the next one. A connection carries one message at a time and takes longer for it than the disk for
a group: at most two answers for each connection. A disk slower than the network would break that bound, not I3.
"""

from __future__ import annotations

import asyncio
import bisect
import random

import pytest

from tests.crash.stage import Stage, chosen_seed, publish
from tests.fakes.judge import Delivery

ENOUGH = 500_000
"""Messages nobody gets through."""

CONNECTIONS = 20
"""Of the clients, and by default to a next hop."""


class Lives:
    """A relay killed again and again. logs: where the log stood at each of its deaths, before them 0."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.logs = [0]
        self._stage = stage
        self._random = random.Random(seed)

    async def end(self) -> None:
        """This life."""
        await self._stage.kill()
        self.logs.append(self._stage.told)

    async def begin(self, *, starting: bool) -> None:
        """Another, up to a random moment of its start or of its work."""
        if starting:
            self._stage.relay.launch()
            await asyncio.sleep(self._random.uniform(0, 1.2))
        else:
            await self._stage.restart()
            await asyncio.sleep(self._random.uniform(0, 0.4))

    async def run(self, kills: int) -> None:
        for turn in range(kills):
            await self.end()
            await self.begin(starting=turn < kills - 1 and self._random.random() < 0.5)

    def unsettled(self) -> list[set[Delivery]]:
        """For each death, what had arrived in that life and was not known to be durable."""
        settled = [set() for _ in self.logs]
        for at, event in self._stage.events("delivered"):
            settled[bisect.bisect_right(self.logs, at) - 1].add(event["recipient"])
        ends = [cut.until for cut in self._stage.judge.cuts]
        found: list[set[Delivery]] = [set() for _ in ends]
        for one, arrivals in self._stage.judge.arrivals.items():
            for arrival in arrivals:
                life = bisect.bisect_left(ends, arrival.at)
                if life < len(ends) and one[1] not in settled[life]:
                    found[life].add(one)
        return found


@pytest.mark.drill
@pytest.mark.timeout(600)
async def test_two_hundred_random_kills(tmp_path, capsys):
    seed = chosen_seed()
    async with Stage(tmp_path) as stage:
        sending = asyncio.create_task(stage.sender(sessions=CONNECTIONS).send(range(ENOUGH)))
        lives = Lives(stage, seed)
        await lives.run(200)
        assert not sending.done(), "nothing left to send"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await stage.relay.emptied(120)
    verdict = stage.judge.verdict(seed)
    unsettled = lives.unsettled()
    most = max(map(len, unsettled))
    facts = f"at a kill, at most {most} answered and unsettled, {max(verdict.doubled)} doubled"
    publish(capsys, verdict, f"{facts}; {stage.restarted()}")
    assert verdict.faults() == {}
    assert stage.ended_twice() == set()
    assert all(doubled <= len(those) for doubled, those in zip(verdict.doubled, unsettled, strict=True))
    assert most <= 2 * CONNECTIONS
    assert stage.slow_restarts <= len(stage.restarts) // 20
    assert verdict.acknowledged > 1000
