"""From MX records to hosts in the order to try them. Pure: records in, groups of names or an Outcome out.

Must not know how records are fetched. Called by `client`; the shuffle inside a group is outbound's, at each attempt.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.smtp import reply

Groups = tuple[tuple[str, ...], ...]
"""Host names by preference, best group first; sorted within a group, so that equal sets are equal values."""

MAX_HOSTS = 20
"""Hosts kept of a domain, the best of them. Postfix tries 5 and mox 10; an answer may carry thousands."""

NULL_MX = Outcome(Verdict.FAILED, Scope.SITE, reply.NULL_MX)
NO_VALID_MX = Outcome(Verdict.FAILED, Scope.SITE, reply.NO_VALID_MX)
LOOPS_BACK = Outcome(Verdict.FAILED, Scope.SITE, reply.LOOPS_BACK)

# Underscores are in use though RFC 1123 §2.1 knows none. A last label of digits is an IP address (RFC 3696 §2).
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)*(?![0-9]+\Z)[a-z0-9_-]{1,63}")


def normal(name: str) -> str:
    """The form in which names are compared: lower case, without the root's dot."""
    return name.removesuffix(".").lower()


def is_host_name(name: str) -> bool:
    """Whether a name in normal form can be a host's: no address, no control or escaped character, not the root."""
    return _HOST_NAME.fullmatch(name) is not None


def order(records: Iterable[tuple[int, str]], own_host: str) -> Groups | Outcome:
    """Hosts to try, of (preference, exchange) records; `own_host` in normal form. O(n log n) in records.

    An exchange that is no host name is left out, one that stands there twice has its better preference.
    """
    names = sorted((preference, normal(exchange)) for preference, exchange in records)
    preferences: dict[str, int] = {}  # filled, and so read, in this order
    for preference, name in names:
        if is_host_name(name):
            preferences.setdefault(name, preference)
    if not preferences:
        # RFC 7505 §3: "." alone refuses all mail. Beside other records it means nothing.
        return NULL_MX if {name for _, name in names} == {""} else NO_VALID_MX
    # RFC 5321 §5.1: this host and whatever is no better are left out, else mail would come back.
    limit = preferences.get(own_host)
    kept = [(preference, name) for name, preference in preferences.items() if limit is None or preference < limit]
    if not kept:
        return LOOPS_BACK
    best = itertools.groupby(kept[:MAX_HOSTS], key=lambda host: host[0])
    return tuple(tuple(name for _, name in group) for _, group in best)
