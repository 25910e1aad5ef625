"""SASL mechanisms as exchanges without I/O: they yield challenges, are sent responses, and return `Credentials`.

PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login, as the world speaks it). Sessions do base64 and the wire.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Callable, Generator

import msgspec


class MechanismError(ValueError):
    """A response that is not what the mechanism prescribes."""


class Credentials(msgspec.Struct, frozen=True):
    """What a client claims. user: NFC. identity: whom it wants to act as, "" for itself (RFC 4616 authzid)."""

    user: str
    password: bytes
    identity: str = ""

    def __repr__(self) -> str:
        """Never the password: reprs end in tracebacks, and those in logs."""
        return f"Credentials({self.user!r})"


Exchange = Generator[bytes, bytes, Credentials]


def plain() -> Exchange:
    """RFC 4616: authzid NUL authcid NUL password, in the one response."""
    response = yield b""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise MechanismError("not three fields")
    identity, user, password = parts
    return Credentials(_text(user), password, _text(identity))


def login() -> Exchange:
    """The name, then the password."""
    user = yield b"Username:"
    password = yield b"Password:"
    if b"\0" in user or b"\0" in password:
        raise MechanismError("NUL in a response")
    return Credentials(_text(user), password)


MECHANISMS: dict[bytes, Callable[[], Exchange]] = {b"PLAIN": plain, b"LOGIN": login}


def decoded(line: bytes) -> bytes:
    """The octets of a response line; MechanismError when it is not base64 (RFC 4954 §4)."""
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise MechanismError("not base64") from None


def decoded_initial(word: bytes) -> bytes:
    """The octets of an initial response, where "=" stands for none at all (RFC 4954 §4)."""
    return b"" if word == b"=" else decoded(word)


def encoded(challenge: bytes) -> str:
    """A challenge as it stands behind 334."""
    return base64.b64encode(challenge).decode("ascii")


def _text(octets: bytes) -> str:
    try:
        return unicodedata.normalize("NFC", octets.decode("utf-8"))
    except UnicodeDecodeError:
        raise MechanismError("not UTF-8") from None
