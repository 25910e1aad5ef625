"""What many sites cost the scheduler: CPU a message, of one domain and of 100,000 with a site each.

The pure scheduler alone, from `add` to `finish`. See README.md here for the method. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from results import facts, write
from rich.console import Console
from rich.table import Table

from relayd.message.envelope import Envelope
from relayd.message.site import Host, Site, Way
from relayd.scheduler.entry import Entry
from relayd.scheduler.feedback import SERVED, Report
from relayd.scheduler.scheduler import Scheduler
from relayd.smtp.address import Address

DOMAINS = 100_000

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
    """The shapes take turns with every lot, so that each meets the machine's fast and slow seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=10_000, metavar="N", help="messages that wait at once")
    parser.add_argument("--rounds", type=int, default=5, help="parts of the run whose ratios are compared")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs there, too")
    options = parser.parse_args()
    schedulers = {shape: Scheduler() for shape in SHAPES}
    spent: dict[str, list[float]] = {shape: [0.0] * options.rounds for shape in SHAPES}
    for first in range(0, options.messages, options.waiting):
        for shape, scheduler in schedulers.items():
            part = first * options.rounds // options.messages
            spent[shape][part] += seconds(scheduler, SHAPES[shape], range(first, first + options.waiting))
    each = options.messages / options.rounds / 1e6
    runs = {shape: [taken / each for taken in parts] for shape, parts in spent.items()}
    usual = next(iter(runs.values()))
    table = Table("shape", "µs a message", "ratio", "lowest", "highest")
    for shape, parts in runs.items():
        ratios = [one / other for one, other in zip(parts, usual, strict=True)]
        figures = (statistics.median(parts), statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(shape, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    if options.json:
        written = {"facts": facts(None), "messages": options.messages, "waiting": options.waiting, "runs": runs}
        write(options.json, written)


def seconds(scheduler: Scheduler, domain_of: Callable[[int], int], numbers: range) -> float:
    """CPU of a lot, without that of making it."""
    entries = _entries(domain_of, numbers)
    known = {entry.way: Site(((Host(f"mx.{entry.domain}", 25),),)) for entry in entries}
    started = time.process_time()
    _carry(scheduler, entries, known, numbers.start / RATE)
    return time.process_time() - started


@functools.lru_cache(10_000)
def _way(domain: str) -> Way:
    """Shared by messages of a domain, as the router does."""
    return Way(domain)


def _entries(domain_of: Callable[[int], int], numbers: range) -> list[Entry]:
    """Made in any order: how close they are in memory is not to depend on the shape."""
    made = {}
    for number in random.sample(numbers, len(numbers)):
        domain = f"domain-{domain_of(number)}.example"
        envelope = Envelope(f"m{number}", Address(""), (Address(f"u@{domain}"),), "user:bench", 0.0, 1)
        made[number] = Entry(envelope, _way(domain), (0,))
    return [made[number] for number in numbers]


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
