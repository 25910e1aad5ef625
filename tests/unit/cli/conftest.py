"""Runs `relayd …` in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from relayd.cli import app


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("user", "list", stdin="…")`: exit code and output, as a process would have them."""

    def invoke(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["relayd", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape"))))
        with pytest.raises(SystemExit) as end:
            app.main()
        return Result(end.value.code if isinstance(end.value.code, int) else 0, *capsys.readouterr())

    return invoke
