"""`relayd worker`: what `relayd serve` starts where several processes serve. Not for anybody else."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from relayd.cli import output
from relayd.supervisor import worker as process


def worker(channel: Annotated[int, typer.Option(min=0, help="Descriptor of the channel to the supervisor.")]) -> None:
    """Serve a share of the relay; started by `relayd serve`."""
    try:
        code = process.run(channel)
    except process.NoSupervisorError:
        output.fail("`relayd worker` is started by `relayd serve`, and serves nobody else", os.EX_USAGE)
    raise typer.Exit(code)
