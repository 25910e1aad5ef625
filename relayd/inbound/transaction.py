"""A mail transaction (RFC 5321 §3.3): the arguments of MAIL and RCPT, strictly read, and what they add up to.

Bytes in, a value or a refusing `Reply` out. Knows nothing of who the client is, nor of message data.
"""

from __future__ import annotations

import re

import msgspec

from relayd.config.schema import Limits
from relayd.smtp import address, parameters, reply
from relayd.smtp.address import Address, AddressError
from relayd.smtp.parameters import ParameterError
from relayd.smtp.reply import Reply

OVERSHOOT = 1000
"""RCPT commands refused beyond the limit before a client that does not listen is sent away (as Postfix does)."""

_SIZE = re.compile(r"[0-9]{1,20}")  # RFC 1870 §3
_BODY = re.compile(r"7BIT|8BITMIME", re.ASCII | re.IGNORECASE)  # RFC 6152 §2
_PRIORITY = re.compile(r"-?[1-9]|0")  # RFC 6710 §7
_SOME = re.compile(r".+")

_Parameters = dict[str, str | None]


class Transaction(msgspec.Struct):
    """From MAIL to the end of data. recipients: in order, distinct. said: RCPT commands, refused ones included."""

    sender: Address
    size: int = 0
    smtputf8: bool = False
    eightbit: bool = False
    priority: int = 0
    recipients: dict[Address, None] = msgspec.field(default_factory=dict)
    taken: int = 0
    said: int = 0

    def room(self, limits: Limits) -> bool:
        """Whether one more recipient is allowed. Repeated ones count, or a client could repeat for ever."""
        self.said += 1
        return self.taken < limits.recipients

    def add(self, recipient: Address) -> None:
        """Take a recipient; one that is there already stays once (the text is what is compared)."""
        self.taken += 1
        self.recipients[recipient] = None


def mail(argument: bytes, *, extended: bool, limits: Limits) -> Transaction | Reply:
    """The transaction `MAIL FROM:<path> [parameters]` begins (RFC 5321 §4.1.1.2)."""
    if argument[:5].upper() != b"FROM:":
        return reply.syntax("MAIL FROM:<address> [parameters]")
    try:
        sender, rest = address.reverse_path(_path(argument[5:]), utf8=True)
        said = parameters.parse(rest)
        if said and not extended:
            return reply.UNKNOWN_PARAMETER  # RFC 5321 §4.1.1.11
        begun = _begun(sender, said, limits)
    except AddressError:
        return _malformed(argument, reply.BAD_SENDER)
    except ParameterError:
        return reply.BAD_PARAMETER
    if isinstance(begun, Transaction) and not begun.smtputf8 and not argument.isascii():
        return reply.NEEDS_SMTPUTF8  # RFC 6531 §3.5
    return begun


def rcpt(argument: bytes, transaction: Transaction) -> Address | Reply:
    """The recipient of `RCPT TO:<path>` (RFC 5321 §4.1.1.3); no parameter is known."""
    if argument[:3].upper() != b"TO:":
        return reply.syntax("RCPT TO:<address>")
    try:
        recipient, rest = address.forward_path(_path(argument[3:]), utf8=True)
        said = parameters.parse(rest)
    except AddressError:
        return _malformed(argument, reply.BAD_RECIPIENT)
    except ParameterError:
        return reply.BAD_PARAMETER
    if said:
        return reply.UNKNOWN_PARAMETER
    if not recipient.isascii() and not transaction.smtputf8:
        return reply.NEEDS_SMTPUTF8
    return recipient


def _path(argument: bytes) -> bytes:
    # Many clients put one space after the colon, against RFC 5321 §4.1.1.2; it can mean nothing else.
    return argument[1:] if argument.startswith(b" <") else argument


def _malformed(argument: bytes, refusal: Reply) -> Reply:
    try:
        argument.decode("utf-8")
    except UnicodeDecodeError:
        return reply.BAD_OCTET
    return refusal


def _begun(sender: Address, said: _Parameters, limits: Limits) -> Transaction | Reply:
    """The transaction, from the parameters of MAIL; ParameterError where a value is malformed.

    Their names are upper case, their values as they were said.
    """
    transaction = Transaction(sender)
    for name, value in said.items():
        match name:
            case "SIZE":
                transaction.size = int(_value(value, _SIZE))
            case "BODY":
                transaction.eightbit = _value(value, _BODY).upper() == "8BITMIME"
            case "SMTPUTF8":  # RFC 6531 §3.4
                if value is not None:
                    return reply.BAD_PARAMETER
                transaction.smtputf8 = True
            case "MT-PRIORITY":  # RFC 6710 §4.1: taken as it is, for whoever may send mail here may say what is urgent
                transaction.priority = int(_value(value, _PRIORITY))
            case "AUTH":  # RFC 4954 §5: checked; a client that we authenticated is trusted with no other identity
                parameters.xtext(_value(value, _SOME))
            case _:
                return reply.UNKNOWN_PARAMETER
    return reply.MESSAGE_TOO_LARGE if transaction.size > limits.message_size else transaction


def _value(said: str | None, syntax: re.Pattern[str]) -> str:
    """What a parameter says; ParameterError where that is nothing, or nothing it could say."""
    if said is None or not syntax.fullmatch(said):
        raise ParameterError("malformed value")
    return said
