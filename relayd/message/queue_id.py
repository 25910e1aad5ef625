"""Queue ids: the shard in two characters, then 80 random bits in sixteen; `[A-Za-z0-9]` only.

Unpredictable, so an id seen in a bounce or a log leads to no other. Checked before it meets a path or a socket.
"""

import base64
import re

_FORM = re.compile(r"[0-9A-V]{2}[A-Z2-7]{16}", re.ASCII)
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
MAX_SHARDS = len(_DIGITS) ** 2


def compose(shard: int, entropy: bytes) -> str:
    """The id of a message in `shard` (0 to 1023) from ten random octets."""
    return _DIGITS[shard >> 5] + _DIGITS[shard & 31] + base64.b32encode(entropy).decode("ascii")


def is_valid(text: str) -> bool:
    """Whether `text` has the form of a queue id."""
    return _FORM.fullmatch(text) is not None


def shard_of(queue_id: str) -> int:
    """The shard that owns the message."""
    return (_DIGITS.index(queue_id[0]) << 5) | _DIGITS.index(queue_id[1])
