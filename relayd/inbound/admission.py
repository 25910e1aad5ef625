"""How many clients may be connected: in total, and from one address. Trusted networks are exempt from the latter.

Counts what this process has, and adds what the others have; knows nothing of sockets. Only `listener` asks.
"""

from __future__ import annotations

import collections

from relayd import metrics
from relayd.config.schema import Limits
from relayd.inbound.headcount import Headcount
from relayd.inbound.policy import Policy, subscriber
from relayd.smtp import reply
from relayd.smtp.reply import Reply


class Admission:
    """Open connections, in all and by client. Invariant: no key whose count is zero. O(processes).

    Processes that admit at the same moment may let in one more each than the limit says.
    """

    def __init__(self, limits: Limits, policy: Policy, headcount: Headcount) -> None:
        self._limits = limits
        self._policy = policy
        self._headcount = headcount
        self._open = 0
        self._by_client: collections.Counter[str] = collections.Counter()

    def admit(self, client: str) -> Reply | None:
        """Count a connection in, or say why not."""
        if self._open + self._headcount.elsewhere() >= self._limits.connections:
            return reply.TOO_MANY_CONNECTIONS
        if key := self._key(client):
            if self._by_client[key] + self._headcount.of_elsewhere(key) >= self._limits.connections_per_client:
                return reply.TOO_MANY_CONNECTIONS_OF_CLIENT
            self._by_client[key] += 1
        self._open += 1
        self._headcount.count(key, 1)
        metrics.inbound_connections.inc()
        return None

    def release(self, client: str) -> None:
        """Count an admitted connection out."""
        if key := self._key(client):
            self._by_client[key] -= 1
            if not self._by_client[key]:
                del self._by_client[key]
        self._open -= 1
        self._headcount.count(key, -1)
        metrics.inbound_connections.dec()

    def _key(self, client: str) -> str:
        """What is counted as one client; "" for those that no limit is for."""
        return "" if self._policy.trusted_network(client) else subscriber(client)
