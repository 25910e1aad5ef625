"""The wire of one outbound session: bytes to replies, any number of them awaited at once (RFC 2920).

Builds on aiosmtplib's protocol for lifecycle and flow control, and replaces how replies are read: its own reading keeps
one reply and loses the rest. Knows no verbs but QUIT. The law it holds: bytes that arrive when no reply is awaited end
the connection, because from then on no answer could be trusted to be the answer to its command.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiosmtplib.protocol import SMTPProtocol

from relayd.smtp.reply import ProtocolError, Reply, ReplyParser

BLOCK = 65536
"""Octets of message data handed to the transport at a time."""


class PipeliningProtocol(SMTPProtocol):
    """`exchange` writes and returns the replies; fewer than awaited mean that the connection is over: see `failure`.

    States: waiting (`_awaited` > 0) and quiet. Only in the first may bytes arrive. `failure` is empty while the
    connection can be used. No method raises for what the peer does; all are O(bytes).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[SMTPProtocol], None]) -> None:
        super().__init__(loop, on_lost)
        self.failure = ""
        self._parser = ReplyParser()
        self._replies: list[Reply] = []
        self._output: list[bytes | memoryview] = []
        # RFC 5321 §3.1: the peer speaks first.
        self._awaited = 1
        self._wakened: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silence = 0.0
        self._deadline = 0.0
        self._quitting = False

    def exchange(self, commands: bytes, replies: int, silence: float) -> Awaitable[list[Reply]]:
        """Write; await the result for so many replies, at most `silence` seconds for each next one."""
        self.expect(replies)
        self.send(commands)
        return self.answers(silence)

    def expect(self, replies: int) -> None:
        """From now on so many replies may arrive."""
        self._awaited = replies

    def send(self, data: bytes | memoryview) -> None:
        """Write unless the connection is over; with what others write, when the loop's turn is (decision 0016)."""
        if self.failure:
            return
        if self.transport is None or self.transport.is_closing():
            self.fail("connection lost")
            return
        if not self._output:
            self._loop.call_soon(self._write)
        self._output.append(data)

    def _write(self) -> None:
        output, self._output = self._output, []
        if self.transport is not None and not self.transport.is_closing():
            for data in output:  # nearly always one; asyncio's writelines knew no flow control (CVE-2024-12254)
                self.transport.write(data)  # type: ignore[attr-defined]  # aiosmtplib declares the base class

    async def send_blocks(self, data: bytes, silence: float) -> bool:
        """Write much data as fast as the peer takes it; False when a reply, or the end, came before all was out."""
        view = memoryview(data)
        for start in range(0, len(data), BLOCK):
            if self.failure or self._replies:
                return False
            self.send(view[start : start + BLOCK])
            self._write()
            if self._paused:
                await self._drained(silence)
        return not self.failure and not self._replies

    async def answers(self, silence: float) -> list[Reply]:
        """The replies awaited. Cancelled while waiting, the connection is over: an answer would come unasked."""
        if len(self._replies) < self._awaited and not self.failure:
            self._watch(silence)
            self._wakened = self._loop.create_future()
            try:
                await self._wakened
            except asyncio.CancelledError:
                if len(self._replies) < self._awaited:
                    self.fail("cut off")
                    raise
                # They came in time, and the last may be a promise: it counts, and the caller's next wait is cut off.
                _cut_off()
            finally:
                self._wakened = None
                self._silence = 0.0
        replies, self._replies, self._awaited = self._replies[: self._awaited], [], 0
        return replies

    def fail(self, why: str) -> None:
        """End the connection at once; the first reason stays."""
        if not self.failure:
            self.failure = why
            self.cut()
        self._wake()

    def cut(self) -> None:
        """Drop the transport, whatever state it is in."""
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]  # as in send

    def quit(self, seconds: float) -> None:
        """Say QUIT and close when it is answered, or after `seconds`. Returns at once."""
        self.expect(1)
        self.send(b"QUIT\r\n")
        self._write()  # now: who counts our sessions sees this one's end before the next one's beginning
        if not self.failure:
            self.failure = "closed"
            self._quitting = True
            self._loop.call_later(seconds, self.cut)

    def data_received(self, data: bytes) -> None:
        """Parse replies; wake who waits for the last one."""
        if self._quitting:
            self.cut()
            return
        try:
            replies = self._parser.feed(data)
        except ProtocolError as error:
            # What follows an answer does not take it back: that a message was accepted, least of all.
            self._replies += error.before
            self.fail(str(error))
            return
        self._replies += replies
        left = self._awaited - len(self._replies)
        if left < 0 or (left == 0 and self._parser.pending):
            self.fail("answered what was not asked")
        elif left == 0:
            self._wake()
        elif replies:
            # Each reply gives the next one its full time; octets that complete none would do so for ever.
            self._deadline = self._loop.time() + self._silence

    def eof_received(self) -> bool:
        """The peer closed: so do we."""
        self.fail("connection closed by the peer")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was awaited does not come."""
        super().connection_lost(exc)
        self.failure = self.failure or (f"connection lost ({exc})" if exc else "connection lost")
        self._stop_timer()
        self._wake()

    async def upgrade(self, context: ssl.SSLContext, name: str, seconds: float) -> str:
        """TLS from the next octet on, within `seconds`; why that failed, empty when it is there.

        Whoever spoke in clear before it, in the segment of the 220 or unasked, may be someone else (RFC 3207 §4.2):
        then `failure` is set by now, or these octets are here still, and nothing is said under TLS.
        """
        if self._replies or self._parser.pending:
            self.fail("spoke in clear before TLS")
        if self.failure or self.transport is None:
            return self.failure or "connection lost"
        try:
            self.transport = await self._loop.start_tls(
                self.transport,  # type: ignore[arg-type]  # as in send
                self,
                context,
                server_hostname=name,
                ssl_handshake_timeout=seconds,
            )
        except asyncio.CancelledError:
            self._lost("cut off")
            raise
        except (OSError, ValueError) as error:  # ValueError: not a name that SNI can carry
            self._lost(_reason(error))
        return self.failure

    def _lost(self, why: str) -> None:
        """The end in a handshake, which asyncio's transports do not tell the protocol of."""
        self.fail(why)
        if self.transport is not None:
            self.connection_lost(None)

    async def _drained(self, silence: float) -> None:
        """Wait until the peer has taken what was written; cancelled, the connection is over."""
        self._watch(silence)
        try:
            await self._drain_helper()
        except ConnectionError as error:
            self.fail(str(error))
        except asyncio.CancelledError:
            self.fail("cut off")
            raise
        finally:
            self._silence = 0.0

    def _watch(self, silence: float) -> None:
        """The peer has so many seconds from now. The timer stays between waits: most end long before it fires."""
        self._silence = silence
        self._deadline = self._loop.time() + silence
        if self._timer is None or self._timer.when() > self._deadline:
            self._stop_timer()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        """The timer fired: perhaps for a wait that is over, perhaps the deadline has moved."""
        self._timer = None
        if not self._silence:
            return
        # uvloop counts in milliseconds and may be one early.
        if self._loop.time() < self._deadline - 0.002:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self.fail(f"no answer within {self._silence:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._wakened is not None and not self._wakened.done():
            self._wakened.set_result(None)


def _cut_off() -> None:
    if (task := asyncio.current_task()) is not None:
        task.cancel()


def _reason(error: OSError | ValueError) -> str:
    """Why a handshake failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or "connection lost"
