"""`relayd user`."""

import json
from pathlib import Path

import pytest

from relayd.auth import users
from tests.unit.cli.conftest import Run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "relayd.toml"
    path.write_text('hostname = "a.example"\n')
    return path


def test_add_list_passwd_remove(run: Run, config: Path) -> None:
    at = ("--config", config)
    assert run("user", "list", *at) == (0, "", "")
    assert run("user", "add", "zoe", "--password-stdin", *at, stdin="one\n").code == 0
    assert run("user", "add", "ada", "--password-stdin", *at, stdin="two").code == 0
    assert run("user", "list", *at).out == "ada\nzoe\n"
    assert json.loads(run("user", "list", "--json", *at).out) == ["ada", "zoe"]
    assert run("user", "passwd", "zoe", "--password-stdin", *at, stdin="three\r\n").code == 0
    assert users.HASHER.verify(users.load(config.parent / "users")["zoe"], "three")
    assert run("user", "remove", "zoe", *at).code == 0
    assert run("user", "list", *at).out == "ada\n"


@pytest.mark.parametrize("arguments", [("passwd", "ghost", "--password-stdin"), ("remove", "ghost")])
def test_no_such_user(run: Run, config: Path, arguments: tuple[str, ...]) -> None:
    result = run("user", *arguments, "--config", config, stdin="x\n")
    assert result.code == 67
    assert "ghost" in result.err


def test_a_user_there_already(run: Run, config: Path) -> None:
    run("user", "add", "ada", "--password-stdin", "--config", config, stdin="one\n")
    result = run("user", "add", "ada", "--password-stdin", "--config", config, stdin="two\n")
    assert result.code == 65
    assert users.HASHER.verify(users.load(config.parent / "users")["ada"], "one")


@pytest.mark.parametrize("stdin", ["", "\n", "x" * 2000, "a\0b\n", "\udcff\n"])
def test_passwords_that_are_none(run: Run, config: Path, stdin: str) -> None:
    result = run("user", "add", "ada", "--password-stdin", "--config", config, stdin=stdin)
    assert result.code == 65
    assert users.names(config.parent / "users") == []


def test_no_terminal_to_ask_on(run: Run, config: Path) -> None:
    result = run("user", "add", "ada", "--config", config, stdin="secret\n")
    assert result.code == 64
    assert "--password-stdin" in result.err


def test_a_broken_users_file(run: Run, config: Path) -> None:
    (config.parent / "users").write_bytes(b"\xff\xfe")
    assert run("user", "list", "--config", config).code == 65


def test_a_broken_configuration(run: Run, config: Path) -> None:
    config.write_text("x")
    result = run("user", "list", "--config", config)
    assert result.code == 78
    assert str(config) in result.err
