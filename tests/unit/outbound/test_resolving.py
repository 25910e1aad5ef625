"""In virtual time: who waits for whom while name servers are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from relayd.message.site import Way
from relayd.outbound import resolving
from relayd.outbound.resolving import AT_ONCE, PATIENCE, TROUBLED_AT_ONCE, Resolving
from tests.fakes.virtual_clock import START, VirtualLoop

SILENCE = 10.0
"""Seconds until the resolver gives a question up."""

SILENT = [f"silent-{number}.example" for number in range(1000)]


class Questions:
    """A resolver of whose domains some are silent. answered: when, in seconds from the start. most: open at once."""

    def __init__(self) -> None:
        self.silent = set(SILENT)
        self.answered: dict[str, float] = {}
        self.most = self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.resolving = Resolving(self._ask, self._run)

    def ask(self, *domains: str) -> None:
        for domain in domains:
            self.resolving.add(Way(domain))
        self.resolving.start()

    async def end(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def forget_most(self) -> None:
        self.most = self._open

    async def _ask(self, way: Way) -> bool:
        self._open += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(SILENCE if way.domain in self.silent else 0.01)
        self._open -= 1
        self.answered[way.domain] = asyncio.get_running_loop().time() - START
        if way.domain == "bug.example":
            raise RuntimeError("bug")
        return way.domain not in self.silent

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        task.exception()
        self.resolving.start()


@pytest.fixture
def virtually() -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run(test: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test())  # type: ignore[arg-type]

    return run


def test_a_domain_waits_a_second_for_each_hundred_silent_ones_before_it(virtually):
    async def test():
        questions = Questions()
        questions.ask(*SILENT, "new.example")
        await questions.end()
        assert questions.answered["new.example"] <= len(SILENT) / AT_ONCE * PATIENCE + 0.1
        assert questions.most <= AT_ONCE * (SILENCE / PATIENCE + 1)
        assert len(questions.answered) == len(SILENT) + 1

    virtually(test)


def test_a_domain_does_not_wait_for_those_that_were_silent_before(virtually):
    async def test():
        questions = Questions()
        questions.ask(*SILENT)
        await questions.end()
        questions.forget_most()
        now = asyncio.get_running_loop().time() - START
        questions.ask(*SILENT, "new.example")
        await questions.end()
        assert questions.answered["new.example"] <= now + 0.1
        assert questions.most <= TROUBLED_AT_ONCE * (SILENCE / PATIENCE + 1) + 1
        assert all(questions.answered[domain] > now for domain in SILENT), "they are asked for all the same"

    virtually(test)


def test_a_domain_that_answers_again_is_like_any_other(virtually):
    async def test():
        questions = Questions()
        questions.ask(*SILENT)
        await questions.end()
        questions.silent.clear()
        questions.ask(*SILENT)
        await questions.end()
        questions.forget_most()
        questions.ask(*SILENT)
        await questions.end()
        assert questions.most == AT_ONCE

    virtually(test)


def test_a_bug_takes_nobodys_place(virtually):
    async def test():
        questions = Questions()
        questions.ask(*["bug.example"] * 2 * AT_ONCE)
        await questions.end()
        questions.forget_most()
        questions.ask(*(f"d{number}.example" for number in range(2 * AT_ONCE)))
        await questions.end()
        assert questions.most == AT_ONCE

    virtually(test)


def test_what_is_remembered_of_silence_is_bounded(virtually, monkeypatch):
    monkeypatch.setattr(resolving, "MAX_TROUBLED", 10)

    async def test():
        questions = Questions()
        questions.ask(*SILENT)
        await questions.end()
        assert len(questions.resolving._unanswered) == 10

    virtually(test)
