"""The demo's mail: varied messages to four kinds of destination, the same ones for the same seed.

Owns what is sent and to whom; knows nothing of how it travels. Each recipient is used once, so that a recipient alone
names one delivery in the ledger. Called by `demo`.
"""

from __future__ import annotations

import email.utils
import itertools
import random
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

import msgspec

ACCEPTING = "accepting.example"
GREYLISTING = "greylisting.example"
REFUSING = "refusing.example"
FAILOVER = "failover.example"
DESTINATIONS = (ACCEPTING, GREYLISTING, REFUSING, FAILOVER)
SENDERS = "senders.example"
"""Domain the mail comes from, and its notifications go back to."""

_MOST_RECIPIENTS = 20
_PROSE = (
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを 📮",
    "",
    "  indented, and with trailing blanks   ",
)
_DOTS = (".", "..", ". one dot and a blank", ".hidden", "...", "not.at.the.start", ".", "From here on, no dots.")


class Mail(msgspec.Struct, frozen=True):
    """One message as it is submitted. options: parameters of MAIL FROM."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    options: tuple[str, ...] = ()


def compose(count: int, seed: int) -> Iterator[Mail]:
    """`count` messages of five kinds in turn; every 25th has a recipient that needs SMTPUTF8 (RFC 6531)."""
    rolls = random.Random(seed)
    kinds = itertools.cycle((_plain, _alternative, _unicode, _attachment, _dotted))
    for number, kind in zip(range(count), kinds, strict=False):
        yield _mail(number, kind, rolls)


def _mail(number: int, kind: Callable[[random.Random], EmailMessage], rolls: random.Random) -> Mail:
    sender = f"app-{number:05}@{SENDERS}"
    recipients = _recipients(number, rolls)
    message = kind(rolls)
    message["From"] = f"Demo <{sender}>"
    message["To"] = "undisclosed-recipients:;"
    message["Subject"] = f"{kind.__name__.strip('_')} message {number}"
    message["Date"] = email.utils.formatdate()
    message["Message-ID"] = f"<{number}.{rolls.getrandbits(64):016x}@{SENDERS}>"
    international = not all(recipient.isascii() for recipient in recipients)
    content = message.as_bytes(policy=SMTPUTF8 if international else SMTP)
    return Mail(sender, recipients, content, _options(content, international=international))


def _options(content: bytes, *, international: bool) -> tuple[str, ...]:
    options = () if content.isascii() else ("BODY=8BITMIME",)
    return (*options, "SMTPUTF8") if international else options


def _recipients(number: int, rolls: random.Random) -> tuple[str, ...]:
    """1 to 20 distinct recipients, few more often than many, over all destinations."""
    count = min(int(rolls.paretovariate(0.9)), _MOST_RECIPIENTS)
    recipients = [f"user-{number:05}-{place:02}@{rolls.choice(DESTINATIONS)}" for place in range(count)]
    if number % 25 == 0:
        recipients[0] = f"üser-{number:05}@{rolls.choice((ACCEPTING, GREYLISTING, FAILOVER))}"
    return tuple(recipients)


def _plain(rolls: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("\n".join(rolls.choices(_PROSE[:1] + _PROSE[4:], k=rolls.randint(1, 60))) + "\n", cte="7bit")
    return message


def _alternative(rolls: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("The text for those who prefer text.\n")
    message.add_alternative("<p>The same in <b>HTML</b>.</p>\n" * rolls.randint(1, 40), subtype="html")
    message.set_boundary(f"=={rolls.getrandbits(64):016x}==")
    return message


def _unicode(rolls: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("\n".join(rolls.choices(_PROSE, k=rolls.randint(1, 60))) + "\n", cte="8bit")
    return message


def _attachment(rolls: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("See the attachment.\n")
    content = rolls.randbytes(rolls.randint(1, 20_000))
    message.add_attachment(content, maintype="application", subtype="octet-stream", filename="Übersicht.bin")
    message.set_boundary(f"=={rolls.getrandbits(64):016x}==")
    return message


def _dotted(rolls: random.Random) -> EmailMessage:
    message = EmailMessage()
    message.set_content("\n".join(rolls.choices(_DOTS, k=rolls.randint(1, 60))) + "\n", cte="7bit")
    return message
