"""The command loop: a line's way to its reply, and what a session's coroutine waits for.

A verb is a method `smtp_VERB` that returns its reply, to be said, counted and logged here, or None when the reply comes
later: `answer` says it then. Knows what no line may be, and no verb: those are `dialog`'s and `session`'s.
"""

from __future__ import annotations

from collections.abc import Coroutine

from relayd import log, metrics
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
_MAIL = frozenset({"MAIL", "RCPT", "DATA"})
_MAIL_GOES_ON = frozenset({"RCPT", "DATA"})

_NUL, _CR = b"\0\r"  # as numbers: looking for those costs a tenth of looking for octets


class Commands(Connection):
    """Reads commands, dispatches them, answers.

    What is counted as a rejected message (metric `relayd_messages_rejected_total`): a refused MAIL, a refused RCPT,
    a refused DATA or end of data, each once; not 503, which only follows from another refusal.
    """

    def __init__(self, terms: Terms, client: str) -> None:
        super().__init__(terms, client)
        self.account = ""
        self.commands = 0
        self._verb = ""
        self._errors = 0
        self._work: Coroutine[None, None, Reply | None] | None = None

    async def run(self) -> None:
        """The session, from the greeting to the end of the connection: lines execute themselves, this waits for them.

        What a command has to await is awaited here, and nothing ends before it has.
        """
        if self.unread():
            self.end(reply.TALKED_TOO_EARLY)  # RFC 5321 §4.3.1
        else:
            self.say(Reply(220, "", f"{self.terms.hostname} ESMTP relayd"))
        self.done_waiting()
        try:
            while self.busy or not self.over():
                if self._work is None:
                    await self.wait()
                else:
                    work, self._work = self._work, None
                    self.answer(await self._contained(work))
                    self.done_waiting()
        finally:
            if self._work is not None:
                self._work.close()  # cut before it began
            self.reset()
        await self.close()

    def execute(self, line: bytes) -> None:
        """One command, from its line to its reply."""
        verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
        name = verb.upper().decode("latin-1")
        method = self.verbs.get(name)
        self._verb = name if method else "?"
        try:
            answer = self._fault(name, line) or (method(self, argument.strip(b" ")) if method else reply.NOT_RECOGNIZED)
        except Exception:  # noqa: BLE001  # whatever it is
            answer = self.unexpected()
        self.answer(answer)

    def answer(self, answer: Reply | None) -> None:
        """Say the reply to the command that was executed last, if there is one yet."""
        if answer is None:
            return
        if answer.code >= 400:
            self._refused(answer)
        if not self.ending:
            self.say(answer)
        if self._errors >= self.terms.limits.errors_per_session:
            self.end(reply.TOO_MANY_ERRORS)

    def later(self, work: Coroutine[None, None, Reply | None]) -> None:
        """Let the session's coroutine do what has to wait; its reply follows."""
        self.hold()
        self._work = work

    def unexpected(self) -> Reply:
        """In an exception's handler: a bug must not cost the client its session, nor the message, which it keeps."""
        log.bug("inbound session", client=self.client, verb=self._verb)
        metrics.bugs.inc()
        return reply.UNEXPECTED

    async def _contained(self, work: Coroutine[None, None, Reply | None]) -> Reply | None:
        try:
            return await work
        except Exception:  # noqa: BLE001  # whatever it is
            return self.unexpected()

    def _fault(self, name: str, line: bytes) -> Reply | None:
        """Why a line is not executed at all."""
        if len(line) > (MAX_LINE if name == "AUTH" else MAX_COMMAND):
            return reply.LINE_TOO_LONG
        if line[-2:] != b"\r\n":  # RFC 5321 §2.3.8: a bare LF ends nothing, so this was no command
            return reply.BARE_LF
        if _CR in line[:-2] or _NUL in line:
            return reply.BAD_OCTET
        if name in _HTTP:
            return self.end(reply.NOT_HTTP)
        # RFC 2920 §3.1: nothing is pipelined before EHLO has offered it, nor behind these. What stands there was
        # smuggled in front of TLS (RFC 3207 §6), or is a message sent before 354: neither commands nor data.
        if self.unread() and name != "QUIT" and (name in _ALONE or not self.session.extended_smtp):
            return self.end(reply.TALKED_TOO_EARLY)
        self.commands += name not in _MAIL_GOES_ON
        return self.end(reply.TOO_MANY_COMMANDS) if self.commands > COMMANDS_WITHOUT_MAIL else None

    def _refused(self, answer: Reply) -> None:
        log.rejected(self.client, self.account, self._verb, answer)
        if self._verb in _MAIL and answer.code != 503:
            metrics.messages_rejected.labels(str(answer.code)).inc()
        self._errors += answer.code >= 500

    def reset(self) -> None:
        """Forget what the session has begun."""
        raise NotImplementedError
