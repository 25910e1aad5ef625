"""How commands print: rich tables on a terminal, plain lines elsewhere, one JSON document where asked for; exit codes.

Text of peers is printed as `Text`, never as markup; the parsers have kept control characters out of it already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Without emoji=False an IPv6 address with ":a:" in it is shown as something else.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Say why on standard error and exit with a code of sysexits."""
    errors.print(f"relayd: {message}", style="red" if errors.is_terminal else None)
    raise typer.Exit(code)


def document(value: object) -> None:
    """One JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under titles; on anything but a terminal, lines of columns between tabs, titles first."""
    if not console.is_terminal:
        for row in (titles, *rows):
            sys.stdout.write("\t".join(row) + "\n")
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid, soft_wrap=False)


def duration(seconds: float) -> str:
    """Seconds for a reader: "45s", "12m", "3h 20m", "2d 4h"."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m" if minutes else f"{whole}s"


def size(octets: int) -> str:
    """Octets for a reader: "812B", "4.2KB", "1.3MB"."""
    value = float(octets)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}GB"


def problem_of(error: OSError, about: object) -> tuple[str, int]:
    """What an OSError about a file or socket means to the user, and its exit code."""
    match error:
        case PermissionError():
            code = os.EX_NOPERM
        case FileNotFoundError() | NotADirectoryError():
            code = os.EX_NOINPUT
        case _:
            code = os.EX_IOERR
    return f"{error.filename or about}: {error.strerror or error}", code
