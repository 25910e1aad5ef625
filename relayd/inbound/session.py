"""The mail transaction of a session: MAIL, RCPT, DATA, and the hand-over of a message to the queue.

Made by `listener` for each connection. The only place of inbound that answers 250 to a message, after it is durable.
"""

# A verb here takes bytes and returns its reply, where aiosmtpd's takes text and writes.
# mypy: disable-error-code="override"

from __future__ import annotations

import asyncio
import ssl
from functools import partial

from relayd import clock, log, metrics
from relayd.inbound import transaction
from relayd.inbound.dialog import Dialog
from relayd.inbound.filing import Filing, not_written
from relayd.inbound.incoming import Incoming
from relayd.inbound.terms import Terms
from relayd.inbound.transaction import Transaction
from relayd.message import header, received, submission
from relayd.message.envelope import Envelope
from relayd.smtp import reply
from relayd.smtp.reply import Reply
from relayd.spool.bodies import Writing
from relayd.spool.records import Filed
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
        if self.incoming is not None:
            # The session is over in the middle of a message.
            self.incoming.give_back()
            self.incoming = None

    def in_transaction(self) -> bool:
        """Between MAIL and the end of data."""
        return self._transaction is not None

    def smtp_MAIL(self, argument: bytes) -> Reply:
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

    def smtp_RCPT(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.3."""
        if self._needs_authentication():
            return reply.AUTHENTICATION_REQUIRED
        if self._transaction is None:
            return reply.MAIL_FIRST
        limits = self.terms.limits
        if not self._transaction.room(limits):
            # RFC 5321 §4.5.3.1.10
            return self._too_many(reply.TOO_MANY_RECIPIENTS)
        recipient = transaction.rcpt(argument, self._transaction)
        if isinstance(recipient, Reply):
            return recipient
        if not self.account:
            return reply.RELAYING_DENIED
        destination = self.terms.policy.destination(recipient)
        if isinstance(destination, Reply):
            return destination
        if not self.terms.quotas.take(self.account):
            return self._too_many(reply.QUOTA_USED_UP)
        self._transaction.add(destination)
        return reply.RECIPIENT_OK

    def _too_many(self, refusal: Reply) -> Reply:
        """Refuse a recipient; a client that goes on and on is sent away."""
        assert self._transaction is not None, "RCPT without MAIL"
        endless = self._transaction.said > self.terms.limits.recipients + transaction.OVERSHOOT
        return self.end(reply.TOO_MANY_ERRORS) if endless else refusal

    def smtp_DATA(self, argument: bytes) -> Reply | None:
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
        self.resume_reading()  # lines that filled the buffer may have paused it, and none are taken off it now
        self.incoming = Incoming(terms.limits, terms.timing, terms.queue.memory, self.loop.time(), self._filing)
        return reply.SEND_DATA

    def received(self, incoming: Incoming) -> None:
        """The end of data: take the message over, or say why not."""
        try:
            answer = self._taken_over(incoming)
        except Exception:  # noqa: BLE001  # whatever it is
            answer = self.unexpected()
        incoming.give_back()
        if answer is not None:
            self._concluded(answer)

    def _concluded(self, answer: Reply) -> None:
        self._transaction = None
        self.answer(answer)
        self.done_waiting()

    def _needs_authentication(self) -> bool:
        return self.terms.submission and not self.account

    def _short_of_something(self, size: int) -> Reply | None:
        """Why no message can be taken now. Memory is not set aside: a client that declares much would starve others."""
        queue = self.terms.queue
        if queue.trouble:
            return reply.NOT_STORED
        octets = min(max(size, MINIMUM_MEMORY), self.terms.limits.inline_body)  # the rest goes to its file
        if not queue.space.enough() or queue.memory.used + octets > queue.memory.limit:
            return reply.NO_SPACE
        return None

    def _taken_over(self, incoming: Incoming) -> Reply | None:
        """Hand the message to the queue; the reply is `_stored`'s then. Or why it is not taken."""
        begun = self._transaction
        assert begun is not None, "DATA without MAIL"
        if incoming.endless:
            return self.end(incoming.overflow())
        body = incoming.body(normalize_lf=self.terms.normalize_lf)
        if isinstance(body, Reply):
            return body
        if isinstance(body, Writing):
            self.hold()
            body.finish().add_done_callback(partial(self._filed, begun, body.id))
            return None
        at = clock.wall()
        queue_id = self.terms.queue.new_id()
        text = self._completed(body, begun, queue_id, at)
        if isinstance(text, Reply):
            return text
        if not incoming.trade(len(text)):
            return reply.NO_SPACE
        return self._commit(begun, self._envelope(begun, queue_id, at, len(text)), text)

    def _commit(self, begun: Transaction, envelope: Envelope, body: bytes | Filed) -> Reply | None:
        try:
            stored = self.terms.queue.accept(envelope, body)
        except StoreError:
            return reply.NOT_STORED
        self.hold()
        stored.add_done_callback(partial(self._stored, envelope, self._protocol(begun), clock.monotonic()))
        return None

    def _filing(self) -> Filing:
        """A message turns out to be large."""
        return Filing(self.terms, self._file)

    def _file(self, first: bytes) -> Writing | Reply:
        """Begin a large message's file with all that its header is in; or why not."""
        begun = self._transaction
        assert begun is not None, "DATA without MAIL"
        try:
            queue_id = self.terms.queue.new_id()
            text = self._completed(first, begun, queue_id, clock.wall())
            if isinstance(text, Reply):
                return text
            writing = self.terms.queue.file(queue_id)
            writing.changed = self.written
            writing.write(text)
        except Exception:  # noqa: BLE001  # whatever it is
            return self.unexpected()
        return writing

    def _filed(self, begun: Transaction, queue_id: str, finished: asyncio.Future[Filed]) -> None:
        """The file of a large message is durable, or it is gone. The client may be, too, as below."""
        answer: Reply | None
        try:
            if error := finished.exception():
                answer = not_written(error)
            else:
                filed = finished.result()
                answer = self._commit(begun, self._envelope(begun, queue_id, clock.wall(), filed.octets), filed)
        except Exception:  # noqa: BLE001  # whatever it is, nobody may wait for ever
            answer = self.unexpected()
        if answer is not None:
            self._concluded(answer)

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
            tls=_cipher(self.tls),
            queue_id=queue_id,
            recipient=next(iter(begun.recipients)) if len(begun.recipients) == 1 else None,
            priority=begun.priority,
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
            priority=begun.priority,
        )

    def _protocol(self, begun: Transaction) -> str:
        return received.keyword(
            extended=self.session.extended_smtp,
            tls=self.tls is not None,
            authenticated=self.terms.submission,
            utf8=begun.smtputf8,
        )

    def _stored(self, envelope: Envelope, protocol: str, since: float, stored: asyncio.Future[None]) -> None:
        """The message is durable, or it is not. That the client has gone meanwhile changes nothing (I6)."""
        if stored.exception() is not None:
            self._concluded(reply.NOT_STORED)
            return
        metrics.messages_accepted.inc()
        log.accepted(envelope, protocol=protocol, seconds=clock.monotonic() - since)
        self.commands = 0
        self._concluded(reply.queued(envelope.id))


def _cipher(tls: ssl.SSLObject | None) -> str:
    """TLS version and cipher suite, "" in clear."""
    suite = tls.cipher() if tls else None
    return f"{suite[1]} {suite[0]}" if suite else ""
