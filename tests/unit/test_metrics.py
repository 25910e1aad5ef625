"""The metrics exist from the start, with bounded labels."""

import re

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from relayd import metrics


def test_every_promised_metric_exists_before_anything_happened() -> None:
    unwatch = metrics.watch_queue(lambda: dict.fromkeys(metrics.STATES, 0), lambda: 0.0)
    try:
        text = generate_latest(metrics.REGISTRY).decode()
    finally:
        unwatch()
    for series in (
        "relayd_messages_accepted_total",
        'relayd_messages_rejected_total{code="550"}',
        'relayd_deliveries_total{result="delivered"}',
        'relayd_deliveries_total{result="deferred"}',
        'relayd_deliveries_total{result="failed"}',
        'relayd_refusals_total{category="connection_limit"}',
        'relayd_refusals_total{category="other"}',
        'relayd_queue_messages{state="active"}',
        'relayd_queue_messages{state="ready"}',
        'relayd_queue_messages{state="deferred"}',
        'relayd_queue_messages{state="held"}',
        "relayd_queue_oldest_seconds",
        'relayd_connections{direction="inbound"}',
        'relayd_connections{direction="outbound"}',
        "relayd_commit_seconds_bucket",
        "relayd_delivery_seconds_bucket",
    ):
        assert f"\n{series}" in text, series


def test_the_queue_is_read_when_asked_for() -> None:
    counts = dict.fromkeys(metrics.STATES, 0)
    unwatch = metrics.watch_queue(lambda: counts, lambda: 12.5)
    try:
        counts["held"] = 7
        text = generate_latest(metrics.REGISTRY).decode()
    finally:
        unwatch()
    assert 'relayd_queue_messages{state="held"} 7.0' in text
    assert "relayd_queue_oldest_seconds 12.5" in text
    assert "relayd_queue_messages" not in generate_latest(metrics.REGISTRY).decode()


def test_own_counts_read_as_the_librarys() -> None:
    """Names, labels, types, buckets and values: nobody who scrapes can tell which of the two counted."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    counter = Counter("c", "a counter", ["result"], registry=theirs)
    histogram = Histogram("h", "a histogram", registry=theirs, buckets=(0.5, 1, 10))
    tallies = {value: metrics.Tally() for value in ("good", "bad")}
    durations = metrics.Durations("h", "a histogram", (0.5, 1, 10), ours)
    metrics.TallyCollector("c", "a counter", "result", tallies, ours)
    for value, tally in tallies.items():
        counter.labels(value).inc()
        tally.inc()
    for seconds in (0, 0.5, 0.50001, 1, 9.9, 10, 1e9):
        histogram.observe(seconds)
        durations.observe(seconds)
    assert exposed(ours) == exposed(theirs)


def exposed(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(re.sub(r"(_created\S*) .*", r"\1", line) for line in lines)
