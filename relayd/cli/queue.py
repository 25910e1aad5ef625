"""`relayd queue list|show|hold|release`: what waits, and whether it may go.

Asks the running server. Where none runs, list and show read the spool themselves; nothing can be changed then.
"""

from __future__ import annotations

import os
from typing import Annotated, TypeVar

import msgspec
import typer

from relayd import clock
from relayd.cli import options, output
from relayd.config.schema import Spool
from relayd.control import client, protocol
from relayd.control.protocol import Done, Listing, MessageView, QueueHold, QueueList, QueueShow, RecipientView
from relayd.message import queue_id
from relayd.spool.index import IndexDamagedError
from relayd.spool.store import StoreError
from relayd.spool.viewer import Viewer

app = typer.Typer(help="What waits to be delivered.", no_args_is_help=True)

_SHOWN_RECIPIENTS = 3

T = TypeVar("T", bound=msgspec.Struct)


@app.command("list")
def list_(
    contains: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="Only messages whose id, sender, recipient or account contains it.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=protocol.MAX_LISTED, help="Messages shown.")] = 1000,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """List queued messages, oldest first."""
    query = QueueList(contains, limit)
    listing = _ask(options.settings(config).spool, query, Listing)
    if json:
        output.document(listing)
        return
    output.table(("Id", "Age", "Size", "State", "Sender", "Recipients"), map(_row, listing.messages))
    if output.console.is_terminal or listing.total > len(listing.messages):
        output.errors.print(f"{len(listing.messages)} of {listing.total} messages")


@app.command()
def show(
    message: Annotated[str, typer.Argument(metavar="ID", help="Of the message.")],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Show one message: its envelope, and where each recipient's delivery stands."""
    if not queue_id.is_valid(message):
        output.fail(f"{message!r} is not a queue id", os.EX_USAGE)
    view = _ask(options.settings(config).spool, QueueShow(message), MessageView)
    if json:
        output.document(view)
    else:
        _print(view)


@app.command()
def hold(
    messages: Annotated[list[str], typer.Argument(metavar="ID...", help="Of the messages.")],
    config: options.Config = None,
) -> None:
    """Hold messages back until they are released, across restarts too. An attempt under way ends as it may."""
    _hold(messages, config, held=True)


@app.command()
def release(
    messages: Annotated[list[str], typer.Argument(metavar="ID...", help="Of the messages.")],
    config: options.Config = None,
) -> None:
    """Let held messages go on."""
    _hold(messages, config, held=False)


def _hold(messages: list[str], config: options.Config, *, held: bool) -> None:
    """Each message by itself, so that one that is gone does not keep the others."""
    spool = options.settings(config).spool
    missing = 0
    for message in messages:
        try:
            client.ask(spool.path, QueueHold(message, held), Done)
        except client.NoServerError:
            output.fail("no relayd runs on this spool", os.EX_UNAVAILABLE)
        except client.ControlError as error:
            output.errors.print(f"{message}: {error}", markup=False)
            missing += 1
        except OSError as error:
            output.fail(*output.problem_of(error, spool.path))
    if missing:
        raise typer.Exit(os.EX_DATAERR)


def _ask(spool: Spool, request: QueueList | QueueShow, kind: type[T]) -> T:
    """The server's answer, or the spool's own where no server runs."""
    try:
        try:
            return client.ask(spool.path, request, kind)
        except client.NoServerError:
            return msgspec.convert(_read(spool, request), kind, from_attributes=True)
    except (client.ControlError, StoreError, IndexDamagedError) as error:
        output.fail(str(error), os.EX_DATAERR)
    except OSError as error:
        output.fail(*output.problem_of(error, spool.path))


def _read(spool: Spool, request: QueueList | QueueShow) -> Listing | MessageView:
    with Viewer(*spool.directories) as viewer:
        if isinstance(request, QueueList):
            return protocol.listing(viewer.messages(), request, clock.wall())
        message = viewer.find(request.id)
    if message is None:
        raise client.ControlError("no such message")
    return protocol.view(message, clock.wall())


def _row(view: MessageView) -> tuple[str, ...]:
    addresses = [recipient.address for recipient in view.recipients]
    more = f" and {len(addresses) - _SHOWN_RECIPIENTS} more" if len(addresses) > _SHOWN_RECIPIENTS else ""
    recipients = ", ".join(addresses[:_SHOWN_RECIPIENTS]) + more
    return view.id, output.duration(view.age), output.size(view.size), view.state, f"<{view.sender}>", recipients


def _print(view: MessageView) -> None:
    for title, text in (
        ("Id", view.id),
        ("State", view.state),
        ("Sender", f"<{view.sender}>"),
        ("Account", view.account or "-"),
        ("Client", view.client or "-"),
        ("Size", output.size(view.size)),
        ("Age", output.duration(view.age)),
    ):
        output.console.print(f"{title + ':':9}{text}")
    output.table(("Recipient", "State", "Attempts", "Due", "Host", "Reply"), map(_recipient_row, view.recipients))


def _recipient_row(recipient: RecipientView) -> tuple[str, ...]:
    wait = "" if recipient.due is None else f"in {output.duration(max(recipient.due - clock.wall(), 0))}"
    return recipient.address, recipient.state, str(recipient.attempts), wait, recipient.host, recipient.reply
