"""The virtual clock: timers come in order and at their time, sockets and threads are waited for, relayd's clocks follow."""

import asyncio
import contextlib
import threading
import time

import pytest

from relayd import clock
from tests.fakes.virtual_clock import EPOCH, START, VirtualLoop, drive

DAY = 86_400.0


def run(test):
    """What a coroutine function returns on a virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test())


def test_a_year_passes_at_once_and_timers_come_in_their_order():
    async def year():
        loop, seen = asyncio.get_running_loop(), []
        for day in (365, 3, 200):
            loop.call_later(day * DAY, lambda day=day: seen.append((day, loop.time() - START)))
        await asyncio.sleep(366 * DAY)
        return seen

    began = time.monotonic()
    assert run(year) == [(3, 3 * DAY), (200, 200 * DAY), (365, 365 * DAY)]
    assert time.monotonic() - began < 10


def test_work_takes_no_time():
    async def work():
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(work) == START


def test_no_timer_is_early():
    async def tick():
        loop, early = asyncio.get_running_loop(), 0
        for _ in range(1000):
            due = loop.time() + 0.1
            await asyncio.sleep(0.1)
            early += loop.time() < due - 1e-9
        return early

    assert run(tick) == 0


def test_a_conversation_on_a_socket_takes_no_time():
    async def echo(reader, writer):
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    async def converse():
        server = await asyncio.start_server(echo, "127.0.0.1")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(0.01):
            for number in range(1000):
                writer.write(b"%d\n" % number)
                assert await reader.readline() == b"%d\n" % number
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return asyncio.get_running_loop().time()

    assert run(converse) == START


def test_a_peer_that_stays_silent_times_out():
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    async def ask():
        server = await asyncio.start_server(silent, "127.0.0.1")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await reader.readline()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return asyncio.get_running_loop().time() - START

    assert run(ask) == 600


def test_time_stands_still_while_a_thread_works():
    async def work():
        loop = asyncio.get_running_loop()
        ticks, go_on = [], threading.Event()
        loop.call_later(1, ticks.append, "tick")
        job = loop.run_in_executor(None, go_on.wait)
        threading.Timer(0.05, go_on.set).start()
        await job
        return list(ticks), loop.time()

    assert run(work) == ([], START)


def test_what_a_thread_never_ends_is_waited_for_no_longer_than_said():
    async def wait():
        loop = asyncio.get_running_loop()
        never = loop.create_future()
        loop.stand_still(never, 0.02)
        began = time.monotonic()
        await asyncio.sleep(1)
        never.cancel()
        return time.monotonic() - began, loop.time() - START

    real, virtual = run(wait)
    assert real >= 0.02
    assert virtual == 1


def test_the_clocks_of_relayd_follow_and_are_given_back():
    before = (clock.monotonic, clock.wall)

    async def read():
        with pytest.MonkeyPatch.context() as patch:
            driven = drive(patch)
            await driven.forward(DAY)
            return driven.now, clock.monotonic(), clock.wall()

    assert run(read) == (DAY, START + DAY, EPOCH + DAY)
    assert (clock.monotonic, clock.wall) == before


def test_a_condition_that_never_holds_fails_at_its_deadline():
    async def wait():
        with pytest.MonkeyPatch.context() as patch:
            driven = drive(patch)
            with pytest.raises(AssertionError, match="not within 60 virtual seconds"):
                await driven.until(lambda: False, 60)
            return driven.now

    assert run(wait) == 60
