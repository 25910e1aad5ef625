"""The commands about the session itself: greeting, TLS, authentication, and those that do little. Mail is `session`'s.

Each verb returns its reply to `commands`, which says it; what has to wait is given to `later`.
"""

# A verb here takes bytes and returns its reply, where aiosmtpd's takes text and writes.
# mypy: disable-error-code="override"

from __future__ import annotations

import re

from relayd import log
from relayd.auth.authenticator import Verdict
from relayd.auth.mechanisms import MECHANISMS, Credentials, Exchange, MechanismError, decoded, decoded_initial, encoded
from relayd.inbound.commands import Commands
from relayd.inbound.connection import Connection
from relayd.inbound.wire import MAX_LINE
from relayd.smtp import reply
from relayd.smtp.reply import Reply

_HELLO_NAME = re.compile(rb"[!-~]{1,255}")

_REFUSALS = {
    Verdict.REFUSED: reply.CREDENTIALS_INVALID,
    Verdict.LIMITED_ACCOUNT: reply.TOO_MANY_FAILURES_OF_ACCOUNT,
    Verdict.BUSY: reply.AUTHENTICATION_BUSY,
}


class Dialog(Commands):
    """What a client says about itself."""

    # --- greeting -----------------------------------------------------------------------------------------------------

    def smtp_EHLO(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.1. Its replies have no enhanced code (RFC 2034 §4)."""
        return self._greeted(argument, extended=True) or Reply(250, "", self.terms.hello(secure=self.tls is not None))

    def smtp_HELO(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.1."""
        return self._greeted(argument, extended=False) or Reply(250, "", self.terms.hostname)

    def _greeted(self, argument: bytes, *, extended: bool) -> Reply | None:
        if not _HELLO_NAME.fullmatch(argument):
            return Reply(501, "", "Syntax: EHLO hostname")
        self.reset()
        self.session.host_name = argument.decode("ascii")
        self.session.extended_smtp = extended
        return None

    def smtp_STARTTLS(self, argument: bytes) -> Reply | None:
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
        self.later(self.start_tls(context))
        return None

    # --- authentication -----------------------------------------------------------------------------------------------

    def smtp_AUTH(self, argument: bytes) -> Reply | None:
        """RFC 4954 §4."""
        mechanism, _, initial = argument.partition(b" ")
        if refusal := self._no_authentication(mechanism):
            return refusal
        self.later(self._authentication(mechanism.upper(), initial.strip(b" ")))
        return None

    async def _authentication(self, mechanism: bytes, initial: bytes) -> Reply:
        try:
            credentials = await _exchanged(self, MECHANISMS[mechanism](), initial)
        except MechanismError:
            return reply.BAD_RESPONSE
        if isinstance(credentials, Reply):
            return credentials
        return await self._checked(credentials, mechanism.decode("ascii"))

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

    def smtp_RSET(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.5."""
        if argument:
            return reply.syntax("RSET")
        self.reset()
        return reply.OK

    def smtp_NOOP(self, _argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.9."""
        return reply.OK

    def smtp_QUIT(self, argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.10."""
        return reply.syntax("QUIT") if argument else self.end(reply.BYE)

    def smtp_VRFY(self, argument: bytes) -> Reply:
        """RFC 5321 §3.5.3: neither yes nor no, which would tell spammers."""
        return reply.CANNOT_VERIFY if argument else reply.syntax("VRFY address")

    def smtp_EXPN(self, _argument: bytes) -> Reply:
        """RFC 5321 §3.5.2: there are no lists to expand."""
        return reply.NOT_IMPLEMENTED

    def smtp_HELP(self, _argument: bytes) -> Reply:
        """RFC 5321 §4.1.1.8."""
        return Reply(214, "2.0.0", "Commands: " + " ".join(sorted(self.verbs)))

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
