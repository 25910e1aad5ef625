"""When each domain's hosts are asked for: domains whose name servers are silent do not keep the others waiting.

Owns the order of the questions. Must not know what an answer says, but whether there was one; the dispatcher, which
owns the tasks, makes one of these.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine

from relayd import clock
from relayd.message.site import Way
from relayd.outbound.recent import Recent

AT_ONCE, TROUBLED_AT_ONCE = 100, 25
"""Domains asked for at once: others, and those of which there was no answer the last time."""

PATIENCE = 1.0
"""Seconds after which a question that is still open makes room for another one. The resolver ends it within 10."""

TROUBLE_SECONDS, MAX_TROUBLED = 86400.0, 10_000
"""For how long, and of how many domains, it is remembered that there was no answer."""


class _Lane:
    """Ways to be asked for, in order, and how many more may be asked for now."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.waiting: deque[Way] = deque()


class _Slot:
    """A place in a lane, until it is given back for the first time."""

    def __init__(self, lane: _Lane) -> None:
        lane.free -= 1
        self._lane: _Lane | None = lane

    def give_back(self) -> None:
        """Somebody else may use it."""
        if self._lane is not None:
            self._lane.free += 1
            self._lane = None


class Resolving:
    """Questions that wait, and their turns.

    A domain waits a second for each AT_ONCE that are before it, at most, however long their servers are silent. All is
    O(1). Memory: the ways that wait in the scheduler, and MAX_TROUBLED.
    """

    def __init__(
        self,
        ask: Callable[[Way], Coroutine[None, None, bool]],
        run: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        """ask: whether there was an answer; its exceptions are bugs. run: as a task, after which `start` is called."""
        self._ask = ask
        self._run = run
        self._usual, self._troubled = _Lane(AT_ONCE), _Lane(TROUBLED_AT_ONCE)
        self._unanswered = Recent(TROUBLE_SECONDS, MAX_TROUBLED, clock.monotonic)

    def add(self, way: Way) -> None:
        """To be asked for by `start`."""
        lane = self._troubled if way.domain in self._unanswered else self._usual
        lane.waiting.append(way)

    def start(self) -> None:
        """Ask for as many as may be asked for now."""
        for lane in (self._usual, self._troubled):
            while lane.waiting and lane.free:
                self._run(self._asked(lane.waiting.popleft(), _Slot(lane)))

    async def _asked(self, way: Way, slot: _Slot) -> None:
        late = asyncio.get_running_loop().call_later(PATIENCE, self._is_late, slot)
        try:
            if await self._ask(way):
                self._unanswered.drop(way.domain)
            else:
                self._unanswered.add(way.domain)
        finally:
            late.cancel()
            slot.give_back()

    def _is_late(self, slot: _Slot) -> None:
        slot.give_back()
        self.start()
