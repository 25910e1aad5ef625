"""`relayd demo`: a relay, four kinds of destination, a thousand messages, and an account of every recipient.

Owns the course of the demonstration: a real `relayd serve` on free loopback ports over a scratch spool, mail submitted
over STARTTLS and AUTH, and the judgement at the end. Mail, hosts and ledger are `demo_mail`, `demo_hosts` and
`demo_ledger`. Called by `app`; ends with exit status 1 when a recipient is not accounted for.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated

import aiosmtplib
import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relayd.cli import demo_hosts, demo_mail
from relayd.cli.demo_hosts import Host
from relayd.cli.demo_ledger import Ledger, Tally
from relayd.cli.demo_mail import Mail
from relayd.cli.demo_relay import DemoError, Relay

_CONNECTIONS = 8
_PATIENCE = 180.0
"""Seconds the queue may take to empty."""

Report = Callable[[int], None]
"""Told how many are done."""


class Course(msgspec.Struct):
    """What a run of the demonstration brought: seconds of submitting and until the queue was empty, and the tallies."""

    messages: int
    submitted: float
    emptied: float
    tallies: dict[str, Tally]
    deferrals: dict[str, int]
    notifications: list[tuple[str, bytes]]


def demo(
    messages: Annotated[int, typer.Option(min=1, help="How many messages to send.")] = 1000,
    seed: Annotated[int, typer.Option(help="Which ones: the same for the same seed.")] = 1,
) -> None:
    """Show relayd at work: send mail to four kinds of destination and account for every recipient."""
    console = _console()
    try:
        with tempfile.TemporaryDirectory(prefix="relayd-demo-") as scratch:
            course = uvloop.run(_run(console, Path(scratch), messages, seed))
    except DemoError as error:
        console.print(f"demo: {error}")
        raise typer.Exit(1) from error
    _show(console, course)
    if not all(tally.sound for tally in course.tallies.values()):
        raise typer.Exit(1)


def _console() -> Console:
    """As wide as the table needs where no terminal says how wide it is."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=140)


async def _run(console: Console, scratch: Path, count: int, seed: int) -> Course:
    hosts = {
        demo_mail.ACCEPTING: Host("mx.accepting.example", demo_hosts.accept),
        demo_mail.GREYLISTING: Host("mx.greylisting.example", demo_hosts.greylist()),
        demo_mail.REFUSING: Host("mx.refusing.example", demo_hosts.refuse),
        demo_mail.FAILOVER: Host("mx2.failover.example", demo_hosts.accept),
        demo_mail.SENDERS: Host("mx.senders.example", demo_hosts.accept),
    }
    ledger = Ledger()
    async with _serving(hosts), Relay(scratch, _routes(hosts), secrets.token_urlsafe()) as relay:
        console.print(f"relayd takes mail on {relay.submission}; its metrics are at {relay.admin}/metrics")
        mails = list(demo_mail.compose(count, seed))
        started = time.monotonic()
        with _progress(console, "submitted", count) as report:
            await _submit(relay, mails, ledger, report)
        submitted = time.monotonic() - started
        with _progress(console, "left the queue", count) as report:
            await _emptied(relay, count, report)
        emptied = time.monotonic() - started
    notifications = hosts.pop(demo_mail.SENDERS).received
    deliveries = (delivery for host in hosts.values() for delivery in host.received)
    tallies = ledger.judge(deliveries, notifications)
    deferrals = {domain: host.codes["451"] for domain, host in hosts.items()}
    return Course(count, submitted, emptied, tallies, deferrals, notifications)


@contextlib.asynccontextmanager
async def _serving(hosts: dict[str, Host]) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts.values():
            await stack.enter_async_context(host.serving())
        yield


def _routes(hosts: dict[str, Host]) -> dict[str, tuple[int, ...]]:
    """Next hops' ports by domain; before the second host of the failover domain stands one where nobody listens."""
    routes: dict[str, tuple[int, ...]] = {domain: (host.port,) for domain, host in hosts.items()}
    routes[demo_mail.FAILOVER] = (demo_hosts.free_port(), *routes[demo_mail.FAILOVER])
    return routes


async def _submit(relay: Relay, mails: list[Mail], ledger: Ledger, report: Report) -> None:
    """Send all over a few connections at once, each taking the next message when it has done with one."""
    remaining = iter(mails)
    done = 0

    async def session() -> None:
        nonlocal done
        async with _client(relay) as client:
            for mail in remaining:
                await client.sendmail(mail.sender, mail.recipients, mail.content, mail_options=mail.options)
                ledger.accepted(mail)
                done += 1
                report(done)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_CONNECTIONS):
                group.create_task(session())
    except* (aiosmtplib.SMTPException, OSError) as refusals:
        raise DemoError(f"a message was not taken: {refusals.exceptions[0]}") from refusals


def _client(relay: Relay) -> aiosmtplib.SMTP:
    host, _, port = relay.submission.rpartition(":")
    context = ssl.create_default_context(cafile=relay.certificate)
    context.check_hostname = False  # the certificate names the relay, which is reached by its address
    return aiosmtplib.SMTP(
        hostname=host, port=int(port), start_tls=True, tls_context=context, username=relay.user, password=relay.password
    )


async def _emptied(relay: Relay, count: int, report: Report) -> None:
    """Wait until no message is queued, notifications included."""
    deadline = time.monotonic() + _PATIENCE
    while (queued := await relay.queued()) > 0:
        if time.monotonic() > deadline:
            raise DemoError(f"{queued} messages are still queued after {_PATIENCE:.0f} s")
        report(max(count - queued, 0))
        await asyncio.sleep(0.1)
    report(count)


@contextlib.contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Report]:
    """A bar on a terminal; a line for each quarter elsewhere."""
    if not console.is_terminal:
        yield _lines(console, what, total)
        return
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(console: Console, what: str, total: int) -> Report:
    shown = 0

    def report(done: int) -> None:
        nonlocal shown
        quarter = 4 * done // total
        if quarter > shown:
            shown = quarter
            console.print(f"{what} {done} of {total}")

    return report


def _show(console: Console, course: Course) -> None:
    if course.notifications:
        sender, content = course.notifications[0]
        console.rule(f"one notification, as {sender} received it")
        console.print(content.decode("utf-8", "backslashreplace").replace("\r\n", "\n"))
    console.rule("what became of every recipient")
    console.print(_table(course))
    recipients = sum(tally.recipients for tally in course.tallies.values())
    console.print(
        f"{course.messages} messages, {recipients} recipients, {len(course.notifications)} notifications: "
        f"taken in {course.submitted:.1f} s "
        f"({course.messages / course.submitted:.0f} messages/s over STARTTLS and AUTH), "
        f"queue empty after {course.emptied:.1f} s ({recipients / course.emptied:.0f} recipients/s). "
        "The demo's own clients and hosts share this machine; benchmarks/ measures the relay."
    )
    sound = all(tally.sound for tally in course.tallies.values())
    console.print("Every recipient is accounted for." if sound else "NOT every recipient is accounted for.")


def _table(course: Course) -> Table:
    table = Table("destination", "what it does", box=None)
    for column in ("recipients", "deferred once", "delivered", "bounced", "missing", "altered", "repeated"):
        table.add_column(column, justify="right")
    tempers = {
        demo_mail.ACCEPTING: "accepts",
        demo_mail.GREYLISTING: "greylists, then accepts",
        demo_mail.REFUSING: "refuses the user",
        demo_mail.FAILOVER: "first host down, second accepts",
    }
    for domain in sorted(course.tallies):
        tally = course.tallies[domain]
        counts = (tally.delivered, tally.bounced, tally.missing, tally.altered, tally.repeated)
        first = (domain, tempers.get(domain, "?"), tally.recipients, course.deferrals.get(domain, 0))
        table.add_row(*map(str, first + counts), style=None if tally.sound else "red")
    return table
