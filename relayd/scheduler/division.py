"""One site's connections, divided among the workers of the machine.

Owns its window, and what each worker holds and wants of it. Knows no other sites; `broker` has one for each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import msgspec

from relayd.message.site import Site
from relayd.scheduler.lease_messages import Back, Broken, Crowded, Grant, Recall, Want
from relayd.scheduler.rate import NEVER
from relayd.scheduler.shares import Shares
from relayd.scheduler.window import START, Window


class Holding(msgspec.Struct, eq=False, gc=False):
    """A worker's: what it holds, what it could use, and what it was told to go down to, if it has not done so yet."""

    held: int = 0
    wanted: int = 0
    recalled: int | None = None


class Division:
    """A site's window, and who has which part of it.

    Invariants: what is held is no more than the window but right after that became smaller, and then it only becomes
    less; each worker that wants more has as much as any other, or one less, as soon as the others have heard of it.
    With W workers, all is O(W log W).
    """

    __slots__ = ("_holdings", "look", "shares", "site", "starves", "turn", "window")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.window = Window(site.terms.connections)
        self.shares = Shares(rate) if (rate := site.terms.messages_per_second) else None
        self.starves = False
        """Whether a worker that wants a connection has none, and will have none before another gives way."""
        self.turn = NEVER
        """When it gets its turn."""
        self.look = NEVER
        """When `broker` looks at it again."""
        self._holdings: OrderedDict[int, Holding] = OrderedDict()
        """In the order in which they are given what cannot be divided."""

    @property
    def held(self) -> int:
        """By all workers."""
        return sum(holding.held for holding in self._holdings.values())

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds or wants anything."""
        return not (self._holdings or self.shares)

    def hear(self, worker: int, said: Want | Crowded | Broken | Back, now: float) -> None:
        """What a worker says. Whatever it is, no worker gives back what it does not hold."""
        holding = self._holdings.get(worker)
        if holding is None:
            holding = self._holdings[worker] = Holding()
        match said:
            case Want():
                self._serve(said.served, now)
                holding.wanted = max(0, min(said.connections, self.site.terms.connections))
                self._return(holding, said.returned)
            case Crowded():
                for _ in range(min(said.connections, holding.held)):
                    self.window.refused(self.held, now)
                    self._return(holding, 1)
            case Broken():
                for _ in range(min(said.attempts, self.site.terms.connections)):
                    self.window.failed()
            case Back() if self.window.size < START:
                self.window.restart()

    def gone(self, worker: int) -> None:
        """A worker has ended, and its connections with it."""
        self._holdings.pop(worker, None)
        if self.shares:
            self.shares.gone(worker)

    def settle(self) -> Iterator[tuple[int, Grant | Recall]]:
        """What workers are to be told. Those that hold and want nothing are forgotten."""
        for worker in [worker for worker, one in self._holdings.items() if not (one.held or one.wanted)]:
            del self._holdings[worker]
        parts = self._parts()
        self.starves = any(one.wanted and not parts[worker] for worker, one in self._holdings.items())
        if sum(max(one.held, parts[worker]) for worker, one in self._holdings.items()) > self.window.size:
            yield from self._recall(parts)
        room = self.window.size - self.held
        for worker, one in self._holdings.items():
            more = max(0, min(parts[worker] - one.held, room))
            # What it was to give back, it may keep when nobody needs that any more.
            if more or (one.recalled is not None and one.held <= parts[worker]):
                room -= more
                one.held += more
                one.recalled = None
                yield worker, Grant(self.site, more, shared=self.held > one.held)

    def rotate(self) -> None:
        """Those that have a part go behind those that have none."""
        for worker, part in self._parts().items():
            if part:
                self._holdings.move_to_end(worker)

    def _parts(self) -> dict[int, int]:
        return divide(self.window.size, {worker: one.wanted for worker, one in self._holdings.items()})

    def _recall(self, parts: Mapping[int, int]) -> Iterator[tuple[int, Recall]]:
        for worker, one in self._holdings.items():
            if one.held > parts[worker] != one.recalled:
                one.recalled = parts[worker]
                yield worker, Recall(self.site, parts[worker])

    def _return(self, holding: Holding, connections: int) -> None:
        holding.held -= max(0, min(connections, holding.held))
        if holding.recalled is not None and holding.held <= holding.recalled:
            holding.recalled = None

    def _serve(self, served: int, now: float) -> None:
        # A report raises it by one at most: that many were not served with a larger one in use.
        held = self.held
        for _ in range(min(served, self.window.size)):
            self.window.served(held, now)


def divide(connections: int, wants: Mapping[int, int]) -> dict[int, int]:
    """Max-min fair parts: whoever gets less than it wants gets as much as any other, or one less.

    What cannot be divided goes to the first ones. With W workers O(W log W).
    """
    parts = dict(wants)
    ascending = sorted(wants, key=wants.__getitem__)
    while ascending and wants[ascending[0]] <= connections // len(ascending):
        connections -= wants[ascending.pop(0)]
    for worker in wants:
        if worker in ascending:
            each, rest = divmod(connections, len(ascending))
            parts[worker] = each + (rest > 0)
            connections -= parts[worker]
            ascending.remove(worker)
    return parts
