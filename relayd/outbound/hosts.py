"""Which of a site's hosts are asked, in which order, and what they have shown before: out of reach, BDAT, limits.

Pure: time and dice are arguments, nothing here waits or looks anything up. `delivery` asks before it dials and tells
what came of it. Forgetting costs an attempt or a free retry, never mail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from relayd.message.site import Family, Host, Site, Source, Tls
from relayd.outbound.recent import Latest

AVOIDED_FIRST = 120.0
"""Seconds an address is asked last after it could not be reached, doubled with each further failure …"""

AVOIDED_LONGEST = 900.0
"""… up to this."""

REMEMBERED = 3600.0
"""Seconds that a learnt limit, and that BDAT is not known, are believed: configurations change."""

KEPT = 10_000
"""Of each kind of memory: the ones used last."""

Peer = tuple[str, int, Source, Tls]
"""An address and port, as seen from a source by mail of one policy: what refuses one may welcome another."""


class HostMemory:
    """What hosts have shown, for so long. `now` is monotonic seconds. Every call is O(1), memory is bounded by KEPT."""

    def __init__(self, size: int = KEPT) -> None:
        self._avoided: Latest[Peer, tuple[float, float]] = Latest(size)  # until, and the seconds it was set for
        self._without_bdat: Latest[Peer, float] = Latest(size)
        self._sessions: Latest[Site, tuple[int, float]] = Latest(size)

    def failed(self, peer: Peer, now: float) -> None:
        """It could not be reached, or did not greet us. What fails while it is avoided says nothing new."""
        until, seconds = self._avoided.get(peer) or (now, AVOIDED_FIRST / 2)
        if until <= now:
            seconds = min(2 * seconds, AVOIDED_LONGEST)
            self._avoided.set(peer, (now + seconds, seconds))

    def reached(self, peer: Peer) -> None:
        """It greeted us: its failures are forgotten."""
        self._avoided.drop(peer)

    def avoided(self, peer: Peer, now: float) -> bool:
        """Whether it is to be asked after all others."""
        kept = self._avoided.get(peer)
        return kept is not None and now < kept[0]

    def lacks_bdat(self, peer: Peer, now: float) -> None:
        """It offered CHUNKING and refused BDAT as unknown."""
        self._without_bdat.set(peer, now + REMEMBERED)

    def takes_bdat(self, peer: Peer, now: float) -> bool:
        """Unless it was seen to lack it; whether it offers it is another question."""
        return now >= (self._without_bdat.get(peer) or -math.inf)

    def ended_after(self, site: Site, messages: int, now: float) -> None:
        """A host of the site takes so many messages in a session, at least one, and refuses the next."""
        self._sessions.set(site, (messages, now + REMEMBERED))

    def messages(self, site: Site, now: float) -> int:
        """What a session with the site may carry: as configured, or the less that was learnt."""
        kept = self._sessions.get(site) if self._sessions else None
        usual = site.terms.messages_per_connection
        return min(kept[0], usual) if kept is not None and now < kept[1] else usual


def in_order(site: Site, random: Random) -> Iterator[Host]:
    """Hosts by preference, at random within a group (RFC 5321 §5.1), by weight: twice the weight, first twice as often.

    The host whose exponential clock of its weight as rate ticks first is first with its share of the sum of weights.
    """
    for group in site.groups:
        if len(group) == 1:
            yield group[0]
        else:
            ticks = [(random.expovariate(host.weight) if host.weight > 0 else math.inf, host) for host in group]
            yield from (host for _, host in sorted(ticks, key=lambda tick: tick[0]))


def peer_of(site: Site, address: str, port: int) -> Peer:
    """As mail of the site sees it."""
    return address, port, site.source, site.terms.tls


def reachable_from(site: Site, address: str) -> bool:
    """Whether the site's family and source allow to connect to the address."""
    six = ":" in address
    if site.terms.family is (Family.IPV4 if six else Family.IPV6):
        return False
    source = site.source
    return bool(source.ipv6 if six else source.ipv4) or not (source.ipv4 or source.ipv6)
