"""One SMTP session with one host: greeted, upgraded to TLS, used for transactions; `connector` opens it.

Owns the order of commands and the waits of RFC 5321 §4.5.3.2. Reports what was answered and judges nothing beyond
whether a stage goes on: meaning is `classify`'s, recipients are `delivery`'s, keeping it open is the pool's.
"""

from __future__ import annotations

import ssl

import msgspec
from aiosmtplib.esmtp import parse_esmtp_extensions

from relayd.message.outcome import Outcome
from relayd.message.site import Host
from relayd.outbound.classify import DATA, EHLO, GREETING, MAIL, RCPT, STARTTLS, Stage, Step, goes_on, ruling
from relayd.outbound.protocol import BLOCK, PipeliningProtocol
from relayd.smtp import reply
from relayd.smtp.limits import parse as parse_limits
from relayd.smtp.reply import Reply
from relayd.spool.bodies import Stream

RECIPIENTS = 50
"""Recipients of one transaction; RFC 5321 §4.5.3.1.8 obliges servers to 100, pipelined commands stay under 32 KiB."""

MESSAGES = 100
"""Transactions of one connection, where neither its site nor its peer says otherwise."""

_DOT = b".\r\n"
_LAST = b"\n"  # octet of every body, as it ends in CRLF
_CONTROLS = bytes(range(0x20)) + b"\x7f"


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds of silence after which a session is given up (RFC 5321 §4.5.3.2; others as Postfix)."""

    connect: float = 30
    banner: float = 300
    ehlo: float = 300
    starttls: float = 30
    mail: float = 300
    rcpt: float = 300
    data: float = 120
    block: float = 180
    dot: float = 600
    rset: float = 20
    quit: float = 2
    login: float = 60


class Transaction(msgspec.Struct, gc=False):
    """A message on its way to some recipients of one domain, and what was answered so far.

    mail, rcpt: the commands without CRLF. content: the body, stuffed, or its file's stream. chunk: octets of the body
    where it goes in one chunk, by BDAT (RFC 3030): content is then as stored, without its last octet; 0: by DATA.
    Replies are None (or missing at the end of `recipients`) where none came. dot: to the dot or to BDAT. dot_sent: the
    peer may have taken the message from here on.
    """

    mail: bytes
    rcpt: list[bytes]
    content: bytes | Stream
    chunk: int = 0
    sender: Reply | None = None
    recipients: list[Reply] = []
    data: Reply | None = None
    dot: Reply | None = None
    dot_sent: bool = False

    @property
    def commands(self) -> bytes:
        """All that goes in one write: BDAT waits for the answers, because no answer stops what follows it."""
        return _lines(self.mail, *self.rcpt) if self.chunk else _lines(self.mail, *self.rcpt, b"DATA")

    def answered(self, replies: list[Reply]) -> None:
        """Take the replies to `commands`, as many as came."""
        count = len(self.rcpt)
        if replies:
            self.sender = replies[0]
            self.recipients = replies[1 : count + 1]
            self.data = replies[-1] if len(replies) == count + 2 else None

    @property
    def wanted(self) -> bool:
        """Whether the peer took the sender and a recipient."""
        if goes_on(MAIL, self.sender):
            for answer in self.recipients:  # a generator costs more, and this runs for every message
                if goes_on(RCPT, answer):
                    return True
        return False

    @property
    def unknown(self) -> bool:
        """Whether the chunk went to a peer that does not know BDAT, though it offered CHUNKING."""
        answer = self.dot if self.dot_sent else self.data
        return answer is not None and 500 <= answer.code <= 504

    @property
    def over(self) -> bool:
        """Whether the answer to a recipient ended the session (421, or what is no answer to RCPT)."""
        for answer in self.recipients:  # noqa: SIM110  # as above
            if _ends(answer):
                return True
        return False


class Connection:
    """An open session. `usable` is False from the moment it is lost, desynchronised or closed; it never comes back."""

    def __init__(self, protocol: PipeliningProtocol, host: Host, address: str, timeouts: Timeouts, now: float) -> None:
        self.host = host
        self.address = address
        self.label = label(host, address)
        self.opened = now
        self.transactions = 0
        self.batch = RECIPIENTS
        """Recipients this peer takes at once: lowered when it says 452."""
        self.limit = MESSAGES
        """Transactions after which it is closed: lowered to what the peer took when it takes no more."""
        self.chunking = False
        """Whether bodies go by BDAT."""
        self.extensions: dict[str, str] = {}
        self._protocol = protocol
        self._timeouts = timeouts

    @property
    def usable(self) -> bool:
        """Whether another command may be sent."""
        return not self._protocol.failure

    def close(self) -> None:
        """Say QUIT if possible and close. Returns at once; the peer has two seconds to answer."""
        self._protocol.quit(self._timeouts.quit)

    def abort(self, why: str) -> None:
        """Close without a word."""
        self._protocol.fail(why)

    async def greet(self, hostname: str) -> Outcome | None:
        """Wait for the greeting, say EHLO; an outcome when the session does not come about."""
        answer = next(iter(await self._protocol.answers(self._timeouts.banner)), None)
        if not goes_on(GREETING, answer):
            return self.outcome(GREETING, answer)
        return await self.hello(hostname)

    async def hello(self, hostname: str) -> Outcome | None:
        """EHLO, and HELO where that is not known (RFC 5321 §3.2)."""
        name = hostname.encode("ascii")
        answer = await self.command(b"EHLO " + name, self._timeouts.ehlo)
        if goes_on(EHLO, answer):
            self.extensions, mechanisms = parse_esmtp_extensions(answer.text if answer else "")
            if mechanisms:
                # Some say it twice, "AUTH=" for clients older than RFC 2554, and not the same.
                self.extensions["auth"] = " ".join(mechanisms)
            return None
        if answer is not None and answer.code >= 500:
            answer = await self.command(b"HELO " + name, self._timeouts.ehlo)
        return None if goes_on(EHLO, answer) else self.outcome(EHLO, answer)

    async def secure(self, context: ssl.SSLContext, hostname: str) -> Outcome | None:
        """STARTTLS, handshake, EHLO again (RFC 3207 §4.2); an outcome when that failed."""
        answer = await self.command(b"STARTTLS", self._timeouts.starttls)
        if answer is None:
            return self.outcome(STARTTLS, None)
        if not goes_on(STARTTLS, answer):
            return self.insecure(reply.tls_missing(self.label, f"STARTTLS was answered {answer}"))
        return await self.handshake(context) or await self.hello(hostname)

    async def handshake(self, context: ssl.SSLContext) -> Outcome | None:
        """TLS from the next octet on; an outcome when it failed. What was learnt in clear is forgotten."""
        self.extensions = {}
        why = await self._protocol.upgrade(context, self.host.name, self._timeouts.starttls)
        return self.insecure(reply.tls_failed(self.label, why)) if why else None

    def insecure(self, answer: Reply) -> Outcome:
        """What the table makes of a session without the TLS it should have."""
        verdict = ruling(STARTTLS, answer)
        return Outcome(verdict.verdict, verdict.scope, reply.shortened(answer), self.label)

    async def command(self, line: bytes, silence: float) -> Reply | None:
        """Say one line, without its CRLF; the answer, None when none came. ValueError: a control character in it."""
        return next(iter(await self._protocol.exchange(_lines(line), 1, silence)), None)

    def agree(self, messages: int, *, chunking: bool) -> None:
        """Hold to what the site says, and to what the peer said in its last answer to EHLO (RFC 9422)."""
        self.chunking = chunking and "chunking" in self.extensions
        self.limit = messages
        if said := self.extensions.get("limits"):
            limits = parse_limits(said)
            self.limit = min(messages, limits.mails or messages)
            self.batch = min(RECIPIENTS, limits.recipients or RECIPIENTS)

    async def transact(self, transaction: Transaction) -> None:
        """Fill in the transaction's replies. Afterwards the connection is ready for the next one, or not usable."""
        self.transactions += 1
        if "pipelining" in self.extensions:
            # RFC 2920 §3.1: MAIL, RCPT and DATA in one write.
            replies = len(transaction.rcpt) + (1 if transaction.chunk else 2)
            transaction.answered(await self._protocol.exchange(transaction.commands, replies, self._timeouts.rcpt))
        else:
            await self._envelope_in_turn(transaction)
        if transaction.over:
            # Even if the peer talks on: those it took go to the next host too, and must not have the message twice.
            self.abort("ended the session at RCPT")
        elif (transaction.wanted if transaction.chunk else goes_on(DATA, transaction.data)):
            await self._content(transaction)
        if (transaction.dot is None or (transaction.chunk and transaction.unknown)) and self.usable:
            # Where BDAT was unknown, the first answer is to the body's first line, which is no command (a trace field):
            # RSET then seems to be refused, and the connection ends before anything in the body is taken for an answer.
            await self._reset()

    def outcome(self, stage: Stage, answer: Reply | None) -> Outcome:
        """What the table makes of an answer here, or of none; the reply as it is kept."""
        verdict = ruling(stage, answer)
        if answer is None:
            answer = reply.interrupted(self.label, self._protocol.failure, stage.label)
        return Outcome(verdict.verdict, verdict.scope, reply.shortened(answer), self.label, verdict.uncertain)

    async def _envelope_in_turn(self, transaction: Transaction) -> None:
        """One command at a time, as far as the answers go on."""
        transaction.sender = await self.command(transaction.mail, self._timeouts.mail)
        if not goes_on(MAIL, transaction.sender):
            return
        for command in transaction.rcpt:
            answer = await self.command(command, self._timeouts.rcpt)
            if answer is None:
                return
            transaction.recipients.append(answer)
            if _ends(answer):
                return
        if transaction.wanted and not transaction.chunk:
            transaction.data = await self.command(b"DATA", self._timeouts.data)

    async def _content(self, transaction: Transaction) -> None:
        """What follows 354: the body and the dot, or the dot alone where no recipient was taken. Or BDAT and its chunk.

        The last octets, the dot's or the chunk's, make the message the peer's: not before all others are on their way.
        """
        protocol = self._protocol
        if not transaction.wanted:
            if goes_on(MAIL, transaction.sender):
                # RFC 2920 §3.1: 354 though no recipient was taken; the server must refuse an empty message.
                await self.command(b".", self._timeouts.dot)
            else:
                self.abort("took DATA without a sender")
            return
        protocol.expect(1)
        content, end = transaction.content, _DOT
        if transaction.chunk:
            content, end = self._opened(transaction), _LAST
        if isinstance(content, bytes) and len(content) <= BLOCK:
            transaction.dot_sent = self.usable
            protocol.send(content + end)
        elif await self._sent(content):
            transaction.dot_sent = True
            protocol.send(end)
        transaction.dot = next(iter(await protocol.answers(self._timeouts.dot)), None)
        if not transaction.dot_sent:
            self._answered_early(transaction)

    def _opened(self, transaction: Transaction) -> bytes | Stream:
        """The content with BDAT before it, or, of a stream, already sent (RFC 3030 §2)."""
        command = b"BDAT %d LAST\r\n" % transaction.chunk
        if isinstance(transaction.content, bytes):
            return command + transaction.content
        self._protocol.send(command)
        return transaction.content

    async def _sent(self, content: bytes | Stream) -> bool:
        """Whether all of it is on its way, and the peer still waits for the end. BodyError: it cannot be sent."""
        if isinstance(content, bytes):
            return await self._protocol.send_blocks(content, self._timeouts.block)
        while part := await content.next():
            if not await self._protocol.send_blocks(part, self._timeouts.block):
                return False
        return True

    def _answered_early(self, transaction: Transaction) -> None:
        """The peer spoke before the end: a refusal counts, anything else is out of step. The session ends."""
        answer, transaction.dot = transaction.dot, None
        transaction.data = answer if answer is not None and answer.code >= 400 else None
        self.abort("answered before the end of the message")

    async def _reset(self) -> None:
        """RSET, so that nothing of an unfinished transaction is left (RFC 5321 §4.1.1.5)."""
        if not goes_on(MAIL, await self.command(b"RSET", self._timeouts.rset)):
            self.abort("RSET was not answered 250")


def label(host: Host, address: str) -> str:
    """How a host is named in logs, records and notifications."""
    return f"{host.name}[{address}]:{host.port}"


def _ends(answer: Reply) -> bool:
    return not goes_on(RCPT, answer) and ruling(RCPT, answer).step is Step.NEXT_HOST


def _lines(*commands: bytes) -> bytes:
    """The commands, each with its CRLF; ValueError rather than a further one smuggled inside one of them."""
    lines = b"\r\n".join((*commands, b""))
    if len(lines) - len(lines.translate(None, _CONTROLS)) != 2 * len(commands):
        raise ValueError("control character in a command")
    return lines
