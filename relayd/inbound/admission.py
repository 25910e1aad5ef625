"""How many clients may be connected: in total, and from one address. Trusted networks are exempt from the latter.

Counts; knows nothing of sockets. Only `listener` asks.
"""

from __future__ import annotations

import collections

from relayd import metrics
from relayd.config.schema import Limits
from relayd.inbound.policy import Policy, subscriber
from relayd.smtp import reply
from relayd.smtp.reply import Reply


class Admission:
    """Open connections, in all and by client. Invariant: no key whose count is zero. O(1)."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self._limits = limits
        self._policy = policy
        self._open = 0
        self._by_client: collections.Counter[str] = collections.Counter()

    def admit(self, client: str) -> Reply | None:
        """Count a connection in, or say why not."""
        key = subscriber(client)
        if self._open >= self._limits.connections:
            return reply.TOO_MANY_CONNECTIONS
        full = self._by_client[key] >= self._limits.connections_per_client
        if full and not self._policy.trusted_network(client):
            return reply.TOO_MANY_CONNECTIONS_OF_CLIENT
        self._open += 1
        self._by_client[key] += 1
        metrics.inbound_connections.inc()
        return None

    def release(self, client: str) -> None:
        """Count an admitted connection out."""
        key = subscriber(client)
        self._open -= 1
        self._by_client[key] -= 1
        if not self._by_client[key]:
            del self._by_client[key]
        metrics.inbound_connections.dec()
