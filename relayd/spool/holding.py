"""What an operator does to a message in the queue: hold it back, let it go on. Durable before it is told.

Called by service for the control socket. What the schedule makes of it is the dispatcher's.
"""

from __future__ import annotations

import asyncio

from relayd.message import queue_id
from relayd.spool.queue import Queue
from relayd.spool.records import Held, Message
from relayd.spool.store import StoreError


async def hold(queue: Queue, name: str, *, held: bool) -> Message | None:
    """Hold a message back, or release it; None when there is none. An attempt under way ends as it may. StoreError.

    Not to be cancelled: what it took out of its rest is in memory, and the caller's to schedule.
    """
    if not queue_id.is_valid(name):
        return None
    try:
        store = queue.store_of(name)
    except KeyError:
        return None
    waking = name not in store.messages
    message = await store.rest.take(name) if waking else store.messages[name]
    if message is None:
        return None
    try:
        await asyncio.shield(store.commit((Held(name, held),)))
    except StoreError:
        if waking:
            queue.added(message)  # it is in memory now: without this, nobody would have it scheduled
        raise
    # Its last recipient may have been settled meanwhile.
    return store.messages.get(name)
