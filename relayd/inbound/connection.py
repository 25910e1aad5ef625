"""The course of a connection: the next line, a message, TLS, each within its deadline; and the end, with a farewell.

Between `wire`, which moves octets, and `dialog`, which knows commands.
"""

from __future__ import annotations

import math

from relayd import log
from relayd.inbound.incoming import Incoming
from relayd.inbound.terms import Terms
from relayd.inbound.wire import Wire
from relayd.smtp import reply
from relayd.smtp.reply import Reply
from relayd.tls import Context


class Connection(Wire):
    """What a session's coroutine waits for, and for how long.

    Invariants: `deadline` (the loop's time) is finite exactly while something is awaited of the client, and the owner
    calls `expire` regularly; after `end` nothing but the farewell is said.
    """

    def __init__(self, terms: Terms, client: str) -> None:
        super().__init__(terms.hostname)
        self.terms = terms
        self.client = client
        self.deadline = math.inf
        self._draining = False
        self._farewell: Reply | None = None

    # --- what the owner calls -----------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Act if the deadline has passed: first with words, then without."""
        if now < self.deadline:
            return
        if self.ending:
            self.cut()
            return
        log.session_refused(self.client, "timeout")
        self.deadline = now + self.terms.timing.linger
        self.end(reply.DATA_TOO_SLOW if self.incoming else reply.IDLE_TOO_LONG)

    def drain(self) -> None:
        """Say goodbye as soon as no transaction is open."""
        self._draining = True
        self.wake()

    # --- what the session's coroutine calls ---------------------------------------------------------------------------

    def end(self, farewell: Reply) -> Reply:
        """Close when what was said so far and this is on its way. The first farewell counts."""
        if not self.ending:
            self.ending = True
            self._farewell = farewell
        self.wake()
        return farewell

    def in_transaction(self) -> bool:
        """Whether the client is in the middle of something that a shutdown should let it finish; here, never."""
        return False

    async def line(self) -> bytes | None:
        """The next line (see `take`), or None when the session is over. Replies are sent before it is awaited."""
        if self.ending or self.lost:
            return None
        if (line := self.take()) is not None:
            return line
        await self._flush()
        while (line := self.take()) is None and not self._over():
            if self._draining and not self.in_transaction():
                self.end(reply.CLOSING)
            else:
                await self.wait()
        self.deadline = math.inf
        return None if self.ending else line

    async def receive(self, incoming: Incoming) -> bool:
        """Let a message arrive, from the answer to DATA on; False when the session ended before it did."""
        self.incoming = incoming
        await self._flush()
        self.deadline = incoming.deadline(self.loop.time())
        while self.incoming is not None and not self._over():
            await self.wait()
        self.deadline = math.inf
        complete = self.incoming is None and not self.lost and not self.ending
        self.incoming = None
        return complete

    def arrived(self, incoming: Incoming, data: bytes) -> None:
        """A chunk of the message moves the deadline."""
        super().arrived(incoming, data)
        self.deadline = incoming.deadline(self.loop.time())

    async def start_tls(self, context: Context) -> None:
        """Answer STARTTLS and become a TLS connection, as new; the session ends when that fails."""
        self.say(reply.SEND_TLS)
        self.write()
        try:
            transport = await self.loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=self.terms.timing.handshake
            )
        except OSError as error:
            log.session_refused(self.client, f"TLS handshake: {reply.printable(str(error).encode())}")
            self.cut()
            return
        if transport is None or transport.is_closing():
            # The client left during the handshake, and nobody else will tell us.
            self.cut()
        else:
            self.connection_made(transport)

    async def close(self) -> None:
        """Say the farewell and wait until the connection is gone; `expire` cuts it when the client lingers."""
        self.ending = True
        self.deadline = self.loop.time() + self.terms.timing.linger
        if self._farewell is not None:
            self.say(self._farewell)
        self.write()
        self.resume_reading()
        if self._farewell is not None and self._farewell.code >= 400 and self.tls is None:
            await self._linger()
        self.transport.close()
        while not self.lost:
            await self.wait()

    async def _linger(self) -> None:
        """Read on until the client has seen the farewell: closing with octets unread would reset it away."""
        if self.transport.is_closing():
            return
        try:
            self.transport.write_eof()
        except OSError:  # reset by the client, and asyncio has not noticed yet
            return
        while not self.eof and not self.lost:
            await self.wait()

    async def _flush(self) -> None:
        """Send what was said, and wait for a client that does not read it."""
        self.write()
        self.deadline = self.loop.time() + self.terms.timing.idle
        while self.writing_paused and not self._over():
            await self.wait()

    def _over(self) -> bool:
        return self.ending or self.lost or self.eof
