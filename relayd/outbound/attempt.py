"""The state of one attempt: whose answer is still missing, who has which outcome, and what holds for the rest.

Keeps one promise: when it ends, however it ends, every recipient of the entry has an outcome, and whoever may have been
given the message before its answer was lost is uncertain. `delivery` drives it over connections; no I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable

from relayd.message import dsn
from relayd.message.envelope import Envelope
from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.message.site import Terms
from relayd.outbound.classify import DATA, DOT, MAIL, RCPT, Stage, Step, goes_on, ruling
from relayd.outbound.connection import Connection, Transaction
from relayd.outbound.patterns import Category, category
from relayd.smtp import address, framing, reply
from relayd.smtp.reply import Reply
from relayd.spool.bodies import Reading, Stream

_TAKEN = (Verdict.DELIVERED, Scope.RECIPIENT)


class Attempt:
    """One entry on its way.

    left: recipients without outcome, in order. outcomes: of the others. uncertain: whether one of these is. trouble:
    what those left get when there is no further host. tried: addresses and ports asked. transactions: how many were
    begun. lost: sessions that got as far as MAIL and were lost.
    """

    def __init__(self, envelope: Envelope, recipients: Iterable[int], body: bytes | Reading) -> None:
        self.left = list(recipients)
        self.outcomes: dict[int, Outcome] = {}
        self.uncertain = False
        self.trouble: Outcome | None = None
        self.tried: set[tuple[str, int]] = set()
        self.transactions = 0
        self.lost = 0
        self._envelope = envelope
        self._body = body
        self._content: bytes | None = None
        self._batch: list[int] = []
        self._open: tuple[Connection, Transaction] | None = None

    def fit(self, connection: Connection, terms: Terms) -> None:
        """Settle those whose mail this peer says it cannot take."""
        limit = connection.extensions.get("size", "")
        # RFC 1870 §3: 0 or nothing means no fixed limit.
        if limit.isdecimal() and 0 < int(limit[:18]) < self._envelope.size:
            self._give(self.left, Outcome(Verdict.FAILED, Scope.MESSAGE, reply.TOO_LARGE_THERE, connection.label))
        if self._envelope.smtputf8 and "smtputf8" not in connection.extensions:
            # RFC 6531 §3.5: addresses and the header count; a body that is merely 8-bit goes as it is.
            needing = [recipient for recipient in self.left if self._needs_smtputf8(recipient)]
            self._give(needing, Outcome(Verdict.FAILED, Scope.MESSAGE, reply.NO_SMTPUTF8_THERE, connection.label))
        if terms.refuse_8bit and "8bitmime" not in connection.extensions and self._has_8bit():
            self._give(self.left, Outcome(Verdict.FAILED, Scope.MESSAGE, reply.NO_8BITMIME_THERE, connection.label))

    def begin(self, connection: Connection) -> Transaction:
        """The next transaction: the recipients left, as many as the peer takes. ValueError when the body is damaged."""
        self._batch = self.left[: connection.batch]
        self.transactions += 1
        recipients = self._envelope.recipients
        transaction = Transaction(
            self._mail(connection.extensions).encode(),
            [f"RCPT TO:<{recipients[recipient]}>".encode() for recipient in self._batch],
            self._unstuffed() if connection.chunking else self._stuffed(),
            self._octets() if connection.chunking else 0,
        )
        self._open = (connection, transaction)
        return transaction

    def judge(self) -> Stage | None:
        """Give each recipient of the transaction what the table says. The stage at which the session was lost, or None.

        Those whose session was lost before their answer stay in `left`, and `trouble` says why. So do those of whom the
        answer was not: the peer takes no more messages in this session, or none by BDAT; `connection` then knows.
        """
        if self._open is None:
            return None
        (connection, transaction), self._open = self._open, None
        if not goes_on(MAIL, transaction.sender):
            if connection.transactions > 1 and _has_had_its_messages(transaction.sender):
                connection.limit = connection.transactions - 1
                connection.close()
                return None
            return self._apply(connection, MAIL, transaction.sender, self.left)
        accepted, lost = self._judge_recipients(connection, transaction)
        if lost is not None or not accepted:
            return lost
        if transaction.chunk and transaction.unknown:
            connection.chunking = False
            return None
        if not transaction.dot_sent:
            answer = None if goes_on(DATA, transaction.data) else transaction.data
            return self._apply(connection, DATA, answer, accepted)
        if not goes_on(DOT, transaction.dot):
            return self._apply(connection, DOT, transaction.dot, accepted)
        assert transaction.dot is not None
        answer = reply.shortened(transaction.dot)
        self._give(accepted, Outcome(*_TAKEN, answer, connection.label))
        return None

    def end(self, outcome: Outcome) -> None:
        """The attempt is over: what is known of a transaction that was cut off counts, the rest get `outcome`."""
        self.judge()
        if self.left:
            self._give(self.left, outcome)

    def _judge_recipients(self, connection: Connection, transaction: Transaction) -> tuple[list[int], Stage | None]:
        accepted: list[int] = []
        taken = 0  # before the peer had enough; where it takes others behind, one mailbox was meant
        for position, recipient in enumerate(self._batch):
            answers = transaction.recipients
            answer = answers[position] if position < len(answers) else None
            if goes_on(RCPT, answer):
                accepted.append(recipient)
                taken = 0
            elif ruling(RCPT, answer).step is Step.NEW_TRANSACTION and accepted:
                taken = 0 if _is_full(answer) else len(accepted)
            elif (lost := self._apply(connection, RCPT, answer, [recipient])) is not None:
                return accepted, lost
        connection.batch = taken or connection.batch
        return accepted, None

    def _apply(self, connection: Connection, stage: Stage, answer: Reply | None, to: list[int]) -> Stage | None:
        """A reply that does not go on, for these recipients; the stage when it ended the session."""
        outcome = connection.outcome(stage, answer)
        match ruling(stage, answer).step:
            case Step.NEXT_HOST:
                self.trouble = outcome
                return stage
            case Step.SETTLE | Step.NEW_TRANSACTION:
                self._give(to, outcome)
                return stage if outcome.uncertain else None

    def _give(self, recipients: list[int], outcome: Outcome) -> None:
        self.uncertain = self.uncertain or outcome.uncertain
        for recipient in recipients:
            self.outcomes[recipient] = outcome
        self.left = [recipient for recipient in self.left if recipient not in self.outcomes]

    def _mail(self, extensions: dict[str, str]) -> str:
        envelope = self._envelope
        command = f"MAIL FROM:<{envelope.sender}>"
        if "size" in extensions:
            command += f" SIZE={envelope.size}"  # RFC 1870 §6.1
        if envelope.eightbit and "8bitmime" in extensions:
            command += " BODY=8BITMIME"  # RFC 6152 §3
        if envelope.smtputf8 and "smtputf8" in extensions:
            command += " SMTPUTF8"  # RFC 6531 §3.4
        if "mt-priority" in extensions:
            command += f" MT-PRIORITY={envelope.priority}"  # RFC 6710 §4.2
        return command

    def _needs_smtputf8(self, recipient: int) -> bool:
        envelope = self._envelope
        ascii_only = address.is_ascii(envelope.sender) and address.is_ascii(envelope.recipients[recipient])
        body = self._body
        header_ascii = body.ascii_header if isinstance(body, Reading) else dsn.header_of(body).isascii()
        return not (ascii_only and header_ascii)

    def _has_8bit(self) -> bool:
        """By its octets: some clients say BODY=8BITMIME of all their mail, and others of none."""
        body = self._body
        return not (body.ascii if isinstance(body, Reading) else body.isascii())

    def _stuffed(self) -> bytes | Stream:
        """The body as it goes out, made once. No stray CR or LF is in it: inbound and `journal` see to that."""
        if isinstance(self._body, Reading):
            return self._body.stream()  # checked as it was opened
        if self._content is None:
            self._content = framing.stuffed(_whole(self._body))
        return self._content

    def _octets(self) -> int:
        """Of the body as it is stored; 0, and it goes by DATA, when there is none."""
        return self._body.octets if isinstance(self._body, Reading) else len(self._body)

    def _unstuffed(self) -> bytes | Stream:
        """The body as it is stored, without its last octet."""
        if isinstance(self._body, Reading):
            return self._body.stream(stuffed=False)
        return _whole(self._body)[:-1]


def _whole(body: bytes) -> bytes:
    if body and not body.endswith(b"\r\n"):
        raise ValueError("a stored message does not end in CRLF")
    return body


def _is_full(answer: Reply | None) -> bool:
    """Whether 452 or 552 is about a mailbox, and not about how many recipients there are."""
    return answer is not None and category(RCPT, answer) is Category.MAILBOX_FULL


def _has_had_its_messages(answer: Reply | None) -> bool:
    """Whether a refused MAIL says that this session has had its messages, and the next one may have more."""
    return answer is not None and category(MAIL, answer) is Category.SESSION_LIMIT
