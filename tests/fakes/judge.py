"""The one ledger that judges every drill: what was promised, against what came of it.

Keyed by delivery: (number of the message, recipient). Clients tell what they sent and were answered, sinks what arrived
and when, drills when they cut the relay off; `verdict` does the sums. Must not know how relayd works, how it was
broken, or what its files look like: only what a client and a next hop can see. Times are of `time.monotonic`.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tests.fakes.sink import Received

Delivery = tuple[int, str]
"""The number of a message, one recipient's address."""


class Cut(NamedTuple):
    """A kill, a power cut or a restart. at: when the relay was last known alive; until: when it was known dead.

    What arrives before `until` may have come from before the cut, what arrives after `at` from behind it.
    """

    at: float
    until: float


class Arrival(NamedTuple):
    """A next hop took a delivery, or a notification of its failure came. altered: its bytes are not those sent."""

    at: float
    altered: bool = False


def address(number: int, domain: str = "sink.test") -> str:
    """A recipient that tells the message's number."""
    return f"n{number}@{domain}"


def message(number: int, size: int = 5120) -> bytes:
    """The message of this number: always the same bytes, dots at line starts among them."""
    digest = hashlib.sha256(str(number).encode()).hexdigest().encode()
    line = b"." + digest + b"\r\n"
    header = b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <%d@ledger.test>\r\n\r\n" % number
    return header + line * (size // len(line))


def delivery(recipient: str) -> Delivery:
    """The delivery an address of `address` belongs to."""
    found = re.match(r"n(\d+)\D", recipient)
    assert found, f"no number in {recipient}"
    return int(found[1]), recipient


@dataclass(frozen=True)
class Verdict:
    """What a drill proved. As text: the one line that is published.

    acknowledged: deliveries answered 250. lost: of these, neither arrived nor bounced nor queued. duplicate: with more
    than one outcome. unexplained: of these, with no cut between two outcomes, nor between the client's being turned away
    and the second, nor a lost answer (I3). ghost: arrived, never sent whole. premature: bounced, though no next hop refused them for good
    (I4). doubled: duplicates by cut, in the cuts' order.
    """

    seed: int
    cuts: int
    acknowledged: int
    lost: frozenset[Delivery]
    duplicate: frozenset[Delivery]
    unexplained: frozenset[Delivery]
    altered: frozenset[Delivery]
    ghost: frozenset[Delivery]
    premature: frozenset[Delivery]
    doubled: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"seed={self.seed} cuts={self.cuts} acknowledged={self.acknowledged} lost={len(self.lost)} "
            f"duplicate={len(self.duplicate)} altered={len(self.altered)}"
        )

    def faults(self) -> dict[str, list[Delivery]]:
        """What must not have happened, by name: some of each, and nothing when the promise held."""
        names = ("lost", "unexplained", "altered", "ghost", "premature")
        return {name: sorted(found)[:10] for name in names if (found := getattr(self, name))}


class Judge:
    """Told everything, decides at the end.

    content: the message of a number, the same bytes whenever it is asked. acknowledged: answered 250. unanswered: the
    final dot was sent, and no reply came (yet). turned_away: answered otherwise, by reply code. arrivals and bounces:
    every one, in order. refused: what a next hop answered 5xx for. queued: what still waits in the relay at the end.
    """

    def __init__(self, content: Callable[[int], bytes] = message) -> None:
        self.content = content
        self.acknowledged: set[Delivery] = set()
        self.unanswered: set[Delivery] = set()
        self.turned_away: collections.Counter[str] = collections.Counter()
        self.arrivals: dict[Delivery, list[Arrival]] = collections.defaultdict(list)
        self.bounces: dict[Delivery, list[Arrival]] = collections.defaultdict(list)
        self.refused: set[Delivery] = set()
        self.queued: set[Delivery] = set()
        self.cuts: list[Cut] = []
        self._sent: set[Delivery] = set()
        self._failed: dict[Delivery, list[float]] = collections.defaultdict(list)
        """When the relay said that it cannot keep a message: each time it may turn out, behind a cut, that it did."""
        self._answers_lost: collections.Counter[Delivery] = collections.Counter()

    # --- the client's side ----------------------------------------------------------------------------------------

    def sending(self, deliveries: Iterable[Delivery]) -> None:
        """The final dot is about to be sent."""
        sent = set(deliveries)
        self._sent |= sent
        self.unanswered |= sent

    def answered(self, deliveries: Iterable[Delivery], reply: bytes) -> None:
        """The reply to the final dot was read."""
        sent = set(deliveries)
        self.unanswered -= sent
        if reply.startswith(b"250"):
            self.acknowledged |= sent
        else:
            self.turned_away[reply[:3].decode()] += 1
            for one in sent:
                self._failed[one].append(time.monotonic())

    # --- the next hop's side ----------------------------------------------------------------------------------------

    def take(self, received: Received, *, answered: bool = True) -> None:
        """What a sink received: mail, or a notification for its sender. For `Sink(on_message=...)`.

        answered: whether it told the relay so; if not, each recipient may arrive once more.
        """
        now = time.monotonic()
        if received.sender.startswith(b"<>"):
            for recipient in re.findall(rb"^Final-Recipient: rfc822; (\S+)\r$", received.content, re.MULTILINE):
                self.bounces[delivery(recipient.decode())].append(Arrival(now))
            return
        for recipient in received.addresses:
            one = delivery(recipient)
            altered = received.behind_trace() != self.content(one[0])
            self.arrivals[one].append(Arrival(now, altered))
            self._answers_lost[one] += not answered

    # --- the drill's side -------------------------------------------------------------------------------------------

    def cut(self, at: float, until: float) -> None:
        """The relay was cut off: alive at `at`, dead, and all it had sent read, at `until`."""
        self.cuts.append(Cut(at, until))

    def verdict(self, seed: int = 0) -> Verdict:
        """The sums of now. O(deliveries + duplicates * cuts)."""
        reached = self.arrivals.keys() | self.bounces.keys()
        doubled = [0] * len(self.cuts)
        duplicate, unexplained = set(), set()
        for one in reached:
            times = sorted(arrival.at for arrival in (*self.arrivals.get(one, ()), *self.bounces.get(one, ())))
            failed = self._failed.get(one, []).copy()
            explained = self._answers_lost[one]
            for number, (first, second) in enumerate(itertools.pairwise(times)):
                duplicate.add(one)
                if number < explained:
                    continue
                cut = self._between(first, second)
                if cut is None and failed:
                    cut = self._between(failed.pop(0), second)
                if cut is None:
                    unexplained.add(one)
                else:
                    doubled[cut] += 1
        return Verdict(
            seed=seed,
            cuts=len(self.cuts),
            acknowledged=len(self.acknowledged),
            lost=frozenset(self.acknowledged - reached - self.queued),
            duplicate=frozenset(duplicate),
            unexplained=frozenset(unexplained),
            altered=frozenset(one for one, found in self.arrivals.items() if any(each.altered for each in found)),
            ghost=frozenset(reached - self._sent),
            premature=frozenset(self.bounces.keys() - self.refused),
            doubled=tuple(doubled),
        )

    def _between(self, first: float, second: float) -> int | None:
        """The cut that lost the record of the first outcome: the earliest one behind it, when before the second."""
        after = (number for number, cut in enumerate(self.cuts) if first <= cut.until and cut.at <= second)
        return next(after, None)

