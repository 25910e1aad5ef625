"""Every metric, with its bounded labels. Rooms call the bound children here; admin renders the registry.

Label values are closed sets: no domain, address, user or host ever becomes a label.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relayd import clock

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

STATES = ("active", "ready", "deferred", "held")
"""States of a queued message; each message counts in the first that any of its recipients is in."""

CATEGORIES = (
    "connection_limit",
    "rate",
    "session_limit",
    "greylist",
    "blocked",
    "spam",
    "policy",
    "mailbox_full",
    "no_mailbox",
    "bad_domain",
    "too_large",
    "tls",
    "credentials",
    "dns",
    "connection",
    "capability",
    "other",
)
"""Why peers refuse: the values of outbound's `patterns.Category`."""


class Tally:
    """A counter of the event loop's thread alone. prometheus_client's takes a lock each time, three calls deep."""

    __slots__ = ("created", "value")

    def __init__(self) -> None:
        self.created = clock.wall()
        self.value = 0

    def inc(self) -> None:
        """One more."""
        self.value += 1


class TallyCollector(Collector):
    """A family of tallies, by the value of its label; without a label it is one."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        tallies: Mapping[str, Tally],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._tallies = tallies
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        labels = [self._label] if self._label else []
        family = CounterMetricFamily(self._name, self._documentation, labels=labels)
        for value, tally in self._tallies.items():
            family.add_metric([value], tally.value, tally.created)
        yield family


class Durations(Collector):
    """A histogram of seconds, of the event loop's thread alone as a Tally is. `buckets`: upper bounds, ascending."""

    def __init__(
        self, name: str, documentation: str, buckets: tuple[float, ...], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets = (*buckets, float("inf"))
        self._counts = [0] * len(self._buckets)
        self._sum = 0.0
        self._created = clock.wall()
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count one. O(log buckets)."""
        self._counts[bisect_left(self._buckets, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        bounds = map(floatToGoString, self._buckets)
        buckets = list(zip(bounds, itertools.accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)
        family.add_sample(f"{self._name}_created", {}, self._created)
        yield family


messages_accepted = Tally()
TallyCollector("relayd_messages_accepted", "Messages stored and answered 250", "", {"": messages_accepted})
messages_rejected = Counter(
    "relayd_messages_rejected", "Messages refused, by reply code", ["code"], registry=REGISTRY
)
delivered, deferred, failed = Tally(), Tally(), Tally()
TallyCollector(
    "relayd_deliveries",
    "Recipients' attempts, by result",
    "result",
    {"delivered": delivered, "deferred": deferred, "failed": failed},
)
refused = {category: Tally() for category in CATEGORIES}
TallyCollector("relayd_refusals", "Recipients' attempts that were deferred or failed, by why", "category", refused)
_connections = Gauge("relayd_connections", "Open SMTP connections", ["direction"], registry=REGISTRY)
inbound_connections = _connections.labels("inbound")
outbound_connections = _connections.labels("outbound")
commit_seconds = Durations(
    "relayd_commit_seconds",
    "From a batch's hand-over to the spool until it is durable",
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
delivery_seconds = Durations(
    "relayd_delivery_seconds",
    "From a message's acceptance to a recipient's end",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600, 3600, 14400, 86400, 432000),
)
authentication_failures = Counter("relayd_authentication_failures", "Failed AUTH attempts", registry=REGISTRY)
notifications = Counter("relayd_notifications", "Delivery status notifications queued", registry=REGISTRY)
notifications_dropped = Counter(
    "relayd_notifications_dropped", "Failures of mail from the null sender, which nobody is told of", registry=REGISTRY
)
uncertain_deliveries = Counter(
    "relayd_uncertain_deliveries", "Attempts whose final answer was lost: a duplicate is possible", registry=REGISTRY
)
quarantined = Counter("relayd_spool_quarantined", "Unreadable ranges of the spool set aside", registry=REGISTRY)
torn = Counter("relayd_spool_torn", "Unfinished tails of journals found at start", registry=REGISTRY)
spool_errors = Counter("relayd_spool_errors", "Failed commits", registry=REGISTRY)
spool_healthy = Gauge("relayd_spool_healthy", "1 while every shard commits, within 10 seconds", registry=REGISTRY)
_site_changes = Counter(
    "relayd_site_changes",
    "Changes of a site's window (connections at once), rate (messages a second) or health, from its replies",
    ["aspect", "direction"],
    registry=REGISTRY,
)
workers = Gauge("relayd_workers", "Worker processes that take mail", registry=REGISTRY)
worker_restarts = Counter(
    "relayd_worker_restarts", "Worker processes started again because they ended unasked", registry=REGISTRY
)
bugs = Counter("relayd_bugs", "Unexpected exceptions that were contained", registry=REGISTRY)


def site_changed(aspect: str, *, raised: bool) -> None:
    """A site gets more of something than before, or less."""
    _site_changes.labels(aspect, "raised" if raised else "lowered").inc()


class _QueueCollector(Collector):
    """The queue's gauges, read when asked for: exact, and no cost per message."""

    def __init__(self, counts: Callable[[], Mapping[str, int]], oldest: Callable[[], float]) -> None:
        self._counts = counts
        self._oldest = oldest

    def collect(self) -> Iterable[Metric]:
        messages = GaugeMetricFamily("relayd_queue_messages", "Messages in the queue, by state", labels=["state"])
        counts = self._counts()
        for state in STATES:
            messages.add_metric([state], counts[state])
        yield messages
        yield GaugeMetricFamily("relayd_queue_oldest_seconds", "Age of the oldest queued message", value=self._oldest())


def watch_queue(counts: Callable[[], Mapping[str, int]], oldest: Callable[[], float]) -> Callable[[], None]:
    """Export the queue's gauges from these; returns what ends it."""
    collector = _QueueCollector(counts, oldest)
    REGISTRY.register(collector)
    return lambda: REGISTRY.unregister(collector)


def zero_initialise(codes: Iterable[int]) -> None:
    """Make the series of the usual rejections exist before the first one."""
    for code in codes:
        messages_rejected.labels(str(code))


for _aspect in ("window", "rate", "health"):
    for _direction in ("raised", "lowered"):
        _site_changes.labels(_aspect, _direction)

zero_initialise((421, 450, 451, 452, 454, 500, 501, 502, 503, 504, 530, 535, 538, 550, 552, 553, 554, 555))
