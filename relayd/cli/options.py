"""Options that several commands share, and the settings behind `--config`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from relayd.cli import output
from relayd.config import load
from relayd.config.schema import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration; else relayd.toml, then /etc/relayd/relayd.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from one line of input.")]

_MAX_PASSWORD = 1024


def settings(config: Path | None) -> Settings:
    """The settings of `--config`; problems go to standard error, exit 78 (EX_CONFIG)."""
    return loaded(config).settings


def loaded(config: Path | None) -> load.Loaded:
    """The same, with what they were made from."""
    try:
        return load.loaded(config or load.find())
    except load.ConfigError as error:
        for problem in error.problems:
            output.errors.print(str(problem))
        raise typer.Exit(os.EX_CONFIG) from None


def password(*, from_stdin: bool) -> str:
    """A password from one line of standard input, or asked for twice on the terminal."""
    if not from_stdin:
        if not sys.stdin.isatty():
            output.fail("no terminal to ask for a password on; use --password-stdin", os.EX_USAGE)
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    line = sys.stdin.buffer.readline(_MAX_PASSWORD + 2).removesuffix(b"\n").removesuffix(b"\r")
    if not line or len(line) > _MAX_PASSWORD:
        output.fail(f"expected a password of 1 to {_MAX_PASSWORD} octets on standard input", os.EX_DATAERR)
    try:
        return line.decode()
    except UnicodeDecodeError:
        output.fail("the password is not UTF-8", os.EX_DATAERR)
