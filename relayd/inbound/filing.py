"""A large message while it arrives: off the wire, unstuffed, checked and counted, into its file, as fast as that goes.

Made by `session` for a message that outgrows `limits.inline_body`, fed by `incoming`. Knows no envelope: `begin` makes
the message's beginning and its file of the first part. Nothing of a message that is refused is left.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from relayd.inbound.terms import Terms
from relayd.smtp import reply
from relayd.smtp.framing import Unstuffing
from relayd.smtp.reply import Reply
from relayd.spool.bodies import Writing

MAX_WAITING = 1024 * 1024
"""Octets of a message that may wait for the disk; beyond, its client waits."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Filing:
    """Invariant: from the first refusal on there is no file, and the rest is read over. O(octets)."""

    def __init__(self, terms: Terms, begin: Callable[[bytes], Writing | Reply]) -> None:
        self.refusal: Reply | None = None
        self._queue = terms.queue
        self._limit = terms.limits.message_size
        self._text = Unstuffing(normalize=terms.normalize_lf)
        self._begin = begin
        self._writing: Writing | None = None

    def feed(self, raw: bytes) -> None:
        """The next part, as it came off the wire."""
        if self.refusal is not None:
            return
        text = self._text.feed(raw)
        refusal = self._fault()
        if refusal is None and self._writing is None:
            begun = self._begin(text)
            if isinstance(begun, Writing):
                self._writing = begun
            else:
                refusal = begun
        elif refusal is None and self._writing is not None:
            self._writing.write(text)
        if refusal is not None:
            self.discard()
            self.refusal = refusal

    @property
    def full(self) -> bool:
        """Whether the client should wait for the disk: sooner when memory is short, for whoever has something there."""
        if self._writing is None or not self._writing.waiting:
            return False
        memory = self._queue.memory
        return self._writing.waiting > MAX_WAITING or memory.used > memory.limit // 2

    def taken(self) -> Writing | Reply:
        """The complete message, the caller's from here on, to be finished; or why it is not taken."""
        refusal = self.refusal or self._fault()
        if refusal is not None or self._writing is None:
            self.discard()
            return refusal or reply.NOT_STORED
        writing, self._writing = self._writing, None
        writing.changed = None
        return writing

    def discard(self) -> None:
        """It will not be taken."""
        if self._writing is not None:
            self._writing.changed = None
            self._writing.discard()
            self._writing = None

    def _fault(self) -> Reply | None:
        if self._text.octets > self._limit:
            return reply.MESSAGE_TOO_LARGE
        if self._text.fault:
            # RFC 5321 §2.3.8, §4.1.1.4: as for small messages.
            return reply.stray(self._text.fault)
        if self._writing is not None and self._writing.error is not None:
            return not_written(self._writing.error)
        return None if self._queue.space.enough() else reply.NO_SPACE


def not_written(error: BaseException) -> Reply:
    """What the client is told of an error of the disk."""
    full = isinstance(error, OSError) and error.errno in _NO_SPACE
    return reply.NO_SPACE if full else reply.NOT_STORED
