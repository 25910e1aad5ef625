"""`relayd init` and `relayd check`: a directory ready to serve, and what is wrong with one that is not."""

import json
import ssl
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509

from relayd.auth import users
from relayd.config.load import load
from tests.unit.cli.conftest import Run


def test_what_init_writes_is_ready(run: Run, tmp_path: Path) -> None:
    made = run("init", tmp_path / "r", "--hostname", "relay.example", "--user", "ada")
    assert made.code == 0, made.err
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if "lock" not in p.name) == [
        "cert.pem", "key.pem", "relayd.toml", "users",
    ]  # fmt: skip
    checked = run("check", "--config", tmp_path / "r/relayd.toml")
    assert checked.code == 0, checked.out
    assert checked.out == f"{tmp_path}/r/relayd.toml: ok\n"
    assert users.names(tmp_path / "r/users") == ["ada"]


def test_the_listeners_of_init(run: Run, tmp_path: Path) -> None:
    run("init", tmp_path)
    settings = load(tmp_path / "relayd.toml")
    assert [(str(listener.bind), listener.kind.value) for listener in settings.listeners] == [
        ("127.0.0.1:2587", "submission"),
        ("127.0.0.1:2465", "submissions"),
        ("127.0.0.1:2525", "relay"),
    ]
    assert str(settings.admin.bind) == "127.0.0.1:9925"
    assert all(network.is_loopback for network in settings.relay.trusted_networks)


def test_the_password_is_shown_once_and_works(run: Run, tmp_path: Path) -> None:
    out = run("init", tmp_path, "--user", "ada").out
    [password] = [line.split()[1] for line in out.splitlines() if line.startswith("password")]
    hashed = users.load(tmp_path / "users")["ada"]
    assert users.HASHER.verify(hashed, password)
    assert password not in "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_password_of_ones_own_is_not_shown(run: Run, tmp_path: Path) -> None:
    made = run("init", tmp_path, "--user", "ada", "--password-stdin", stdin="correct horse\nmore\n")
    assert "correct horse" not in made.out
    assert users.HASHER.verify(users.load(tmp_path / "users")["ada"], "correct horse")


def test_certificate(run: Run, tmp_path: Path) -> None:
    run("init", tmp_path, "--hostname", "relay.example")
    certificate = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["relay.example", "localhost"]
    assert "127.0.0.1" in map(str, names.get_values_for_type(x509.IPAddress))
    ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    for name in ("key.pem", "users"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["relayd.toml", "cert.pem", "key.pem", "users"])
def test_nothing_is_overwritten(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused = run("init", tmp_path)
    assert refused.code == 73
    assert name in refused.err
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--hostname", "no name"], 64), (["--user", "no name"], 65), (["--password-stdin"], 65), (["--nonsense"], 64)],
)
def test_refused(run: Run, tmp_path: Path, arguments: list[str], code: int) -> None:
    refused = run("init", tmp_path / "r", *arguments)
    assert refused.code == code
    assert refused.err
    assert not (tmp_path / "r/relayd.toml").exists()


def test_a_directory_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run("init", tmp_path / "file" / "r").code == 73


def test_a_host_whose_own_name_is_unusable(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "bad_name!")
    assert run("init", tmp_path).code == 0
    assert load(tmp_path / "relayd.toml").hostname == "localhost"


def test_check_says_everything(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text("hostnme = 1\n[limits]\nmemory = 'x'\n")
    checked = run("check", "--config", path)
    assert checked.code == 78
    assert len(checked.out.splitlines()) == 3
    assert all(line.startswith(f"{path}: ") for line in checked.out.splitlines())
    document = json.loads(run("check", "--json", "--config", path).out)
    assert {problem["key"] for problem in document["problems"]} == {"hostname", "hostnme", "limits.memory"}
    assert set(document["problems"][0]) == {"file", "key", "value", "reason"}


def test_check_on_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.cli.output.console._force_terminal", True)
    monkeypatch.setattr("relayd.cli.output.console._width", 300)
    path = tmp_path / "relayd.toml"
    path.write_text('hostname = "[red]x[/red] "\n')
    out = run("check", "--config", path).out
    assert "Reason" in out
    assert "[red]x[/red]" in out  # text of the file is no markup


def test_the_default_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("check").code == 78
    run("init", ".")
    assert run("check").code == 0


def test_usage(run: Run) -> None:
    assert run("nonsense").code == 64
    assert run("check", "--config").code == 64
    assert run("queue", "show").code == 64


def test_version(run: Run) -> None:
    from relayd import __version__

    assert run("--version") == (0, f"relayd {__version__}\n", "")


def test_help_names_every_command(run: Run) -> None:
    out = run("--help").out
    for command in ("init", "serve", "check", "demo", "user", "queue"):
        assert command in out


def test_an_interrupt_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("relayd.config.load.load", interrupt)
    result = run("check")
    assert result.code == 130
    assert "Traceback" not in result.err
    assert sys.exc_info() == (None, None, None)
