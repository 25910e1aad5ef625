"""AUTH towards a next hop (RFC 4954): which mechanism, what is said, and a refusal that tells no secret.

Knows nothing of where a secret comes from (`credentials`) nor of what happens after a refusal (`connector`). PLAIN is
RFC 4616, LOGIN draft-murchison-sasl-login, XOAUTH2 what Google and Microsoft document under that name.
"""

from __future__ import annotations

import base64
import enum
import string
from collections.abc import Iterable

from relayd.message.outcome import Outcome
from relayd.outbound.classify import LOGIN, Step, goes_on, ruling
from relayd.outbound.connection import Connection
from relayd.outbound.credentials import Secret
from relayd.smtp import reply
from relayd.smtp.reply import Reply

MAX_COMMAND = 510
"""Octets of an AUTH command, without CRLF, that may hold the first response (RFC 4954 §4, RFC 5321 §4.5.3.1.4)."""

_GRAM = 8
"""Characters in a row, of a secret, that a peer's reply is not kept with."""

_MASK = "*"

_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
"""Without regard to case, and without changing the length as `casefold` does."""


class Mechanism(enum.Enum):
    """The SASL mechanisms there are, by the names they have on the wire."""

    PLAIN = "PLAIN"
    LOGIN = "LOGIN"
    XOAUTH2 = "XOAUTH2"


def choose(offered: str, wanted: str | None, secret: Secret) -> Mechanism | None:
    """The mechanism for a secret among those of an EHLO line ("PLAIN LOGIN"), None without one.

    wanted: the configured one. A token is shown by XOAUTH2 alone, never as if it were a password, nor the reverse.
    """
    usable = [Mechanism.XOAUTH2] if secret.token else [Mechanism.PLAIN, Mechanism.LOGIN]
    names = offered.upper().split()
    return next((one for one in usable if one.value in names and wanted in {None, one.value.lower()}), None)


async def login(
    connection: Connection, mechanism: Mechanism, username: str, secret: Secret, silence: float
) -> Outcome | None:
    """Show who we are; None when the peer agrees, else an outcome and the session is of no more use.

    silence: seconds for each answer.
    """
    text = secret.text.get_secret_value()
    responses = [base64.b64encode(response) for response in _responses(mechanism, username, text)]
    answer = await _exchange(connection, mechanism, responses, silence)
    if goes_on(LOGIN, answer):
        return None
    verdict = ruling(LOGIN, answer)
    said = connection.outcome(LOGIN, answer).reply
    hidden = [text, *(response.decode() for response in responses)]
    kept = Reply(said.code, said.enhanced, masked(said.text, hidden))
    return Outcome(verdict.verdict, verdict.scope, kept, connection.label, final=verdict.step is Step.SETTLE)


def login_missing(connection: Connection) -> Outcome:
    """What it means that the peer offers no mechanism for what we have."""
    verdict = ruling(LOGIN, answer := reply.login_missing(connection.label))
    return Outcome(verdict.verdict, verdict.scope, answer, connection.label, final=verdict.step is Step.SETTLE)


def masked(text: str, secrets: Iterable[str]) -> str:
    """A peer's text with every piece of a secret made unreadable, _GRAM characters or more: some repeat the command.

    O(len(text) + len(secrets)).
    """
    characters, folded = list(text), text.translate(_FOLD)
    for secret in secrets:
        length = min(_GRAM, len(secret))
        grams = {secret[at : at + length].translate(_FOLD) for at in range(len(secret) - length + 1)}
        for at in range(len(folded) - length + 1):
            if folded[at : at + length] in grams:
                characters[at : at + length] = _MASK * length
    return "".join(characters)


def _responses(mechanism: Mechanism, username: str, text: str) -> list[bytes]:
    match mechanism:
        case Mechanism.PLAIN:
            return [f"\0{username}\0{text}".encode()]
        case Mechanism.LOGIN:
            return [username.encode(), text.encode()]
        case Mechanism.XOAUTH2:
            return [f"user={username}\x01auth=Bearer {text}\x01\x01".encode()]


async def _exchange(
    connection: Connection, mechanism: Mechanism, responses: list[bytes], silence: float
) -> Reply | None:
    """AUTH and the responses, as far as the peer asks for them; its last answer."""
    command, waiting = b"AUTH " + mechanism.value.encode(), responses
    if mechanism is not Mechanism.LOGIN and len(command) + 1 + len(responses[0]) <= MAX_COMMAND:
        command, waiting = command + b" " + responses[0], responses[1:]
    # A challenge too many: with XOAUTH2 it tells of an error and wants an empty line; else cancel (RFC 4954 §4).
    last = b"" if mechanism is Mechanism.XOAUTH2 else b"*"
    answer = await connection.command(command, silence)
    for response in (*waiting, last):
        if answer is None or answer.code != 334:
            break
        answer = await connection.command(response, silence)
    return answer
