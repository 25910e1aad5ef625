"""What several workers answer, as one answer: listings, status, metrics. Values in, values out; no process, no clock.

Called by supervisor. Counters are those of every process there was, gauges those of the processes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from relayd.control.protocol import MAX_LISTED, Listing
from relayd.control.snapshot import Family, Sample

_CUMULATIVE = frozenset({"counter", "histogram", "summary"})
_BY_PROCESS = ("process_", "python_")
"""Families that say something of one process: a sum would mean nothing."""

_WORST = {"relayd_queue_oldest_seconds": max, "relayd_spool_healthy": min}
"""Gauges of which the relay's is not the sum."""


def listings(parts: Iterable[Listing], limit: int) -> Listing:
    """The oldest `limit` of all messages; how many matched in all. O(n log n) in the messages shown."""
    parts = list(parts)
    messages = sorted((view for part in parts for view in part.messages), key=attrgetter("accepted_at"))
    return Listing(sum(part.total for part in parts), messages[: min(max(limit, 0), MAX_LISTED)])


def counts(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Added by key."""
    total: dict[str, int] = {}
    for part in parts:
        for state, number in part.items():
            total[state] = total.get(state, 0) + number
    return total


def lasting(families: Iterable[Family]) -> list[Family]:
    """What outlives its process: counters and histograms, less those that say something of the process."""
    return [one for one in families if one.kind in _CUMULATIVE and not one.name.startswith(_BY_PROCESS)]


def without_gauges(families: Iterable[Family]) -> list[Family]:
    """What counts of a process that carries no mail."""
    return [one for one in families if one.kind in _CUMULATIVE or one.name.startswith(_BY_PROCESS)]


def labelled(families: Iterable[Family], worker: str) -> list[Family]:
    """The same, with series of one process labelled by it."""
    return [
        Family(one.name, one.documentation, one.kind, [_of(sample, worker) for sample in one.samples])
        if one.name.startswith(_BY_PROCESS)
        else one
        for one in families
    ]


def _of(sample: Sample, worker: str) -> Sample:
    return Sample(sample.name, {**sample.labels, "worker": worker}, sample.value)


def added(parts: Iterable[Sequence[Family]]) -> list[Family]:
    """One family for each name, one sample for each series, in the order in which they come first. O(samples)."""
    families: dict[str, Family] = {}
    series: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for part in parts for family in part):
        families.setdefault(family.name, family)
        values = series.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            values[key] = _joined(family, sample, values[key]) if key in values else sample.value
    return [
        Family(
            name,
            family.documentation,
            family.kind,
            [Sample(sample, dict(labels), value) for (sample, labels), value in series[name].items()],
        )
        for name, family in families.items()
    ]


def _joined(family: Family, sample: Sample, value: float) -> float:
    if family.kind in _CUMULATIVE and sample.name.endswith("_created"):
        return min(value, sample.value)  # a moment: the total has been counted since the first of them
    return _WORST[family.name](value, sample.value) if family.name in _WORST else value + sample.value


class Totals(Collector):
    """Families as a registry wants them."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in ((s.name, s.labels, s.value) for s in family.samples):
                metric.add_sample(name, labels, value)
            yield metric
