"""From a file and the environment to settings, or to every problem at once."""

import os
from pathlib import Path

import pytest

from relayd.cli.certificate import self_signed
from relayd.config.load import ConfigError, Problem, find, load


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RELAYD_")]:
        monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    path = directory / "relayd.toml"
    path.write_text(text)
    return path


def problems(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.problems
    return caught.value.problems


def keys(path: Path) -> list[str]:
    return [problem.key for problem in problems(path)]


def test_paths_of_shards_are_relative_to_the_file(tmp_path):
    settings = load(write(tmp_path, 'hostname = "a"\n[spool]\npaths = ["a", "/b"]\n'))
    assert settings.spool.directories == (tmp_path / "a", Path("/b"))


def test_a_path_of_shards_is_named_once(tmp_path):
    assert keys(write(tmp_path, 'hostname = "a"\n[spool]\npaths = ["a", "b", "a"]\n')) == ["spool.paths.2"]


def test_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path, 'hostname = "a.example"'))
    assert settings.spool.path == tmp_path / "spool"
    assert settings.auth.users_file == tmp_path / "users"
    assert str(settings.log.file) == "-"
    assert settings.shards == settings.workers >= 1


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load(
        write(tmp_path, 'hostname = "a"\n[spool]\npath = "x/y"\n[log]\nfile = "l.log"\n[auth]\nusers_file = "/u"')
    )
    assert settings.spool.path == tmp_path / "x/y"
    assert settings.log.file == tmp_path / "l.log"
    assert settings.auth.users_file == Path("/u")


def test_the_environment_stands_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYD_LIMITS__MESSAGE_SIZE", "3MB")
    monkeypatch.setenv("RELAYD_HOSTNAME", "env.example")
    monkeypatch.setenv("RELAYD_LISTENERS", '[{"bind": "127.0.0.1:25", "kind": "relay"}]')
    monkeypatch.setenv("RELAYD_DELIVERY__RETRY_SCHEDULE", '["1s", "2s"]')
    monkeypatch.setenv("RELAYD_RELAY", '{"trusted_networks": ["10.0.0.0/8"]}')
    settings = load(write(tmp_path, 'hostname = "a.example"\n[limits]\nmessage_size = "1MB"\nrecipients = 7'))
    assert (settings.hostname, settings.limits.message_size, settings.limits.recipients) == ("env.example", 3 << 20, 7)
    assert str(settings.listeners[0].bind) == "127.0.0.1:25"
    assert settings.delivery.retry_schedule == (1, 2)
    assert str(settings.relay.trusted_networks[0]) == "10.0.0.0/8"


def test_a_problem_names_the_variable_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYD_LIMITS__MESSAGE_SIZE", "much")
    monkeypatch.setenv("RELAYD_LISTENERS", "[not json")
    monkeypatch.setenv("RELAYD_LIMTS__MEMORY", "1")
    monkeypatch.setenv("RELAYD_PORT", "tcp://10.0.0.1:25")  # an orchestrator's, not ours
    found = {problem.file: problem for problem in problems(write(tmp_path, 'hostname = "a"'))}
    assert set(found) == {"$RELAYD_LIMITS__MESSAGE_SIZE", "$RELAYD_LISTENERS", "$RELAYD_LIMTS__MEMORY"}
    assert 'did you mean "limits"' in found["$RELAYD_LIMTS__MEMORY"].reason


BROKEN = """
hostnme = "x"
workers = 4
[spool]
shards = 2
[limits]
message_size = "50XB"
memry = 3
[[listeners]]
bind = "nonsense"
kind = "relay"
[[listeners]]
bind = "127.0.0.1:99999"
kind = "sub"
[[listeners]]
bind = "127.0.0.1:25"
kind = "submission"
[[listeners]]
bind = "127.0.0.1:25"
kind = "relay"
[relay]
trusted_networks = ["10.0.0.1/8"]
[local]
postmaster = "nobody"
[[routes]]
domains = ["*"]
next_hops = []
[delivery]
retry_schedule = ["2x"]
"""


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, BROKEN)
    found = problems(path)
    assert {problem.key for problem in found} == {
        "hostname", "hostnme", "spool.shards", "limits.message_size", "limits.memry", "listeners[0].bind",
        "listeners[1].bind", "listeners[1].kind", "listeners[2].kind", "listeners[3].bind",
        "relay.trusted_networks[0]", "local.postmaster", "routes[0].next_hops", "delivery.retry_schedule[0]",
    }  # fmt: skip
    assert len(found) == len({problem.key for problem in found})
    assert all(problem.file == str(path) and problem.reason for problem in found)
    by_key = {problem.key: problem for problem in found}
    assert by_key["limits.message_size"].value == '"50XB"'
    assert 'did you mean "memory"' in by_key["limits.memry"].reason
    assert "listeners[2].bind" in by_key["listeners[3].bind"].reason


def test_secrets_are_masked(tmp_path: Path) -> None:
    text = 'hostname = "a"\n[auth]\npassword = "hunter2"\n[limits]\nmemory = {token = "hunter2"}\nx = "smtp://u:hunter2@h"\n'
    found = problems(write(tmp_path, text))
    assert len(found) == 3
    assert "hunter2" not in "".join(map(str, found))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[[routes]]\ndomains = ["*"]\nnext_hops = ["smtp://ada:hun@ter2@mx.example:25"]', "routes[0].next_hops[0]"),
        ('[[routes]]\ndomains = ["*"]\nnext_hops = ["ada:hunter2@mx.example:25"]', "routes[0].next_hops[0]"),
        ('[[routes]]\ndomains = ["*"]\nnext_hops = ["a:1"]\npasword = "hunter2"', "routes[0].pasword"),
        ('[[routes]]\ndomains = ["*"]\nnext_hops = ["a:1"]\ncredentials = "hunter2"', "routes[0].credentials"),
        ('[[routes]]\ncredentials = {username = "a", password = "hunter2"}', "routes[0].domains"),
        ('[routes]\ncredentials = {username = "a", pass_word = "hunter2", password = "ter2"}', "routes"),
    ],
)
def test_secrets_of_routes_are_masked(tmp_path: Path, text: str, key: str) -> None:
    found = problems(write(tmp_path, f'hostname = "a"\n{text}\n'))
    assert key in [problem.key for problem in found]
    assert "ter2" not in "".join(map(str, found))


def test_secrets_in_json_that_cannot_be_read_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYD_ROUTES", '[{"domains": ["*"], "credentials": {"password": "hunter2"')
    [problem] = problems(write(tmp_path, 'hostname = "a"'))
    assert (problem.file, problem.key, problem.value) == ("$RELAYD_ROUTES", "routes", "***")


def test_a_path_with_a_telling_name_is_shown(tmp_path: Path) -> None:
    text = '[tls]\ncertificate = "/run/secrets/none.pem"\nprivate_key = "/run/secrets/none.key"'
    assert "/run/secrets/none.pem" in str(problems(write(tmp_path, f'hostname = "a"\n{text}\n'))[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hostname = \n", "line 1"),
        (b"a = 1\na = 2\n\n", "line 2"),
        (b'hostname = "\xff"', "UTF-8"),
        (b"a = " + b"[" * 9999, "nested"),
    ],
)
def test_what_is_not_toml(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "relayd.toml"
    path.write_bytes(content)
    [problem] = problems(path)
    assert problem.file == str(path)
    assert reason in problem.reason


def test_a_missing_file(tmp_path: Path) -> None:
    [problem] = problems(tmp_path / "none.toml")
    assert "No such file" in problem.reason


def test_a_directory_as_file(tmp_path: Path) -> None:
    [problem] = problems(tmp_path)
    assert "directory" in problem.reason


TLS = 'hostname = "a"\n[tls]\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'


def test_certificate_and_key_are_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path, TLS)
    assert keys(path) == ["tls.certificate", "tls.private_key"]
    certificate, key = self_signed("a")
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    load(path)
    (tmp_path / "key.pem").write_bytes(self_signed("a")[1])
    assert "not the key" in problems(path)[0].reason
    (tmp_path / "key.pem").write_bytes(b"no key")
    assert keys(path) == ["tls.private_key"]
    (tmp_path / "cert.pem").write_bytes(b"no certificate")
    assert keys(path) == ["tls.certificate"]


@pytest.mark.parametrize("kind", ["submission", "submissions"])
def test_listeners_that_need_tls(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, f'hostname = "a"\n[[listeners]]\nbind = "127.0.0.1:25"\nkind = "{kind}"\n')
    assert keys(path) == ["listeners[0].kind"]


def test_a_broken_tls_section_is_not_called_missing(tmp_path: Path) -> None:
    text = 'hostname = "a"\n[tls]\ncertificate = "c"\n[[listeners]]\nbind = "127.0.0.1:25"\nkind = "submission"\n'
    assert keys(write(tmp_path, text)) == ["tls.private_key"]


def test_binds_meet_the_admin_port_too(tmp_path: Path) -> None:
    text = 'hostname = "a"\n[[listeners]]\nbind = "127.0.0.1:9925"\nkind = "relay"\n'
    assert keys(write(tmp_path, text)) == ["admin.bind"]


def test_any_free_port_never_meets_another(tmp_path: Path) -> None:
    listener = '[[listeners]]\nbind = "127.0.0.1:0"\nkind = "relay"\n'
    load(write(tmp_path, f'hostname = "a"\n{listener}{listener}'))


def test_what_the_machine_has_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = 'hostname = "a"\n[spool]\npath = "file"\n[log]\nfile = "none/x"\n[process]\nuser = "no such user"\n'
    assert keys(write(tmp_path, text)) == ["spool.path", "log.file", "process.user"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[tls]\ncertificate = "a\\u0000b"\nprivate_key = "k"', "tls.certificate"),
        ('[log]\nfile = "a\\u0000b"', "log.file"),
        ('[auth]\nusers_file = "a\\u0000b"', "auth.users_file"),
        ('[process]\nuser = "a\\u0000b"', "process.user"),
        (f'[spool]\npath = "{"x" * 5000}"', "spool.path"),
        (f'[log]\nfile = "{"x" * 5000}/y"', "log.file"),
    ],
)
def test_names_that_no_system_takes(tmp_path: Path, text: str, key: str) -> None:
    assert key in keys(write(tmp_path, f'hostname = "a"\n{text}\n'))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_directories_that_are_not_ours_to_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    text = 'hostname = "a"\n[spool]\npath = "closed/x/spool"\n[log]\nfile = "closed/x/log"\n'
    path = write(tmp_path, text)
    monkeypatch.setattr("relayd.config.load.DEFAULT_FILES", (Path("closed/x.toml"), Path("other.toml")))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    os.seteuid(65534)
    try:
        assert keys(Path(path.name)) == ["spool.path", "log.file"]
        assert find() == Path("closed/x.toml")
    finally:
        os.seteuid(0)
