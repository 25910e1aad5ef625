"""Brings what rests on disk into memory before it is due, and no more of it than can soon be tried.

Owns what is brought in, and what may go to rest again. Knows the queue and what the scheduler holds; what becomes of a
message is the dispatcher's. A site that takes nothing fills its own lanes and no other's; a million messages due at
once come in turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from relayd import clock, log, metrics
from relayd.scheduler.scheduler import Scheduler
from relayd.spool.queue import Queue
from relayd.spool.records import Message
from relayd.spool.store import Rest, StoreError

HORIZON = 60.0
"""Seconds before its time at which a message is brought in; what is due later than that may go to rest."""

LANE = 1000
"""Entries of a lane (a domain and an account) above which it is full, and new ones may go to rest."""

TOTAL = 20_000
"""Entries in memory above which only lanes get some that have none (Postfix's qmgr_message_active_limit): what waits
for sites that take next to nothing must not keep the mail of others on disk."""

TOTAL_EVER = 2 * TOTAL
"""Entries in memory above which nothing is brought in."""

TOTAL_WOKEN = TOTAL // 2
"""Entries in memory above which nothing is woken: what was brought in for that and waits for another reason stays, and
the rest of the queue needs room."""

LANES, EACH = 50, 20
"""Lanes looked at in one go, and messages of each: to add a thousand holds the loop for some 20 ms."""

WOKEN = 1000
"""Messages brought in at a look of those whose site is back."""

INTERVAL = 1.0
"""Seconds between two looks."""

TROUBLE_INTERVAL = 10.0
"""Seconds until the next look after one that failed."""


class Add(Protocol):
    """Schedules a message; what waits for the sites of `woken` domains to be reached is due now."""

    def __call__(self, message: Message, woken: Collection[str] = ()) -> None:
        """Take it."""


class Feed:
    """A look at a time at each shard, whose trouble is its own.

    Invariant: what a look brought in is scheduled before the next. A look is O(brought in).
    """

    def __init__(self, queue: Queue, scheduler: Scheduler, add: Add) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._add = add
        self._tasks: list[asyncio.Task[None]] = []
        # For each shard, domains whose mail is brought in whether it is due or not.
        self._woken: list[set[str]] = [set() for _ in queue.rests]

    async def start(self) -> None:
        """See how old the queue is, then look until `stop`."""
        await asyncio.gather(*(rest.look_back() for rest in self._queue.rests))
        runs = map(self._run, self._queue.rests, self._woken)
        self._tasks = [asyncio.get_running_loop().create_task(run) for run in runs]

    async def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def dismiss(self, name: str) -> bool:
        """Whether a message in memory may go to rest; then the scheduler has forgotten it. See `Queue.dismiss`."""
        room = LANE if self._scheduler.lanes.total <= TOTAL else 0
        return self._scheduler.withdraw(name, clock.monotonic() + HORIZON, room)

    def wake(self, domains: Collection[str]) -> None:
        """The site of these domains is back: bring in what waits for that, oldest due first, as there is room."""
        for woken in self._woken:
            woken.update(domains)

    async def _run(self, rest: Rest, woken: set[str]) -> None:
        while True:
            try:
                more = True
                while more:
                    more = await self._bring(rest)
                await self._revive(rest, woken)
                await rest.look_back()
                pause = INTERVAL
            except StoreError as error:
                log.alert("mail at rest cannot be read", error=str(error))
                pause = TROUBLE_INTERVAL
            except Exception:  # noqa: BLE001  # what rests is safe, and the next look may do better
                metrics.bugs.inc()
                log.bug("feed")
                pause = TROUBLE_INTERVAL
            await asyncio.sleep(pause)

    async def _bring(self, rest: Rest) -> bool:
        """Bring in what is due; whether there may be more."""
        total = self._scheduler.lanes.total
        if not rest.count or total >= TOTAL_EVER:
            return False
        full = self._is_full if total < TOTAL else self._has_some
        messages = await rest.due(clock.wall() + HORIZON, lanes=LANES, each=EACH, full=full)
        for message in messages:
            self._add(message)
        return bool(messages)

    async def _revive(self, rest: Rest, woken: set[str]) -> None:
        """A look at what waits in domains that were woken: a thousand messages a time are a ramp, too."""
        domains = list(woken)
        if not domains or self._scheduler.lanes.total >= TOTAL_WOKEN:
            return
        messages = await rest.of_domains(domains, WOKEN) if rest.count else []
        for message in messages:
            self._add(message, domains)
        if len(messages) < WOKEN:
            woken.difference_update(domains)

    def _has_some(self, domain: str, account: str) -> bool:
        return self._scheduler.lanes.of(domain, account) > 0

    def _is_full(self, domain: str, account: str) -> bool:
        return self._scheduler.lanes.of(domain, account) >= LANE
