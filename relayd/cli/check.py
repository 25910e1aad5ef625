"""`relayd check`: every problem of the configuration at once."""

from __future__ import annotations

import os

import typer

from relayd.cli import options, output
from relayd.config import load


def check(config: options.Config = None, json: options.Json = False) -> None:
    """Check the configuration: "ok", or every problem with file, key, value and reason (exit 78)."""
    path = config or load.find()
    try:
        load.load(path)
    except load.ConfigError as error:
        _report(error.problems, json=json)
        raise typer.Exit(os.EX_CONFIG) from None
    if json:
        output.document({"ok": True, "problems": []})
    else:
        output.console.print(f"{path}: ok")


def _report(problems: list[load.Problem], *, json: bool) -> None:
    if json:
        output.document({"ok": False, "problems": [problem._asdict() for problem in problems]})
    elif output.console.is_terminal:
        output.table(("File", "Key", "Value", "Reason"), problems)
    else:
        for problem in problems:
            output.console.print(str(problem))
