"""Queue ids: the shard in three hexadecimal digits, then 80 random bits in twenty.

Unpredictable, so an id seen in a bounce or a log leads to no other. Checked before it meets a path or a socket.
"""

import functools
import re

MAX_SHARDS = 1024
"""Shards an installation may have; the form leaves room for 4096."""

_FORM = re.compile(r"[0-9a-f]{23}", re.ASCII)


def compose(shard: int, entropy: bytes) -> str:
    """The id of a message in `shard` from ten random octets."""
    return f"{shard:03x}{entropy.hex()}"


def is_valid(text: str) -> bool:
    """Whether `text` has the form of a queue id."""
    return _FORM.fullmatch(text) is not None


def shard_of(queue_id: str) -> int:
    """The shard that owns the message; ValueError for what is no id."""
    return _number(queue_id[:3])


@functools.lru_cache(maxsize=MAX_SHARDS)
def _number(digits: str) -> int:
    """Asked several times for each message, of a few shards."""
    return int(digits, 16)
