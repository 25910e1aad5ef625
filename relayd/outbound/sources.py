"""Which address of this machine a message leaves from: the same one each time for one sender and one domain.

Pure: configuration and names in, a `Source` out, the same in every process and after every restart. Which pool is used
for a message is the router's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from relayd.config import schema
from relayd.message.site import Source


class Pool:
    """Weighted addresses of which `choose` takes one, by rendezvous hashing.

    An address that is added takes its share evenly from the others, one that is removed leaves its share to them, and
    no other mail moves (Thaler and Ravishankar 1998; with weights, Schindelhauer and Schomaker 2005). A change of
    weight or hostname leaves the address what it is.
    """

    def __init__(self, addresses: Sequence[schema.SourceAddress]) -> None:
        """`addresses`: at least one, in any order."""
        self._addresses = [
            (Source(address.hostname or "", address.ipv4 or "", address.ipv6 or ""), address.weight)
            for address in addresses
        ]
        names = [f"{source.ipv4}\0{source.ipv6}\0" for source, _ in self._addresses]
        self._hashes = [hashlib.blake2b(name.encode(), digest_size=8) for name in names]

    def choose(self, sender: str, domain: str) -> Source:
        """The address for mail of `sender` to `domain`: greylisting knows a sender again by it. O(addresses)."""
        if len(self._addresses) == 1:
            return self._addresses[0][0]
        names = f"{sender}\0{domain}".encode()
        # The first of events at rates of the weights: the chance of each is its weight's share.
        times = []
        for (_, weight), started in zip(self._addresses, self._hashes, strict=True):
            hashed = started.copy()
            hashed.update(names)
            times.append(-math.log(_fraction(hashed.digest())) / weight)
        return self._addresses[times.index(min(times))][0]


def _fraction(digest: bytes) -> float:
    """Eight octets as a number above 0 and below 1: 52 bits and a half, which a float holds exactly."""
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52
