"""`relayd init DIR`: a configuration, a self-signed certificate and a first user, ready for `relayd serve`.

Writes into one directory and never over a file that is there.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from relayd.auth import users
from relayd.cli import options, output
from relayd.cli.certificate import self_signed
from relayd.config import example
from relayd.config.schema import Settings

_FILES = ("relayd.toml", "cert.pem", "key.pem", "users")


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it does not exist.")],
    hostname: Annotated[str | None, typer.Option(help="Name of this relay; else the machine's.")] = None,
    user: Annotated[str, typer.Option(help="Name of the first user.")] = "app",
    password_stdin: options.PasswordStdin = False,
) -> None:
    """Write a commented relayd.toml, a self-signed certificate and a first user into DIR."""
    settings = _settings(hostname)
    password = options.password(from_stdin=True) if password_stdin else secrets.token_urlsafe(18)
    try:
        _write(directory, settings, user, password)
    except FileExistsError as error:
        output.fail(f"{error.filename} is there already; nothing was changed", os.EX_CANTCREAT)
    except OSError as error:
        output.fail(f"{error.filename}: {error.strerror}", os.EX_CANTCREAT)
    except users.UsersError as error:
        output.fail(str(error), os.EX_DATAERR)
    _tell(directory, settings, user, "" if password_stdin else password)


def _settings(hostname: str | None) -> Settings:
    """Ports above 1024 on loopback, so that it runs without root and takes nobody's mail."""
    return _valid(hostname) if hostname else _valid(socket.gethostname(), fallback="localhost")


def _valid(hostname: str, *, fallback: str = "") -> Settings:
    options_of_file = {
        "tls": {"certificate": "cert.pem", "private_key": "key.pem"},
        "listeners": [
            {"bind": "127.0.0.1:2587", "kind": "submission"},
            {"bind": "127.0.0.1:2465", "kind": "submissions"},
            {"bind": "127.0.0.1:2525", "kind": "relay"},
        ],
        "relay": {"trusted_networks": ["127.0.0.0/8", "::1/128"]},
    }
    try:
        return Settings.model_validate({"hostname": hostname, **options_of_file})
    except ValidationError as error:
        if fallback:
            return _valid(fallback)
        output.fail(f"--hostname {hostname}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", os.EX_USAGE)


def _write(directory: Path, settings: Settings, user: str, password: str) -> None:
    for name in _FILES:
        if (directory / name).exists():
            raise FileExistsError(None, None, str(directory / name))
    directory.mkdir(parents=True, exist_ok=True)
    users.add(directory / "users", user, password)  # first: it may refuse the name
    certificate, key = self_signed(settings.hostname)
    _create(directory / "key.pem", key, 0o600)
    _create(directory / "cert.pem", certificate, 0o644)
    _create(directory / "relayd.toml", example.render(settings).encode(), 0o644)


def _create(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _tell(directory: Path, settings: Settings, user: str, password: str) -> None:
    config = directory / "relayd.toml"
    for listener in settings.listeners:
        output.console.print(f"{listener.kind.value:12} {listener.bind}")
    output.console.print(f"{'admin':12} http://{settings.admin.bind}/metrics")
    output.console.print(f"{'user':12} {user}")
    if password:
        output.console.print(f"{'password':12} {password}   (shown only now)")
    output.console.print(f"Next: relayd serve --config {config}")
