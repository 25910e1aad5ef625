"""Threads for what blocks: work is done in order, whatever becomes of its caller, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest

from relayd.spool.threads import Threads


@pytest.fixture
def threads():
    threads = Threads(1, "test")
    yield threads
    threads.join()


async def test_work_is_done_in_order_on_a_thread_of_that_name(threads):
    done: list[int] = []
    await asyncio.gather(*(threads.call(partial(done.append, number)) for number in range(1000)))
    assert done == list(range(1000))
    thread = await threads.call(threading.current_thread)
    assert (thread.name, thread.daemon) == ("test", True)


async def test_what_it_raises_is_raised_to_its_caller_and_stops_nothing(threads):
    with pytest.raises(ZeroDivisionError):
        await threads.call(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        await threads.call(partial(exit, 3))
    assert await threads.call(lambda: 7) == 7


async def test_work_whose_caller_is_cancelled_is_done(threads):
    begin = threading.Event()
    first = threads.call(begin.wait)
    done: list[int] = []
    second = threads.call(partial(done.append, 2))
    second.cancel()
    begin.set()
    assert await first
    await threads.call(partial(done.append, 3))
    assert done == [2, 3]


async def test_so_many_work_at_once():
    threads = Threads(3, "test")
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(await asyncio.gather(*(threads.call(meeting.wait) for _ in range(3)))) == [0, 1, 2]
    threads.join()


async def test_where_no_thread_can_be_started_the_next_call_tries_again(threads, monkeypatch):
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.call(lambda: 1)
    assert await threads.call(lambda: 2) == 2


async def test_closed_it_does_what_it_was_given_and_takes_no_more(threads):
    begin = threading.Event()
    first, second = threads.call(begin.wait), threads.call(lambda: 2)
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="test is closed"):
        threads.call(lambda: 3)
    begin.set()
    assert (await first, await second) == (True, 2)
    threads.join()
    assert not any(thread.is_alive() for thread in threads._threads)


def test_closed_unused_it_has_nothing_to_wait_for():
    Threads(2, "test").join()


async def test_nothing_of_finished_work_stays_in_memory(threads):
    class Body:
        def use(self) -> Body:
            return self

    body = Body()
    left = weakref.ref(body)
    assert await threads.call(body.use) is body
    del body
    await threads.call(lambda: None)
    gc.collect()
    assert left() is None


def test_a_loop_that_has_gone_ends_no_thread(threads):
    begin, ended = threading.Event(), threading.Event()

    async def leave() -> None:
        threads.call(begin.wait)

    asyncio.run(leave())
    begin.set()

    async def come_back() -> None:
        await threads.call(ended.set)

    asyncio.run(come_back())
    assert ended.is_set()
