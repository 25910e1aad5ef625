"""A process that writes to a shard and tells on its standard output what it did, for tests that kill or starve it.

Lines: "?n" message n is handed over, "+n" it is durable, "~n" its outcome is handed over, "-n" that is durable,
"!n" a commit for n failed. Usage: python -m tests.crash.spool_writer DIRECTORY FIRST COUNT AT_ONCE SEGMENT_OCTETS
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from relayd.spool.records import Record
from relayd.spool.shard import JournalStore
from relayd.spool.store import StoreError
from tests.fakes.mail import accepted, settled


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def commit(store: JournalStore, marks: str, number: int, record: Record) -> bool:
    tell(f"{marks[0]}{number}")
    try:
        await store.commit([record])
    except StoreError:
        tell(f"!{number}")
        return False
    tell(f"{marks[1]}{number}")
    return True


async def one(store: JournalStore, number: int) -> None:
    taken = await commit(store, "?+", number, accepted(number, octets=100 + number * 37 % 9000))
    # Two in three are delivered.
    if taken and number % 3:
        await commit(store, "~-", number, settled(number))


async def main(directory: str, first: str, count: str, at_once: str, segment_octets: str) -> None:
    store = JournalStore(Path(directory), 0, segment_octets=int(segment_octets))
    await store.open()
    tell("open")
    numbers = iter(range(int(first), int(first) + int(count)))

    async def some() -> None:
        for number in numbers:
            await one(store, number)

    await asyncio.gather(*(some() for _ in range(int(at_once))))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
