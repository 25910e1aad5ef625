"""What several workers say, as one: the sums, the worst, the oldest."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open

from relayd.control import snapshot
from relayd.control.protocol import MAX_LISTED, Listing, MessageView
from relayd.control.snapshot import Family, Sample
from relayd.supervisor import merging


def view(accepted_at):
    return MessageView(f"{accepted_at}", "", "", "", 1, accepted_at, 1.0, "ready", [])


def process(count, *, durations=(), gauge=0.0):
    """A worker's registry with a bit of everything."""
    registry = CollectorRegistry()
    refusals = Counter("c", "refusals", ["code"], registry=registry)
    for number in range(count):
        refusals.labels(str(550 + number)).inc(number + 1)
    histogram = Histogram("h", "a histogram", registry=registry, buckets=(1, 2))
    for seconds in durations:
        histogram.observe(seconds)
    Gauge("g", "connections", registry=registry).set(gauge)
    Gauge("relayd_queue_oldest_seconds", "oldest", registry=registry).set(gauge)
    Gauge("relayd_spool_healthy", "healthy", registry=registry).set(gauge)
    Counter("process_cpu_seconds", "of one process", registry=registry).inc(gauge)
    return snapshot.take(registry)


def values(families):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_oldest_messages_of_all_come_first():
    parts = [Listing(7, [view(1.0), view(4.0)]), Listing(2, [view(2.0), view(3.0)]), Listing(0, [])]
    merged = merging.listings(parts, 3)
    assert merged.total == 9
    assert [message.accepted_at for message in merged.messages] == [1.0, 2.0, 3.0]
    assert merging.listings(parts, -1).messages == []
    assert len(merging.listings([Listing(1, [view(1.0)] * MAX_LISTED)] * 2, MAX_LISTED * 2).messages) == MAX_LISTED


def test_counts_are_added_by_state():
    assert merging.counts([{"ready": 1, "held": 2}, {"ready": 3}]) == {"ready": 4, "held": 2}
    assert merging.counts([]) == {}


def test_counters_and_histograms_are_sums_and_gauges_what_their_meaning_asks():
    found = values(merging.added([process(2, durations=(0.5, 5), gauge=3), process(3, durations=(1.5,), gauge=1)]))
    assert found["c_total", "550"] == 2
    assert found["c_total", "551"] == 4
    assert found["c_total", "552"] == 3
    assert [found["h_bucket", bound] for bound in ("1.0", "2.0", "+Inf")] == [1, 2, 3]
    assert found["h_sum",] == 7
    assert found["g",] == 4
    assert found["relayd_queue_oldest_seconds",] == 3
    assert found["relayd_spool_healthy",] == 1


def test_a_sum_has_been_counted_since_the_first_of_its_parts():
    early, late = (Family("c", "", "counter", [Sample("c_total", {}, 1), Sample("c_created", {}, at)]) for at in (5, 9))
    assert [sample.value for sample in merging.added([[late], [early]])[0].samples] == [2, 5]


def test_the_dead_leave_their_counters_and_nothing_else():
    left = merging.lasting(process(1, gauge=7))
    assert {family.name for family in left} == {"c", "h"}
    assert values(merging.added([process(1), left]))["c_total", "550"] == 2


def test_a_process_without_mail_has_no_gauges_but_its_own():
    assert {family.name for family in merging.without_gauges(process(1))} == {"c", "h", "process_cpu_seconds"}


def test_series_of_one_process_stay_apart():
    parts = [merging.labelled(process(1, gauge=number), str(number)) for number in (1, 2)]
    found = values(merging.added(parts))
    assert (found["process_cpu_seconds_total", "1"], found["process_cpu_seconds_total", "2"]) == (1, 2)


def test_what_is_taken_apart_and_put_together_reads_as_before():
    """Names, labels, types, order: the exposition of one process is the same through a snapshot."""
    registry = CollectorRegistry()
    counter = Counter("c", 'a "counter"\\', ["result"], registry=registry)
    counter.labels("good\n").inc()
    Histogram("h", "a histogram", registry=registry).observe(1)
    Gauge("g", "a gauge", registry=registry).set(float("inf"))
    again = CollectorRegistry(auto_describe=False)
    again.register(merging.Totals(merging.added([snapshot.take(registry)])))
    assert generate_latest(again) == generate_latest(registry)
    assert generate_open(again) == generate_open(registry)
