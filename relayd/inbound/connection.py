"""The course of a connection: lines executed as they come, a message, TLS, each within its deadline; and the farewell.

Between `wire`, which moves octets, and `commands`, which knows what they are. A line is executed in the callback that
brought it, at the cost of a call; a command that has to wait is `busy`, and what comes behind it stays in the buffer.
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
    """What is executed when, and for how long the client is waited for.

    Invariants: no line is executed while `busy`, and the coroutine (`run` of `commands`) does not end then; `deadline`
    (the loop's time) is finite exactly while something is awaited of the client, and the owner calls `expire`
    regularly; after `end` nothing but the farewell is said.
    """

    def __init__(self, terms: Terms, client: str) -> None:
        super().__init__()
        self.terms = terms
        self.client = client
        self.deadline = math.inf
        self.busy = True
        """A command waits for something that is not the next line; from the start, until the greeting is said."""
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
        self.proceed()

    # --- what the session calls ---------------------------------------------------------------------------------------

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

    def proceed(self) -> None:
        """Execute the lines that are there, until a command has to wait; see who is waited for."""
        if self.busy:
            self.wake()  # this may be what the command waits for
            return
        executed = False
        while self._at_leisure() and (line := self.take()) is not None:
            self.execute(line)
            executed = True
        if self._draining and not (self.busy or self.in_transaction()):
            self.end(reply.CLOSING)
        if self.busy or self.over():
            self.deadline = math.inf
            self.wake()
        elif executed or self.deadline == math.inf:
            # Part of a line moves nothing: a command may take no longer by dripping in.
            now = self.loop.time()
            self.deadline = self.incoming.deadline(now) if self.incoming else now + self.terms.timing.idle

    def hold(self) -> None:
        """A command begins to wait: from here on the client waits for us."""
        self.busy = True
        self.deadline = math.inf

    @property
    def shakes_hands(self) -> bool:
        """Whether a TLS handshake is under way, in which nothing can be said."""
        return self.starting_tls or (self.terms.implicit_tls and not self._connected)

    def done_waiting(self) -> None:
        """It has its answer: go on with what came behind it."""
        self.busy = False
        self.proceed()

    def _at_leisure(self) -> bool:
        """Whether the next line may be executed: a client that does not read its replies waits (but not for ever)."""
        return not (self.busy or self.ending or self.incoming or self.lost or (self.writing_paused and not self.eof))

    def execute(self, line: bytes) -> None:
        """Carry out a command."""
        raise NotImplementedError

    async def line(self) -> bytes | None:
        """The next line for a command that asks its client; None when the session is over."""
        self.deadline = self.loop.time() + self.terms.timing.idle
        while (line := self.take()) is None and not self.over():
            if self._draining:
                self.end(reply.CLOSING)
            else:
                await self.wait()
        self.deadline = math.inf
        return None if self.ending else line

    def over(self) -> bool:
        """Whether nothing more comes of the client."""
        return self.ending or self.lost or self.eof

    def arrived(self, incoming: Incoming, data: bytes) -> None:
        """A chunk of the message moves the deadline, unless the client has to wait for the disk."""
        super().arrived(incoming, data)
        if self.incoming is not incoming:
            return
        now = self.loop.time()
        if not incoming.full:
            self.resume_reading()
            self.deadline = incoming.deadline(now)
        elif not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
            self.deadline = math.inf
            incoming.paused(now)

    def written(self) -> None:
        """More of a large message is in its file: its client may go on."""
        now = self.loop.time()
        if self._reading_paused and self.incoming is not None and self.incoming.resumed(now):
            self.deadline = self.incoming.deadline(now)
            self.resume_reading()

    async def start_tls(self, context: Context) -> None:
        """Answer STARTTLS and become a TLS connection, as new; the session ends when that fails."""
        self.say(reply.SEND_TLS)
        self.write()
        self.starting_tls = True
        try:
            transport = await self.loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=self.terms.timing.handshake
            )
        except OSError as error:
            log.session_refused(self.client, f"TLS handshake: {reply.printable(str(error).encode())}")
            self.cut()
            return
        finally:
            self.starting_tls = False
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
