"""A process that writes to a shard and tells on its standard output what it did, for tests that kill or starve it.

Lines: "?n" message n is handed over, "+n" it is durable, "~n" its outcome is handed over, "-n" that is durable,
"!n" a commit for n failed. Two of three messages are settled at once; the others go into the index, come back, and half
of them are settled then. One in five has its body in a file of its own.

Usage: python -m tests.crash.spool_writer DIRECTORY FIRST COUNT CLIENTS SEGMENT_OCTETS
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path

from relayd.spool import bodies, keeper
from relayd.spool.memory import Memory
from relayd.spool.records import Accepted, Filed, State
from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreError
from tests.fakes import mail
from tests.fakes.mail import accepted, name, result, settled


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def body(number: int) -> bytes:
    """A body as mail has it."""
    return mail.body(number, 98 + number * 37 % 9000) + b"\r\n"


async def take(store: JournalStore, number: int) -> None:
    """A message comes in, its body into a file when it is large; `queue` does the same."""
    octets = body(number)
    filed: bytes | Filed = octets
    if number % 5 == 4:
        writing = store.bodies.write(name(number), MEMORY)
        writing.write(octets)
        filed = await writing.finish()
    await store.commit([Accepted(accepted(number).envelope, filed)])


async def settle(store: JournalStore, number: int) -> None:
    await store.commit([settled(number)])
    if number % 5 == 4:
        store.bodies.remove(name(number))


async def tried(marks: str, number: int, work: Awaitable[None]) -> bool:
    tell(f"{marks[0]}{number}")
    try:
        await work
    except (StoreError, OSError):
        tell(f"!{number}")
        return False
    tell(f"{marks[1]}{number}")
    return True


MEMORY = Memory(1 << 30)

in_work: set[str] = set()
"""As with a scheduler, what is in work does not go to rest."""


async def one(store: JournalStore, number: int) -> None:
    in_work.add(name(number))
    taken = await tried("?+", number, take(store, number))
    # Two in three are delivered.
    if taken and number % 3:
        await tried("~-", number, settle(store, number))
    in_work.discard(name(number))


async def again(store: JournalStore, number: int) -> None:
    in_work.add(name(number))
    if number % 2:
        await tried("~-", number, settle(store, number))
    else:
        with contextlib.suppress(StoreError):
            await store.commit([settled(number, result(state=State.DEFERRED))])
    in_work.discard(name(number))


async def come_back(store: JournalStore, each: int) -> None:
    """A few of what rests."""
    with contextlib.suppress(StoreError):
        found = await store.rest.due(1e12, lanes=1, each=each, full=lambda _domain, _account: False)
        await asyncio.gather(*(again(store, int(message.envelope.accepted_at)) for message in found))


async def at_once(store: JournalStore, numbers: Iterator[int], clients: int) -> None:
    """Many, while the keeper moves what lives as fast as it can, and it comes back."""

    async def client() -> None:
        for number in numbers:
            await one(store, number)

    async def returns() -> None:
        while True:
            await asyncio.sleep(keeper.TICK)
            await come_back(store, 20)

    returning = asyncio.create_task(returns())
    await asyncio.gather(*(client() for _ in range(clients)))
    returning.cancel()
    await asyncio.wait([returning])


async def one_by_one(store: JournalStore, numbers: Iterator[int]) -> None:
    """The same each time, call by call: what lives moves behind every third, and every sixth brings one back."""
    for number in numbers:
        await one(store, number)
        if number % 3 == 0:
            with contextlib.suppress(StoreError):
                await store.seal()
        if number % 6 == 5:
            await come_back(store, 1)


async def main(directory: str, first: str, count: str, clients: str, segment_octets: str) -> None:
    alone = int(clients) == 1
    bodies.THREADS = 1  # so that it is always the same thread that has a file
    keeper.TICK, keeper.SETTLE_SECONDS, keeper.RETRY_SECONDS = (3600.0 if alone else 0.01), 0.0, 0.01
    store = JournalStore(Path(directory), 0, segment_octets=int(segment_octets))
    store.idle = lambda message: message not in in_work
    await store.open()
    tell("open")
    numbers = iter(range(int(first), int(first) + int(count)))
    await (one_by_one(store, numbers) if alone else at_once(store, numbers, int(clients)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
