"""`relayd spool inspect|verify|export`: the spool's files themselves, read without lock or change.

They work beside a running server and without one, and never ask it: what they show is what a start would find. Reading
is `spool/viewer.py` and `spool/audit.py`; the form of an exported message is `spool_export`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from relayd import clock
from relayd.cli import options, output
from relayd.cli.spool_export import Exporter, UnreadableError
from relayd.message import queue_id
from relayd.spool.audit import Audit, Flaw, audit
from relayd.spool.index_file import IndexDamagedError
from relayd.spool.index_view import MissingError
from relayd.spool.records import Message
from relayd.spool.store import StoreError
from relayd.spool.viewer import SegmentView, ShardView, Stock, Viewer

app = typer.Typer(help="The files of the queue, read without lock or change.", no_args_is_help=True)

_LISTED = 10_000
"""Flaws in a JSON document; all are counted."""


class IndexReport(msgspec.Struct, frozen=True):
    """An index. octets: of its files. taken: the newest segment that is in it whole."""

    format: int
    messages: int
    octets: int
    taken: int


class ShardReport(msgspec.Struct, frozen=True):
    """A shard. journal: messages that a server would have in memory; at_rest: in the index alone. oldest: seconds.

    torn: unfinished batches at the journal's end. damaged: ranges of the journal that cannot be read.
    """

    shard: int
    directory: str
    segments: list[SegmentView]
    index: IndexReport | None
    bodies: Stock | None
    quarantine: Stock
    journal: int
    at_rest: int
    oldest: float | None
    torn: int
    damaged: int


class Totals(msgspec.Struct, frozen=True):
    """Of all shards. octets: of segments, indexes and bodies."""

    messages: int
    journal: int
    at_rest: int
    segments: int
    octets: int
    quarantine: Stock
    oldest: float | None


class Inspection(msgspec.Struct, frozen=True):
    """A spool. problems: what could not be read for it."""

    shards: list[ShardReport]
    totals: Totals
    problems: list[str]


class Verdict(msgspec.Struct, frozen=True):
    """What was read, and what is damaged in it."""

    sound: bool
    read: Audit
    flaws: list[Flaw]


# --- inspect ----------------------------------------------------------------------------------------------------------


@app.command()
def inspect(json: options.Json = False, config: options.Config = None) -> None:
    """Show what each shard holds: segments, index, bodies, quarantine, messages."""
    spools = options.settings(config).spool.directories
    problems: list[str] = []
    with _reading(*spools), Viewer(*spools, tell=problems.append) as viewer:
        now = clock.wall()
        shards = [_shard(shard, now) for shard in viewer.shards]
    if json:
        output.document(Inspection(shards, _totals(shards), problems))
    else:
        _print(shards)
        for problem in problems:
            output.errors.print(f"relayd: {problem}")
    if problems:
        raise typer.Exit(os.EX_DATAERR)


def _shard(shard: ShardView, now: float) -> ShardReport:
    index = shard.index
    accepted = shard.oldest()
    return ShardReport(
        shard=shard.number,
        directory=str(shard.directory),
        segments=list(shard.segments()),
        index=None if index is None else IndexReport(index.version, index.count, shard.index_octets(), index.taken),
        bodies=shard.stock("bodies"),
        quarantine=shard.stock("quarantine") or Stock(0, 0),
        journal=len(shard.ledger.messages),
        at_rest=shard.at_rest,
        oldest=None if accepted is None else round(max(now - accepted, 0.0), 3),
        torn=sum(loss.torn for loss in shard.losses),
        damaged=sum(not loss.torn for loss in shard.losses),
    )


def _totals(shards: list[ShardReport]) -> Totals:
    journal, at_rest = sum(shard.journal for shard in shards), sum(shard.at_rest for shard in shards)
    octets = sum(segment.octets for shard in shards for segment in shard.segments)
    octets += sum(shard.index.octets for shard in shards if shard.index)
    octets += sum(shard.bodies.octets for shard in shards if shard.bodies)
    quarantine = [shard.quarantine for shard in shards]
    return Totals(
        messages=journal + at_rest,
        journal=journal,
        at_rest=at_rest,
        segments=sum(len(shard.segments) for shard in shards),
        octets=octets,
        quarantine=Stock(sum(stock.files for stock in quarantine), sum(stock.octets for stock in quarantine)),
        oldest=max((shard.oldest for shard in shards if shard.oldest is not None), default=None),
    )


def _print(shards: list[ShardReport]) -> None:
    output.table(
        ("Shard", "Journal", "At rest", "Oldest", "Segments", "Index", "Bodies", "Quarantine", "Damage", "Directory"),
        map(_row, shards),
    )
    output.console.print()
    output.table(
        ("Shard", "Segment", "Format", "Size", "Answers for"),
        (_segment(shard, segment) for shard in shards for segment in shard.segments),
    )
    output.console.print()
    totals = _totals(shards)
    oldest = "" if totals.oldest is None else f", the oldest {output.duration(totals.oldest)} old"
    output.console.print(
        f"{totals.messages} messages: {totals.journal} in journals, {totals.at_rest} at rest{oldest}. "
        f"{totals.segments} segments; {output.size(totals.octets)} in all; quarantine: {_stock(totals.quarantine)}."
    )


def _row(shard: ShardReport) -> tuple[str, ...]:
    index = shard.index
    journal = sum(segment.octets for segment in shard.segments)
    taken = "" if index is None else f", format {index.format}, taken {index.taken}"
    return (
        str(shard.shard),
        str(shard.journal),
        str(shard.at_rest),
        "-" if shard.oldest is None else output.duration(shard.oldest),
        f"{len(shard.segments)} ({output.size(journal)})",
        "-" if index is None else f"{index.messages} ({output.size(index.octets)}{taken})",
        _stock(shard.bodies),
        _stock(shard.quarantine),
        f"{shard.damaged} damaged, {shard.torn} torn" if shard.damaged or shard.torn else "-",
        shard.directory,
    )


def _segment(shard: ShardReport, segment: SegmentView) -> tuple[str, ...]:
    version = str(segment.version) if segment.version else "unreadable"
    return str(shard.shard), str(segment.number), version, output.size(segment.octets), str(segment.messages)


def _stock(stock: Stock | None) -> str:
    return f"{stock.files} ({output.size(stock.octets)})" if stock and stock.files else "-"


# --- verify -----------------------------------------------------------------------------------------------------------


@app.command()
def verify(json: options.Json = False, config: options.Config = None) -> None:
    """Read every frame, record, row and body, and name what is damaged; exit 65 when something is."""
    spools = options.settings(config).spool.directories
    flaws: list[Flaw] = []

    def tell(flaw: Flaw) -> None:
        if not json:
            output.console.print(str(flaw))
        elif len(flaws) < _LISTED:
            flaws.append(flaw)

    with _reading(*spools):
        result = audit(*spools, tell=tell)
    if json:
        output.document(Verdict(result.flaws == 0, result, flaws))
    else:
        output.console.print(_summary(result))
    if result.flaws:
        raise typer.Exit(os.EX_DATAERR)


def _summary(result: Audit) -> str:
    text = (
        f"{result.shards} shards, {output.size(result.octets)}: {result.segments} segments, "
        f"{result.messages} messages and {result.bodies} bodies at rest"
    )
    if result.files:
        text += f"; {result.files} bodies in files of their own"
    if result.torn:
        text += f"; {result.torn} unfinished batches, which nobody was told of"
    return f"{text}: {f'{result.flaws} damaged' if result.flaws else 'sound'}"


# --- export -----------------------------------------------------------------------------------------------------------


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it does not exist.")],
    messages: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of messages; else all.")] = None,
    config: options.Config = None,
) -> None:
    """Write queued messages into DIR as ID.eml, with their envelope in X-Relayd fields. They stay in the queue."""
    for name in messages or ():
        if not queue_id.is_valid(name):
            output.fail(f"{name!r} is not a queue id", os.EX_USAGE)
    spools = options.settings(config).spool.directories
    course = _Course()
    with _reading(*spools), Viewer(*spools, tell=course.damaged, strict=False) as viewer:
        try:
            with Exporter(viewer, directory) as exporter:
                for message in _named(viewer, messages, course) if messages else viewer.messages():
                    course.export(exporter, message)
        except OSError as error:
            text, code = output.problem_of(error, directory)
            output.fail(text, os.EX_CANTCREAT if code == os.EX_NOINPUT else code)
    output.errors.print(course.summary())
    if course.code:
        raise typer.Exit(course.code)


def _named(viewer: Viewer, names: Iterable[str], course: _Course) -> Iterator[Message]:
    for name in dict.fromkeys(names):
        message = viewer.find(name)
        if message is None:
            course.damaged(f"{name}: no such message")
        else:
            yield message


class _Course:
    """What came of the messages. code: of the exit."""

    def __init__(self) -> None:
        self.code = os.EX_OK
        self._written = 0
        self._existing = 0
        self._failed = 0

    def export(self, exporter: Exporter, message: Message) -> None:
        """One more message, told where it fails."""
        name = message.envelope.id
        try:
            exporter.write(message)
            self._written += 1
        except FileExistsError:
            self._existing += 1
            self.code = self.code or os.EX_CANTCREAT
            output.errors.print(f"relayd: {name}.eml is there already; it was not changed")
        except UnreadableError as error:
            self.damaged(f"{name}: {error}")
        except MissingError:
            output.errors.print(f"relayd: {name} has left the queue meanwhile")

    def damaged(self, what: str) -> None:
        """Something could not be read."""
        self._failed += 1
        self.code = os.EX_DATAERR
        output.errors.print(f"relayd: {what}")

    def summary(self) -> str:
        """One line."""
        text = f"{self._written} messages written"
        if self._existing:
            text += f", {self._existing} there already"
        return f"{text}, {self._failed} not readable" if self._failed else text


@contextmanager
def _reading(*spools: Path) -> Iterator[None]:
    """A block that reads the spool; what goes wrong becomes a line and an exit code."""
    try:
        yield
    except (StoreError, IndexDamagedError) as error:
        output.fail(str(error), os.EX_DATAERR)
    except OSError as error:
        output.fail(*output.problem_of(error, ", ".join(map(str, spools))))
