"""A next hop with moods: refuses some recipients and messages for good, others at first, and answers when it likes.

What it does to numbered mail depends on the number and the address alone. Tells the judge what it took and what it
refused for good. Knows nothing of relays, and nothing of what a drill breaks.
"""

from __future__ import annotations

import re
import time
import zlib

from tests.fakes.judge import Judge, delivery
from tests.fakes.sink import OK, Received, Sink

NEVER = b"550 5.1.1 No such user\r\n"
NEVER_THIS = b"554 5.6.0 Not that\r\n"
LATER = b"451 4.2.0 Not now\r\n"
LATER_THIS = b"451 4.3.0 Not that, not now\r\n"


class FickleSink(Sink):
    """Of the recipients, 1 in 12 is refused for good, 1 in 4 at first; of the messages 1 in 16 and 1 in 8.

    Notifications are put off now and then, and never refused for good. patience: at first lasts so many seconds from
    the first attempt on, or up to three times as long. put_off, refusals: answers 4xx, answers 5xx.
    """

    def __init__(self, judge: Judge, *, patience: float = 0.5) -> None:
        super().__init__(on_message=judge.take)
        self.put_off = 0
        self.refusals = 0
        self._judge = judge
        self._patience = patience
        self._asked: dict[str, float] = {}

    def recipient(self, address: str) -> bytes:
        """As in `Sink`."""
        if not re.match(r"n\d", address):
            return OK  # a sender, who is told of a failure
        mood = _mood(address)
        if mood % 12 == 0:
            return self._refused([address], NEVER)
        if mood % 12 < 4 and not self._has_waited(f"rcpt {address}", mood):
            return self._put_off(LATER)
        return OK

    def message(self, received: Received) -> bytes:
        """As in `Sink`."""
        name = received.content[:2000].partition(b"Message-ID:")[2].partition(b"\r\n")[0].decode()
        mood = _mood(name)
        if mood % 16 == 0 and received.sender != b"<>":
            return self._refused(received.addresses, NEVER_THIS)
        if mood % 16 < 3 and not self._has_waited(name, mood):
            return self._put_off(LATER_THIS)
        return super().message(received)

    def _has_waited(self, what: str, mood: int) -> bool:
        now = time.monotonic()
        return now - self._asked.setdefault(what, now) >= self._patience * (1 + mood // 256 % 3)

    def _put_off(self, reply: bytes) -> bytes:
        self.put_off += 1
        return reply

    def _refused(self, addresses: tuple[str, ...] | list[str], reply: bytes) -> bytes:
        self._judge.refused |= set(map(delivery, addresses))
        self.refusals += len(addresses)
        return reply


def _mood(name: str) -> int:
    return zlib.crc32(name.encode())
