"""A connection's octets, on aiosmtpd's protocol class: a bounded buffer of lines in, replies out, who waits for what.

Replaces aiosmtpd's stream reader (a coroutine and a timer for each line cost more than the relay itself): whatever
happens calls `proceed`, which executes what has arrived, and wakes the coroutine of a command that has to wait.
Knows no deadlines and no words: `connection`.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable
from typing import Any, ClassVar, cast

import aiosmtpd.smtp

from relayd.inbound.incoming import Incoming
from relayd.smtp.reply import Reply

MAX_LINE = 12288
"""Octets of any line: what RFC 4954 §4 wants for authentication exchanges. Longer ones are read over and refused."""

Verb = Callable[[Any, bytes], Reply | None]
"""A method of a session, not bound: a command's argument in; its reply, or None where that comes later."""

HIGH_WATER = 65536
"""Octets of unread input above which the client has to wait."""


@functools.lru_cache(maxsize=128)
def _encoded(answer: Reply) -> bytes:
    """Nearly every reply is one of a few constants."""
    return answer.encode()


class Wire(aiosmtpd.smtp.SMTP):
    """asyncio's side of a connection.

    Invariants: unread input is bounded by HIGH_WATER and one chunk; nothing is read once `ending` is set, or the
    connection `lost`.
    """

    verbs: ClassVar[dict[str, Verb]]
    """The methods `smtp_VERB`, by their verb."""
    session: aiosmtpd.smtp.Session
    transport: asyncio.Transport

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.verbs = {name.removeprefix("smtp_"): getattr(cls, name) for name in dir(cls) if name.startswith("smtp_")}

    def __init__(self) -> None:
        # Not aiosmtpd's constructor: it looks for verbs, hooks and mechanisms on each connection, at a tenth of what a
        # message costs that comes alone. All that is left of the class needs the loop (tests/contract).
        self.loop = asyncio.get_running_loop()
        self.ending = False
        self.lost = False
        self.eof = False
        self.tls: ssl.SSLObject | None = None
        self.incoming: Incoming | None = None
        """The message that arrives now: then octets are its, not commands."""
        self.writing_paused = False
        self.starting_tls = False
        self._connected = False
        self._input = b""
        self._output: list[bytes] = []
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None

    # --- asyncio's callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, in clear or (again) under TLS; the session is a new one (RFC 3207 §4.2)."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by its class
        self._connected = True
        self.session = self._create_session()
        self.tls = transport.get_extra_info("ssl_object")

    def data_received(self, data: bytes) -> None:
        """Octets of a message go where they belong, commands into the buffer."""
        if self.incoming is not None:
            self.arrived(self.incoming, data)
        elif not self.ending:
            self._input += data
            if len(self._input) > HIGH_WATER and not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()
            self.proceed()

    def arrived(self, incoming: Incoming, data: bytes) -> None:
        """A chunk of a message; what stands behind its end are commands."""
        if incoming.feed(data):
            self.incoming = None
            self._input += incoming.rest()
            self.received(incoming)

    def received(self, incoming: Incoming) -> None:
        """A message has arrived, or more of it than anybody waits for."""
        raise NotImplementedError

    def proceed(self) -> None:
        """Something has changed: do what can be done now, without waiting."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """The client sends no more, but may still read: what it sent is answered. TLS cannot be half closed."""
        self.eof = True
        self.proceed()
        return self.tls is None

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """The connection is gone; a commit in progress is not disturbed by that (I6)."""
        self.lost = True
        self.wake()

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self.writing_paused = False
        self.proceed()

    # --- the session's side -------------------------------------------------------------------------------------------

    def say(self, answer: Reply) -> None:
        """Answer; on its way when the loop's turn is over, so that the replies to pipelined commands go together.

        So do those to all clients: who is woken by the first would take the processor before the second is written
        (docs/decisions/0016).
        """
        if not self._output:
            self.loop.call_soon(self.write)
        self._output.append(_encoded(answer))

    def write(self) -> None:
        """Send what was said, now."""
        if self._output and not self.lost:
            self.transport.write(b"".join(self._output))
        self._output.clear()

    def take(self) -> bytes | None:
        """A line off the buffer, its LF included; of one over MAX_LINE the first MAX_LINE + 1 octets and the LF.

        O(what is buffered): nearly always that is one line, and copies of it cost less than finding out.
        """
        if not self._input and not self._reading_paused:
            return None
        line, end, self._input = self._input.partition(b"\n")
        if end:
            return line + end
        self._input = line[: MAX_LINE + 1]
        self.resume_reading()
        return None

    def unread(self) -> bool:
        """Whether the client sent something behind what was taken."""
        return bool(self._input)

    def resume_reading(self) -> None:
        """Let the client send again, if it had to wait."""
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    async def wait(self) -> None:
        """Until something happens; the caller looks what."""
        self._waiter = self.loop.create_future()
        await self._waiter

    def wake(self) -> None:
        """Let the coroutine look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cut(self) -> None:
        """End without words."""
        if self._connected:  # in the handshake of implicit TLS there is no transport yet
            self.transport.abort()
        self.ending = self.lost = True
        self.wake()
