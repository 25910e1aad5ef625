"""The command loop, and the commands about the session itself: greeting, TLS, authentication, and those that do little.

A verb is a method `smtp_VERB` that returns its reply; the loop says, counts and logs it. Mail itself is `session`'s.
"""

# A verb here takes bytes and returns its reply, where aiosmtpd's takes text and writes.
# mypy: disable-error-code="override"

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from relayd import log, metrics
from relayd.auth.authenticator import Verdict
from relayd.auth.mechanisms import MECHANISMS, Credentials, Exchange, MechanismError, decoded, decoded_initial, encoded
from relayd.inbound.connection import Connection
from relayd.inbound.terms import Terms
from relayd.inbound.wire import MAX_LINE
from relayd.smtp import reply
from relayd.smtp.reply import Reply

MAX_COMMAND = 2048
"""Octets of a command other than AUTH. RFC 5321 §4.5.3.1.4 says 512, and each extension adds to that."""

COMMANDS_WITHOUT_MAIL = 100
"""Commands other than RCPT and DATA between two accepted messages; a client that needs more only keeps us busy."""

_HTTP = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PRI", "PUT", "TRACE"})
_ALONE = frozenset({"BDAT", "DATA", "EHLO", "HELO", "STARTTLS"})
_HELLO_NAME = re.compile(rb"[!-~]{1,255}")

_REFUSALS = {
    Verdict.REFUSED: reply.CREDENTIALS_INVALID,
    Verdict.LIMITED_ACCOUNT: reply.TOO_MANY_FAILURES_OF_ACCOUNT,
    Verdict.BUSY: reply.AUTHENTICATION_BUSY,
}

Verb = Callable[[bytes], Awaitable[Reply | None]]


class Dialog(Connection):
    """Reads commands, dispatches them, answers.

    What is counted as a rejected message (metric `relayd_messages_rejected_total`): a refused MAIL, a refused RCPT,
    a refused DATA or end of data, each once; not 503, which only follows from another refusal.
    """

    def __init__(self, terms: Terms, client: str) -> None:
        super().__init__(terms, client)
        self.account = ""
        self.commands = 0
        self._errors = 0

    async def run(self) -> None:
        """The session, from the greeting to the end of the connection."""
        if self.unread():
            self.end(reply.TALKED_TOO_EARLY)  # RFC 5321 §4.3.1
        else:
            self.say(Reply(220, "", f"{self.terms.hostname} ESMTP relayd"))
        while (line := await self.line()) is not None:
            await self._answer(line)
        await self.close()

    async def _answer(self, line: bytes) -> None:
        verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
        name = verb.upper().decode("latin-1")
        method: Verb | None = self._smtp_methods.get(name)
        answer = self._fault(name, line) or await self._executed(name, method, argument.strip(b" "))
        if answer is None:
            return
        if answer.code >= 400:
            self._refused(name if method else "?", answer)
        if not self.ending:
            self.say(answer)
        if self._errors >= self.terms.limits.errors_per_session:
            self.end(reply.TOO_MANY_ERRORS)

    def _fault(self, name: str, line: bytes) -> Reply | None:
        """Why a line is not executed at all."""
        if len(line) > (MAX_LINE if name == "AUTH" else MAX_COMMAND):
            return reply.LINE_TOO_LONG
        if not line.endswith(b"\r\n"):  # RFC 5321 §2.3.8: a bare LF ends nothing, so this was no command
            return reply.BARE_LF
        if b"\r" in line[:-2] or b"\0" in line:
            return reply.BAD_OCTET
        if name in _HTTP:
            return self.end(reply.NOT_HTTP)
        # RFC 2920 §3.1: nothing is pipelined before EHLO has offered it, nor behind these. What stands there was
        # smuggled in front of TLS (RFC 3207 §6), or is a message sent before 354: neither commands nor data.
        if self.unread() and name != "QUIT" and (name in _ALONE or not self.session.extended_smtp):
            return self.end(reply.TALKED_TOO_EARLY)
        self.commands += name not in ("RCPT", "DATA")
        return self.end(reply.TOO_MANY_COMMANDS) if self.commands > COMMANDS_WITHOUT_MAIL else None

    async def _executed(self, name: str, method: Verb | None, argument: bytes) -> Reply | None:
        if method is None:
            return reply.NOT_RECOGNIZED
        try:
            return await method(argument)
        except Exception:  # noqa: BLE001  # whatever it is
            # A bug must not cost the client its session, nor the message: it keeps it and tries again.
            log.bug("inbound session", client=self.client, verb=name)
            metrics.bugs.inc()
            return reply.UNEXPECTED

    def _refused(self, name: str, answer: Reply) -> None:
        log.rejected(self.client, self.account, name, answer)
        if name in ("MAIL", "RCPT", "DATA") and answer.code != 503:
            metrics.messages_rejected.labels(str(answer.code)).inc()
        self._errors += answer.code >= 500

    def reset(self) -> None:
        """Forget the mail transaction; here there is none yet."""

    # --- greeting -----------------------------------------------------------------------------------------------------

    async def smtp_EHLO(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.1. Its replies have no enhanced code (RFC 2034 §4)."""
        return self._greeted(argument, extended=True) or Reply(250, "", self.terms.hello(secure=self.tls is not None))

    async def smtp_HELO(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.1."""
        return self._greeted(argument, extended=False) or Reply(250, "", self.terms.hostname)

    def _greeted(self, argument: bytes, *, extended: bool) -> Reply | None:
        if not _HELLO_NAME.fullmatch(argument):
            return Reply(501, "", "Syntax: EHLO hostname")
        self.reset()
        self.session.host_name = argument.decode("ascii")
        self.session.extended_smtp = extended
        return None

    async def smtp_STARTTLS(self, argument: bytes) -> Reply | None:
        """RFC 3207."""
        context = self.terms.tls_context
        if context is None:
            return reply.NOT_IMPLEMENTED
        if self.tls is not None:
            return reply.ALREADY_UNDER_TLS
        if argument:
            return reply.syntax("STARTTLS")
        if not self.session.host_name:
            return reply.HELLO_FIRST
        self.reset()
        await self.start_tls(context)
        return None

    # --- authentication -----------------------------------------------------------------------------------------------

    async def smtp_AUTH(self, argument: bytes) -> Reply:
        """RFC 4954 §4."""
        mechanism, _, initial = argument.partition(b" ")
        if refusal := self._no_authentication(mechanism):
            return refusal
        try:
            credentials = await _exchanged(self, MECHANISMS[mechanism.upper()](), initial.strip(b" "))
        except MechanismError:
            return reply.BAD_RESPONSE
        if isinstance(credentials, Reply):
            return credentials
        return await self._checked(credentials, mechanism.decode("ascii").upper())

    def _no_authentication(self, mechanism: bytes) -> Reply | None:
        """Why there is no AUTH now; RFC 4954 §4 for each."""
        if not self.terms.submission:
            return reply.NOT_IMPLEMENTED
        if not self.session.extended_smtp:
            return reply.HELLO_FIRST
        if self.tls is None:
            return reply.ENCRYPTION_REQUIRED
        if self.account:
            return reply.ALREADY_AUTHENTICATED
        if self.in_transaction():
            return reply.NOT_IN_TRANSACTION
        if not mechanism:
            return reply.syntax("AUTH mechanism [initial-response]")
        return None if mechanism.upper() in MECHANISMS else reply.UNKNOWN_MECHANISM

    async def _checked(self, credentials: Credentials, mechanism: str) -> Reply:
        user = credentials.user
        if credentials.identity not in ("", user):
            # RFC 4616 §2: acting as somebody else is granted to nobody.
            return reply.CREDENTIALS_INVALID
        verdict = await self.terms.authenticator.check(user, credentials.password, self.client)
        if verdict is Verdict.ACCEPTED:
            self.account = f"user:{user}"
            self.session.authenticated = True
            log.authenticated(self.client, user, mechanism)
            return reply.AUTHENTICATED
        log.authentication_failed(self.client, user, mechanism, limited=verdict is not Verdict.REFUSED)
        if verdict is Verdict.LIMITED_CLIENT:
            return self.end(reply.TOO_MANY_FAILURES)
        return _REFUSALS[verdict]

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def smtp_RSET(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.5."""
        if argument:
            return reply.syntax("RSET")
        self.reset()
        return reply.OK

    async def smtp_NOOP(self, _argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.9."""
        return reply.OK

    async def smtp_QUIT(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.10."""
        return reply.syntax("QUIT") if argument else self.end(reply.BYE)

    async def smtp_VRFY(self, argument: bytes) -> Reply:
        """RFC 5321 §3.5.3: neither yes nor no, which would tell spammers."""
        return reply.CANNOT_VERIFY if argument else reply.syntax("VRFY address")

    async def smtp_EXPN(self, _argument: bytes) -> Reply:
        """RFC 5321 §3.5.2: there are no lists to expand."""
        return reply.NOT_IMPLEMENTED

    async def smtp_HELP(self, _argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.8."""
        return Reply(214, "2.0.0", "Commands: " + " ".join(sorted(self._smtp_methods)))

    smtp_BDAT = smtp_EXPN  # noqa: N815  # RFC 3030, not offered


async def _exchanged(connection: Connection, exchange: Exchange, initial: bytes) -> Credentials | Reply:
    """Carry challenges and responses until the mechanism has what it wants, or the client stops (RFC 4954 §4)."""
    challenge = next(exchange)
    try:
        if initial:
            challenge = exchange.send(decoded_initial(initial))
        while True:
            connection.say(Reply(334, "", encoded(challenge)))
            line = await connection.line()
            if line is None or line == b"*\r\n":
                return reply.AUTHENTICATION_ABORTED
            if len(line) > MAX_LINE:
                return reply.RESPONSE_TOO_LONG
            challenge = exchange.send(decoded(line.removesuffix(b"\r\n")))
    except StopIteration as done:
        credentials: Credentials = done.value
        return credentials
