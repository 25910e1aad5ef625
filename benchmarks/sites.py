"""What many sites cost the scheduler: CPU a message, of one domain and of 100,000 with a site each.

The pure scheduler alone, from `add` to `finish`. See README.md here for the method. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from end_to_end import facts
from rich.console import Console
from rich.table import Table

from relayd.message.envelope import Envelope
from relayd.message.site import Host, Site, Way
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import SERVED, Report
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp.address import Address

DOMAINS = 100_000

WAITING = 10_000
"""Messages that wait at once."""

RATE = 2000.0
"""Messages a second, by the scheduler's time: bindings and idle sites end as they would."""

TTL = 300.0
"""Seconds for which a domain leads to its site."""

SHAPES: dict[str, Callable[[int], int]] = {
    "one domain": lambda _: 0,
    "ten to a domain, one after the other": lambda number: number // 10 % DOMAINS,
    "ten to a domain, all domains in turn": lambda number: number % DOMAINS,
}
"""The domain of a message, by its number."""

_SERVED = Report(SERVED)


def main() -> None:
    """Alternating rounds, every second one in reverse order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs there, too")
    options = parser.parse_args()
    runs: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for number in range(options.rounds):
        for shape in list(SHAPES)[:: 1 if number % 2 == 0 else -1]:
            runs[shape].append(microseconds(SHAPES[shape], options.messages))
            print(f"{number + 1}: {shape}: {runs[shape][-1]:.2f} µs", file=sys.stderr)
    usual = statistics.median(next(iter(runs.values())))
    table = Table("shape", "µs a message", "fastest", "slowest", "ratio")
    for shape, taken in runs.items():
        median = statistics.median(taken)
        figures = (median, min(taken), max(taken), median / usual)
        table.add_row(shape, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    if options.json:
        written = {"facts": facts(None), "messages": options.messages, "runs": runs}
        options.json.write_text(json.dumps(written, indent=1) + "\n")


def microseconds(domain_of: Callable[[int], int], messages: int) -> float:
    """CPU a message, without that of making them."""
    scheduler, spent = Scheduler(), 0.0
    gc.collect()
    for first in range(0, messages, WAITING):
        entries = list(_entries(domain_of, first, min(first + WAITING, messages)))
        known = {entry.way: Site(((Host(f"mx.{entry.domain}", 25),),)) for entry in entries}
        started = time.process_time()
        _carry(scheduler, entries, known, first / RATE)
        spent += time.process_time() - started
    return spent / messages * 1e6


@functools.lru_cache(10_000)
def _way(domain: str) -> Way:
    """Shared by messages of a domain, as the router does."""
    return Way(domain)


def _entries(domain_of: Callable[[int], int], first: int, last: int) -> Iterator[Entry]:
    for number in range(first, last):
        domain = f"domain-{domain_of(number)}.example"
        envelope = Envelope(f"m{number}", Address(""), (Address(f"u@{domain}"),), "user:bench", 0.0, 1)
        yield Entry(envelope, _way(domain), (0,))


def _carry(scheduler: Scheduler, entries: list[Entry], known: dict[Way, Site], now: float) -> None:
    """All of them through the scheduler, as the dispatcher takes them."""
    for entry in entries:
        scheduler.add(entry, now)
    scheduler.advance(now)
    for way in scheduler.unbound.asked():
        scheduler.bind(way, known[way], now + TTL, now)
    while (taken := scheduler.take(now)) is not None:
        site, entry = taken
        scheduler.sites.release(site, entry, _SERVED, now)
        scheduler.finish(entry)


if __name__ == "__main__":
    main()
