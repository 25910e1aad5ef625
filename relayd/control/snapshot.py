"""The metrics of a process as values, which another process can add to its own.

Owns the form; what is added how is the supervisor's affair. Made from a registry, on the event loop's thread.
"""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One series' value: name as exposed, labels in order."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with its samples, in the order of the exposition. kind: as in the exposition's TYPE."""

    name: str
    documentation: str
    kind: str
    samples: list[Sample]


def take(registry: CollectorRegistry) -> list[Family]:
    """Everything the registry has now. O(series), a millisecond or two."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [Sample(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]
