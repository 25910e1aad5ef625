"""The command `relayd`: its subcommands, and exit codes of sysexits."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from relayd import __version__
from relayd.cli import queue, spool, user
from relayd.cli.check import check
from relayd.cli.demo import demo
from relayd.cli.init import init
from relayd.cli.serve import serve
from relayd.cli.worker import worker

app = typer.Typer(
    name="relayd",
    help="A high-throughput SMTP relay and smarthost that loses nothing it answered 250 to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables: passwords among them
    rich_markup_mode=None,
)
for command in (init, serve, check, demo):
    app.command()(command)
app.command(hidden=True)(worker)
app.add_typer(user.app, name="user")
app.add_typer(queue.app, name="queue")
app.add_typer(spool.app, name="spool")

_USAGE = 2
"""What click exits with where the arguments are wrong; sysexits says 64."""


def _show_version(*, wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"relayd {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=lambda wanted: _show_version(wanted=wanted), is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the process's exit code follows sysexits, 130 after an interrupt."""
    try:
        app()
    except SystemExit as end:
        sys.exit(os.EX_USAGE if end.code == _USAGE else end.code)
    except KeyboardInterrupt:
        sys.exit(130)
