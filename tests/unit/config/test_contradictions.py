"""Each contradiction between options is told, with its key; what does not contradict is not."""

from pathlib import Path

import pytest

from relayd.config import contradictions
from relayd.config.load import ConfigError, load
from relayd.config.schema import Settings


def keys(settings: Settings) -> list[str]:
    return [found.key for _, check in contradictions.CHECKS for found in check(settings)]


def source(name="main", *addresses, accounts=()):
    return {"name": name, "addresses": list(addresses or [{"ipv4": "192.0.2.1"}]), "accounts": accounts}


def quota(*accounts):
    return {"recipients_per_hour": 100, "accounts": accounts}


def route(**options):
    return {"domains": ["*"], "next_hops": ["mx.example:587"], **options}


def credentials(**options):
    return {"username": "ada", **options}


TRUSTED = {"trusted_networks": ["10.0.0.0/8"]}
BOTH = {"ipv4": "192.0.2.2", "ipv6": "2001:db8::2"}
BY_HOSTS = {"hosts": ["*.example"]}
BY_DOMAINS = {"domains": ["*"], "source": "main"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"quotas": [quota(), quota("user:a"), quota("user:b", "net:10.0.0.0/8")], "relay": TRUSTED}, []),
        ({"quotas": [quota("user:a"), quota("user:b", "user:a")]}, ["quotas[1].accounts[1]"]),
        ({"quotas": [quota(), quota("user:a"), quota()]}, ["quotas[2].accounts"]),
        ({"quotas": [quota("net:10.0.0.0/8")]}, ["quotas[0].accounts[0]"]),
        ({"sources": [source("a"), source("b")]}, []),
        ({"sources": [source("a"), source("a")]}, ["sources[1].name"]),
        ({"sources": [source(accounts=["user:a", "user:a"])]}, ["sources[0].accounts[1]"]),
        ({"sources": [source("a", accounts=["user:a"]), source("b", accounts=["net:10.0.0.0/8", "user:a"])], "relay": TRUSTED}, ["sources[1].accounts[1]"]),
        ({"sources": [source(accounts=["net:10.0.0.0/8"])], "routes": [route(accounts=["net:10.0.0.0/8"])], "relay": TRUSTED}, []),
        ({"sources": [source(accounts=["user:a", "net:10.1.0.0/16"])], "relay": TRUSTED}, ["sources[0].accounts[1]"]),
        ({"routes": [route(), route(accounts=["net:10.0.0.0/9"])], "relay": TRUSTED}, ["routes[1].accounts[0]"]),
        ({"delivery": {"interactive_accounts": ["net:10.0.0.0/8"]}}, ["delivery.interactive_accounts[0]"]),
        ({"sources": [source("a", BOTH, {"ipv6": "2001:DB8:0::2"})]}, ["sources[0].addresses[1]"]),
        ({"sources": [source()], "destinations": [BY_DOMAINS, BY_HOSTS]}, []),
        ({"sources": [source()], "destinations": [BY_HOSTS, BY_DOMAINS]}, ["destinations[1].source"]),
        ({"sources": [source()], "destinations": [BY_DOMAINS | BY_HOSTS]}, ["destinations[0].source"]),
        ({"destinations": [BY_DOMAINS], "routes": [route(source="x")]}, ["destinations[0].source", "routes[0].source"]),
        ({"sources": [source()], "routes": [route(source="main", addresses="ipv6")]}, ["routes[0].addresses"]),
        ({"sources": [source()], "routes": [route(source="main", addresses="ipv4")]}, []),
        ({"sources": [source("main", BOTH)], "routes": [route(source="main", addresses="ipv6")]}, []),
        ({"sources": [source("main", BOTH, {"ipv6": "::2"})], "destinations": [BY_DOMAINS | {"addresses": "ipv4"}]}, ["destinations[0].addresses"]),
        ({"routes": [route(tls="none", next_hops=["a:25", {"host": "a", "port": 26, "implicit_tls": True}])]}, ["routes[0].next_hops[1]"]),
        ({"routes": [route(tls="none", next_hops=["a:465"])]}, ["routes[0].next_hops[0]"]),
        ({"routes": [route(tls="none", next_hops=[{"host": "a", "port": 465, "implicit_tls": False}])]}, []),
        ({"routes": [route(tls="encrypt", next_hops=["a:465"])]}, []),
        ({"routes": [route(credentials=credentials(password="x"))]}, []),
        ({"routes": [route(credentials=credentials(password="x"), tls="encrypt")]}, []),
        ({"routes": [route(credentials=credentials(password="x"), tls="none")]}, ["routes[0].tls"]),
        ({"routes": [route(credentials=credentials(password="x"), tls="opportunistic")]}, ["routes[0].tls"]),
        ({"routes": [route(credentials=credentials(password="x"), tls="none", next_hops=["127.0.0.1:25", "[::1]:25"])]}, []),
        ({"routes": [route(credentials=credentials(password="x"), tls="none", next_hops=["127.0.0.1:25", "a:25"])]}, ["routes[0].tls"]),
        ({"routes": [route(credentials=credentials())]}, ["routes[0].credentials"]),
        ({"routes": [route(credentials=credentials(password="x", token_command=["y"]))]}, ["routes[0].credentials"]),
        ({"routes": [route(credentials=credentials(password="x", mechanism="xoauth2"))]}, ["routes[0].credentials.mechanism"]),
        ({"routes": [route(credentials=credentials(password="x", mechanism="login"))]}, []),
        ({"routes": [route(credentials=credentials(token_command=["y"], mechanism="plain"))]}, ["routes[0].credentials.mechanism"]),
        ({"routes": [route(credentials=credentials(token_command=["y"], mechanism="xoauth2"))]}, []),
        ({"routes": [route(credentials=credentials(token_file="/none/t"))]}, ["routes[0].credentials.token_file"]),
        ({"routes": [route(credentials=credentials(password_file="/none/p"))]}, ["routes[0].credentials.password_file"]),
    ],
)  # fmt: skip
def test_what_contradicts_is_told_with_its_key(options, expected):
    assert keys(Settings.model_validate({"hostname": "a.example", **options})) == expected


BROKEN = """
hostname = "a.example"
[[sources]]
name = "main"
accounts = ["user:a"]
addresses = [{ipv4 = "192.0.2.1"}]
[[sources]]
name = "main"
addresses = [{ipv6 = "2001:db8::1"}]
[[destinations]]
connections = 3
[[destinations]]
hosts = ["*.example"]
tls = "maybe"
messages_per_second = 0
[[destinations]]
domains = ["a.example"]
source = "mian"
[[routes]]
domains = ["*"]
next_hops = ["mx.example:0", {host = "mx.example", prot = 25}, {host = "mx.example", port = 25, weight = 0}]
senders = []
[[routes]]
domains = ["*"]
next_hops = ["mx.example:25"]
tls = "none"
[routes.credentials]
username = "ada"
password = "hunter2"
password_file = "smarthost.password"
token = "hunter2"
[[routes]]
domains = ["*"]
next_hops = ["mx.example:25"]
tls = "none"
[routes.credentials]
username = "ada"
password = "hunter2"
password_file = "smarthost.password"
"""


def test_all_of_them_are_told_at_once_and_no_secret_is(tmp_path: Path) -> None:
    """A broken route or destination does not keep the others' contradictions from being found, nor their numbers."""
    path = tmp_path / "relayd.toml"
    path.write_text(BROKEN)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert sorted(problem.key for problem in caught.value.problems) == [
        "destinations[0]",
        "destinations[1].messages_per_second",
        "destinations[1].tls",
        "destinations[2].source",
        "routes[0].next_hops[0].port",
        "routes[0].next_hops[1].port",
        "routes[0].next_hops[1].prot",
        "routes[0].next_hops[2].weight",
        "routes[0].senders",
        "routes[1].credentials.token",
        "routes[2].credentials",
        "routes[2].credentials.password_file",
        "routes[2].tls",
        "sources[1].name",
    ]
    assert "hunter2" not in str(caught.value)
    assert all(problem.reason for problem in caught.value.problems)


def test_names_of_users_are_no_secrets(tmp_path: Path) -> None:
    path = tmp_path / "relayd.toml"
    text = '[[sources]]\nname = "%s"\naccounts = ["user:ada@example.net"]\naddresses = [{ipv4 = "192.0.2.1"}]\n'
    path.write_text('hostname = "a"\n' + text % "one" + text % "other")
    with pytest.raises(ConfigError, match="user:ada@example.net"):
        load(path)


def test_a_broken_source_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text(
        'hostname = "a"\n[[sources]]\nname = "main"\naddresses = [{weight = 2}]\n'
        '[[destinations]]\ndomains = ["*"]\nsource = "main"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [problem.key for problem in caught.value.problems] == ["sources[0].addresses[0]"]


def test_files_of_credentials_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "smarthost.password").write_text("hunter2\n")
    (tmp_path / "relayd.toml").write_text(
        'hostname = "a"\n[[routes]]\ndomains = ["*"]\nnext_hops = ["mx.example:587"]\n'
        'credentials = {username = "ada", password_file = "smarthost.password"}\n'
    )
    [only] = load(tmp_path / "relayd.toml").routes
    assert only.credentials is not None
    assert only.credentials.password_file == tmp_path / "smarthost.password"
