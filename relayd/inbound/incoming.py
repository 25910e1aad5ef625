"""The body of one message while it arrives: its octets against the memory budget, the size limit and the data rate.

Fed by `connection` for each chunk off the socket; read by `session` when it is complete. What is too large to be kept
goes on into a `Filing`. Knows no replies but those that end it, and nothing of envelopes.
"""

from __future__ import annotations

from collections.abc import Callable

from relayd.config.schema import Limits
from relayd.inbound.filing import Filing
from relayd.inbound.terms import Timing
from relayd.smtp import reply
from relayd.smtp.framing import DataReader, stray, with_crlf
from relayd.smtp.reply import Reply
from relayd.spool.bodies import Writing
from relayd.spool.memory import Memory


class Incoming:
    """From 354 to the final dot. Invariant: `held` octets of the budget, and the file, are ours until `give_back`.

    A body that finds no memory is read to its end and discarded, so that the session can go on. O(1) per octet.
    """

    def __init__(
        self, limits: Limits, timing: Timing, memory: Memory, now: float, filing: Callable[[], Filing]
    ) -> None:
        """filing: makes what takes a message of more than `limits.inline_body`."""
        self._limit = limits.message_size
        self._rate = limits.minimum_data_rate
        self._timing = timing
        self._memory = memory
        self._reader = DataReader(limits.message_size, limits.inline_body)
        self._make_filing = filing
        self._filing: Filing | None = None
        self._started = now
        self._held = 0
        self._no_memory = False
        self._paused = 0.0
        self.full = False
        """More waits for the disk than should: nothing is to be read until `resumed`."""
        self.endless = False
        """More than twice the limit came: nobody waits for the end of that."""

    def feed(self, chunk: bytes) -> bool:
        """Take what arrived; True when there is no more to wait for."""
        reader = self._reader
        if not reader.too_large:
            self._reserve(len(chunk))
        ended = reader.feed(chunk)
        if reader.large:
            self._file()
        if ended:
            return True
        if reader.too_large:
            self.give_back()
        # Stuffing may double a body, so the reader gives up at twice the limit, and so do we.
        self.endless = reader.received > 2 * self._limit + 16
        return self.endless

    def deadline(self, now: float) -> float:
        """When the client is too slow, if nothing more arrives: silent too long, or below the minimum rate."""
        silent = now + self._timing.idle
        if not self._rate:
            return silent
        return min(silent, self._started + self._timing.data_grace + self._reader.received / self._rate)

    def paused(self, now: float) -> None:
        """The client is kept waiting, which does not count against it."""
        self._paused = now

    def resumed(self, now: float) -> bool:
        """Whether enough was written to read on."""
        self.full = self._filing is not None and self._filing.full
        if self.full:
            return False
        self._started += now - self._paused
        return True

    def rest(self) -> bytes:
        """What came behind the end: commands (RFC 2920 §3.1 allows the next transaction there)."""
        return self._reader.rest

    def body(self, *, normalize_lf: bool) -> bytes | Writing | Reply:
        """The complete body, its dots unstuffed, or its file, the caller's from here on; or why it is not taken."""
        body = self._reader.body
        if self._reader.too_large:
            return self.overflow()
        if body is None:
            return self._filing.taken() if self._filing is not None else self.overflow()
        fault = stray(body)
        if fault == "bare LF" and normalize_lf:
            return with_crlf(body)
        # RFC 5321 §2.3.8, §4.1.1.4: what others might take for line ends smuggles messages past them.
        return reply.stray(fault) if fault else body

    def overflow(self) -> Reply:
        """Why a body was discarded."""
        if self._filing is not None and self._filing.refusal is not None:
            return self._filing.refusal
        return reply.NO_SPACE if self._no_memory else reply.MESSAGE_TOO_LARGE

    def trade(self, octets: int) -> bool:
        """Hold the budget for a body of this size instead; then it is the caller's to give back. False: no memory."""
        self.give_back()
        return self._memory.take(octets)

    def give_back(self) -> None:
        """Return what is held to the budget, and remove an unfinished file."""
        self._memory.give(self._held)
        self._held = 0
        if self._filing is not None:
            self._filing.discard()

    def _file(self) -> None:
        """Pass on what has come of a large message; from there it counts as waiting for the disk."""
        if self._filing is None:
            self._filing = self._make_filing()
        self._memory.give(self._held)
        self._held = 0
        if self._reader.too_large:
            self._filing.discard()
        else:
            self._filing.feed(self._reader.take())
            self._reader.too_large = self._filing.refusal is not None
        self.full = self._filing.full

    def _reserve(self, octets: int) -> None:
        if self._memory.take(octets):
            self._held += octets
        else:
            self._no_memory = True
            self._reader.too_large = True
