"""The mail transaction of a session: MAIL, RCPT, DATA, and the hand-over of a message to the queue.

Made by `listener` for each connection. The only place of inbound that answers 250 to a message, after it is durable.
"""

# A verb here takes bytes and returns its reply, where aiosmtpd's takes text and writes.
# mypy: disable-error-code="override"

from __future__ import annotations

from relayd import clock, log, metrics
from relayd.inbound import transaction
from relayd.inbound.dialog import Dialog
from relayd.inbound.incoming import Incoming
from relayd.inbound.terms import Terms
from relayd.inbound.transaction import Transaction
from relayd.message import header, received, submission
from relayd.message.envelope import Envelope
from relayd.smtp import reply
from relayd.smtp.reply import Reply
from relayd.spool.store import StoreError

MAX_HOPS = 100
"""Received fields of a message that is still going somewhere (RFC 5321 §6.3)."""

MINIMUM_MEMORY = 16384
"""Octets of the memory budget that must be free for a message of undeclared size to be begun."""


class Session(Dialog):
    """What a client does to send mail."""

    def __init__(self, terms: Terms, client: str) -> None:
        super().__init__(terms, client)
        self._transaction: Transaction | None = None
        if not terms.submission and (network := terms.policy.trusted_network(client)):
            self.account = f"net:{network}"

    def reset(self) -> None:
        """RFC 5321 §4.1.1.5."""
        self._transaction = None

    def in_transaction(self) -> bool:
        """Between MAIL and the end of data."""
        return self._transaction is not None

    async def smtp_MAIL(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.2."""
        if not self.session.host_name:
            return reply.HELLO_FIRST
        if self._needs_authentication():
            return reply.AUTHENTICATION_REQUIRED
        if self._transaction:
            return reply.MAIL_TWICE
        begun = transaction.mail(argument, extended=self.session.extended_smtp, limits=self.terms.limits)
        if isinstance(begun, Reply):
            return begun
        if refusal := self._short_of_something(begun.size):
            return refusal
        self._transaction = begun
        return reply.SENDER_OK

    async def smtp_RCPT(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.3."""
        if self._needs_authentication():
            return reply.AUTHENTICATION_REQUIRED
        if self._transaction is None:
            return reply.MAIL_FIRST
        limits = self.terms.limits
        if not self._transaction.room(limits):
            # RFC 5321 §4.5.3.1.10
            endless = self._transaction.said > limits.recipients + transaction.OVERSHOOT
            return self.end(reply.TOO_MANY_ERRORS) if endless else reply.TOO_MANY_RECIPIENTS
        recipient = transaction.rcpt(argument, self._transaction)
        if isinstance(recipient, Reply):
            return recipient
        if not self.account:
            return reply.RELAYING_DENIED
        destination = self.terms.policy.destination(recipient)
        if isinstance(destination, Reply):
            return destination
        self._transaction.add(destination)
        return reply.RECIPIENT_OK

    async def smtp_DATA(self, argument: bytes) -> Reply | None:
        """RFC 5321 §4.1.1.4."""
        if self._needs_authentication():
            return reply.AUTHENTICATION_REQUIRED
        if self._transaction is None:
            return reply.MAIL_FIRST
        if argument:
            return reply.syntax("DATA")
        if not self._transaction.recipients:
            return reply.NO_RECIPIENTS
        terms = self.terms
        incoming = Incoming(terms.limits, terms.timing, terms.queue.memory, self.loop.time())
        try:
            self.say(reply.SEND_DATA)
            if not await self.receive(incoming):
                return None
            return await self._taken_over(incoming, self._transaction)
        finally:
            incoming.give_back()
            self._transaction = None

    def _needs_authentication(self) -> bool:
        return self.terms.submission and not self.account

    def _short_of_something(self, size: int) -> Reply | None:
        """Why no message can be taken now. Memory is not set aside: a client that declares much would starve others."""
        queue = self.terms.queue
        if not queue.healthy:
            return reply.NOT_STORED
        octets = max(size, MINIMUM_MEMORY)
        if not queue.has_disk_space() or queue.memory.used + octets > queue.memory.limit:
            return reply.NO_SPACE
        return None

    async def _taken_over(self, incoming: Incoming, begun: Transaction) -> Reply:
        """Make the message durable, and the reply that says so."""
        if incoming.endless:
            return self.end(incoming.overflow())
        body = incoming.body(normalize_lf=self.terms.normalize_lf)
        if isinstance(body, Reply):
            return body
        at = clock.wall()
        queue_id = self.terms.queue.new_id()
        text = self._completed(body, begun, queue_id, at)
        if isinstance(text, Reply):
            return text
        if not incoming.trade(len(text)):
            return reply.NO_SPACE
        return await self._stored(self._envelope(begun, queue_id, at, len(text)), text, self._protocol(begun))

    def _completed(self, body: bytes, begun: Transaction, queue_id: str, at: float) -> bytes | Reply:
        """The message as it is stored: the trace field, what a submission lacked, and what the client sent."""
        terms = self.terms
        head = header.scanned(body, terms.limits.header_size)
        if head is None:
            return reply.HEADER_TOO_LARGE
        if head.count(b"received") > MAX_HOPS:
            return reply.TOO_MANY_HOPS
        if terms.submission:
            body = submission.completed(body, head, hostname=terms.hostname, queue_id=queue_id, at=at)
        trace = received.trace(
            helo=self.session.host_name or "",
            client=self.client,
            hostname=terms.hostname,
            protocol=self._protocol(begun),
            tls=self.cipher(),
            queue_id=queue_id,
            recipient=next(iter(begun.recipients)) if len(begun.recipients) == 1 else None,
            at=at,
        )
        return trace + body

    def _envelope(self, begun: Transaction, queue_id: str, at: float, size: int) -> Envelope:
        return Envelope(
            id=queue_id,
            sender=begun.sender,
            recipients=tuple(begun.recipients),
            account=self.account,
            accepted_at=at,
            size=size,
            smtputf8=begun.smtputf8,
            eightbit=begun.eightbit,
            client=self.client,
        )

    def _protocol(self, begun: Transaction) -> str:
        return received.keyword(
            extended=self.session.extended_smtp,
            tls=self.tls is not None,
            authenticated=self.terms.submission,
            utf8=begun.smtputf8,
        )

    async def _stored(self, envelope: Envelope, text: bytes, protocol: str) -> Reply:
        """Wait until the message is durable. Its memory is the queue's from here on, whatever happens."""
        since = clock.monotonic()
        try:
            await self.terms.queue.accept(envelope, text)
        except StoreError:
            return reply.NOT_STORED
        metrics.messages_accepted.inc()
        log.accepted(envelope, protocol=protocol, seconds=clock.monotonic() - since)
        self.commands = 0
        return reply.queued(envelope.id)
