"""The ESMTP parameters of MAIL and RCPT (RFC 5321 §4.1.2), case kept, and xtext (RFC 3461 §4)."""

from __future__ import annotations

import re

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]*")
_VALUE = re.compile(r"[!-<>-~\u0080-\U0010ffff]+")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEX = re.compile(r"\+([0-9A-F]{2})")


class ParameterError(ValueError):
    """Not an ESMTP parameter list."""


def parse(text: bytes) -> dict[str, str | None]:
    """Keyword (upper case) to value (as said), None where there is none; raises ParameterError, on repeats too."""
    parameters: dict[str, str | None] = {}
    try:
        words = text.decode("utf-8").split(" ")
    except UnicodeDecodeError:
        raise ParameterError("not UTF-8") from None
    for word in filter(None, words):
        keyword, equals, value = word.partition("=")
        if not _KEYWORD.fullmatch(keyword) or (equals and not _VALUE.fullmatch(value)):
            raise ParameterError("malformed parameter")
        if keyword.upper() in parameters:
            raise ParameterError("parameter said twice")
        parameters[keyword.upper()] = value if equals else None
    return parameters


def xtext(value: str) -> str:
    """The printable ASCII behind an xtext value; ParameterError when malformed or hiding a control character."""
    if not _XTEXT.fullmatch(value):
        raise ParameterError("malformed xtext")
    decoded = _HEX.sub(lambda match: chr(int(match[1], 16)), value)
    if not (decoded.isascii() and decoded.isprintable()):
        raise ParameterError("control character in xtext")
    return decoded
