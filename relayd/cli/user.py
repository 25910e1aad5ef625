"""`relayd user add|passwd|list|remove`: who may submit mail. Works while the server runs: it re-reads the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from relayd.auth import users
from relayd.cli import options, output, process

app = typer.Typer(help="Who may submit mail.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As the client says it at AUTH.")]


@app.command()
def add(name: Name, password_stdin: options.PasswordStdin = False, config: options.Config = None) -> None:
    """Add a user."""
    with _users_file(config) as path:
        users.add(path, name, options.password(from_stdin=password_stdin))


@app.command()
def passwd(name: Name, password_stdin: options.PasswordStdin = False, config: options.Config = None) -> None:
    """Change a user's password."""
    with _users_file(config) as path:
        _require(path, name)
        users.passwd(path, name, options.password(from_stdin=password_stdin))


@app.command()
def remove(name: Name, config: options.Config = None) -> None:
    """Remove a user."""
    with _users_file(config) as path:
        _require(path, name)
        users.remove(path, name)


@app.command("list")
def list_(config: options.Config = None, json: options.Json = False) -> None:
    """List the users."""
    with _users_file(config) as path:
        names = sorted(users.names(path))
    if json:
        output.document(names)
    else:
        for name in names:
            output.console.print(name)


def _require(path: Path, name: str) -> None:
    if users.canonical(name) not in users.names(path):
        output.fail(f"no user {name}", os.EX_NOUSER)


@contextmanager
def _users_file(config: Path | None) -> Iterator[Path]:
    """The users file of the configuration; what goes wrong with it becomes a line and an exit code."""
    settings = options.settings(config)
    path = settings.auth.users_file
    try:
        yield path
        if settings.process.user:
            process.give(path, settings.process.user)
    except users.UsersError as error:
        output.fail(str(error), os.EX_DATAERR)
    except OSError as error:
        output.fail(*output.problem_of(error, path))
