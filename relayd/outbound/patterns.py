"""Why a peer refuses: the category of a reply, from the table in patterns.toml, and what it asks of the scheduler.

Pure, once the table is loaded. `classify` alone decides what becomes of mail; a category tells people (log, metrics)
and steers pace: a wrong one costs speed, never a message. Must not know sites, windows or metrics. `settling` asks for
the category of what it records, the dispatcher for the effect on a site. The file holds data and sources, this module
the forms they must have.
"""

from __future__ import annotations

import enum
import functools
import importlib.resources
import re
import tomllib
from collections.abc import Sequence

import msgspec

from relayd.outbound.classify import GREETING, Stage
from relayd.smtp import reply as replies
from relayd.smtp.reply import Reply


class Category(enum.Enum):
    """Why; a closed set, because the values label a metric."""

    CONNECTION_LIMIT = "connection_limit"
    """Too many connections at once."""
    RATE = "rate"
    """Too much mail in a time."""
    SESSION_LIMIT = "session_limit"
    """Too much in this one session."""
    GREYLIST = "greylist"
    BLOCKED = "blocked"
    """Our address or its reputation."""
    SPAM = "spam"
    """The content of the message, or a policy that does not say more."""
    POLICY = "policy"
    """SPF, DKIM, DMARC, reverse DNS, relaying: who may send for whom."""
    MAILBOX_FULL = "mailbox_full"
    NO_MAILBOX = "no_mailbox"
    BAD_DOMAIN = "bad_domain"
    """No such domain, or one that takes no mail."""
    TOO_LARGE = "too_large"
    TLS = "tls"
    CREDENTIALS = "credentials"
    DNS = "dns"
    CONNECTION = "connection"
    """Unreachable, silent or lost."""
    CAPABILITY = "capability"
    """Something the peer does not implement."""
    OTHER = "other"


class Effect(enum.Enum):
    """What a refusal says of the pace at which its site is served."""

    NONE = "none"
    CONNECTIONS = "connections"
    """Fewer connections at once."""
    RATE = "rate"
    """Fewer messages in a time."""
    SESSION = "session"
    """Fewer messages in a session."""


class PatternError(Exception):
    """The table of reply patterns is malformed; the message names the table and the row, counted from 1."""


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row as it is written."""

    category: Category
    source: str
    codes: tuple[str, ...] = ()
    enhanced: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    text: str = ""


class Pattern(msgspec.Struct, frozen=True):
    """A row, ready to be asked. Empty sets and no text: any will do."""

    category: Category
    codes: frozenset[str]
    enhanced: frozenset[str]
    stages: frozenset[Stage]
    text: re.Pattern[str] | None

    def fits(self, said: Said, stage: Stage | None = None) -> bool:
        """Whether the row speaks of this reply."""
        return (
            (not self.codes or not self.codes.isdisjoint(said.codes))
            and (not self.enhanced or not self.enhanced.isdisjoint(said.enhanced))
            and (not self.stages or stage in self.stages)
            and (self.text is None or self.text.search(said.text) is not None)
        )


class Said(msgspec.Struct, frozen=True, gc=False):
    """A reply as rows look at it. codes: its own and its kind's ("4xx"); enhanced: its own and its subject's ("4.7").

    text: in lower case, the beginning, without addresses.
    """

    codes: tuple[str, str]
    enhanced: tuple[str, str]
    text: str


class Table(msgspec.Struct, frozen=True):
    """The file. patterns: by what is said; fallbacks: by codes and stage, where no pattern fits."""

    patterns: tuple[Pattern, ...]
    fallbacks: tuple[Pattern, ...]


MAX_SEARCHED = 400
"""Characters of a reply that are searched: the reason stands in front of the explanation."""

MAX_EXPRESSION = 700
"""Characters of a row's expression."""

_CODE = re.compile(r"[45](?:[0-9][0-9]|xx)")
_STATUS = re.compile(r"[45x]\.[0-9]{1,3}(?:\.[0-9]{1,3})?")
_UNBOUNDED = re.compile(r"(?<!\\)[*+]|,\}|\(\?[^:]|\\[1-9]")
_ADDRESS = re.compile(r"<[^<>]{1,320}>")
# qmail and others write it at the end: "no mailbox here by that name. (#5.1.1)". Not a part of an IP address.
_STATUS_IN_TEXT = re.compile(r"(?<![0-9.])([45]\.[0-7]\.[0-9]{1,3})(?!\.?[0-9])")


def category(stage: Stage | None, reply: Reply) -> Category:
    """Why the reply refuses. stage: where it was said, None where that is not known. Never raises.

    O(rows) for a reply that is new, each in time linear in its text: 0.1 ms, few ms whatever a peer makes up. The
    replies seen last are remembered, as long as they are kept elsewhere (MAX_TEXT).
    """
    return _category(stage, replies.shortened(reply))


@functools.lru_cache(maxsize=1024)
def _category(stage: Stage | None, reply: Reply) -> Category:
    said, found = _worded(reply)
    if found is not None:
        return found
    return next((row.category for row in _TABLE.fallbacks if row.fits(said, stage)), Category.OTHER)


@functools.lru_cache(maxsize=1024)
def _worded(reply: Reply) -> tuple[Said, Category | None]:
    """The part that is the same at every stage, and what takes the time."""
    said = _said(reply)
    return said, next((row.category for row in _TABLE.patterns if row.fits(said)), None)


def _said(reply: Reply) -> Said:
    # Recipients put words of their own into replies, between < and >: they are not the peer's.
    text = _ADDRESS.sub("<>", reply.text.lower())[:MAX_SEARCHED]
    code = str(reply.code)
    status = reply.enhanced or _status(code, text)
    return Said((code, code[0] + "xx"), (status, status.rpartition(".")[0]), text)


def effect(category: Category, stage: Stage | None, reply: Reply) -> Effect:
    """What the site's pace should learn from a refusal of this category. O(1)."""
    match category:
        case Category.CONNECTION_LIMIT:
            return Effect.CONNECTIONS
        case Category.SESSION_LIMIT:
            return Effect.SESSION
        case Category.RATE:
            # RFC 3463 X.2: a limit of one mailbox; the others of its site have nothing to do with it.
            return Effect.NONE if reply.enhanced[1:4] == ".2." else Effect.RATE
        case Category.BLOCKED if reply.code < 500:
            return Effect.RATE
        case Category.OTHER if reply.code == 421 and stage is GREETING:
            # RFC 5321 §3.8: "shutting down", and the usual word of servers that have no room for another session.
            return Effect.CONNECTIONS
        case Category.OTHER | Category.SPAM if reply.enhanced.startswith("4.7."):
            return Effect.RATE
    return Effect.NONE


def load(text: str) -> Table:
    """The table in TOML, checked; PatternError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PatternError(f"not TOML: {error}") from error
    if unknown := sorted(tables.keys() - {"pattern", "fallback"}):
        raise PatternError(f"unknown table {unknown[0]}")
    return Table(_rows("pattern", tables.get("pattern", [])), _rows("fallback", tables.get("fallback", [])))


def _rows(table: str, rows: object) -> tuple[Pattern, ...]:
    if not isinstance(rows, list):
        raise PatternError(f"{table} is no list of tables")
    patterns = []
    for number, raw in enumerate(rows, 1):
        try:
            patterns.append(_pattern(table, msgspec.convert(raw, _Row)))
        except (ValueError, re.error) as error:
            raise PatternError(f"{table} {number}: {error}") from error
    return tuple(patterns)


def _pattern(table: str, row: _Row) -> Pattern:
    """ValueError, re.error: a field says what it must not."""
    _checked("code", _CODE, row.codes)
    _checked("enhanced code", _STATUS, row.enhanced)
    if not row.source:
        raise ValueError("no source")
    if table == "pattern" and (row.stages or not (row.text or row.enhanced)):
        raise ValueError("a pattern has text or enhanced, and no stages")
    if table == "fallback" and (row.text or not (row.codes or row.enhanced or row.stages)):
        raise ValueError("a fallback has codes, enhanced or stages, and no text")
    # An expression without unbounded repeats takes time in proportion to the text, times the widths of its gaps.
    if len(row.text) > MAX_EXPRESSION or row.text != row.text.lower() or _UNBOUNDED.search(row.text):
        raise ValueError(f"text: lower case, no unbounded repeats or references, at most {MAX_EXPRESSION} characters")
    return Pattern(
        row.category,
        frozenset(row.codes),
        frozenset(spelled for status in row.enhanced for spelled in _spelled(status)),
        frozenset(_stage(name) for name in row.stages),
        re.compile(row.text) if row.text else None,
    )


def _checked(what: str, form: re.Pattern[str], values: Sequence[str]) -> None:
    for value in values:
        if form.fullmatch(value) is None:
            raise ValueError(f"{value!r} is no {what}")


def _spelled(status: str) -> tuple[str, ...]:
    return ("4" + status[1:], "5" + status[1:]) if status.startswith("x") else (status,)


def _stage(name: str) -> Stage:
    for stage in Stage:
        if stage.name.lower() == name:
            return stage
    raise ValueError(f"{name!r} is no stage")


def _status(code: str, text: str) -> str:
    """The enhanced code that stands elsewhere in the text, if it agrees with the reply code."""
    found = _STATUS_IN_TEXT.search(text)
    return found[1] if found and found[1][0] == code[0] else ""


_TABLE = load(importlib.resources.files(__package__).joinpath("patterns.toml").read_text(encoding="utf-8"))
