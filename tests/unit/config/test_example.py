"""The annotated example is the schema's, whole, and loads."""

import re
import tomllib
from pathlib import Path

import pytest

from relayd.cli.certificate import self_signed
from relayd.config import contradictions, example
from relayd.config.load import load
from relayd.config.schema import Section, Settings, section_of

ROOT = Path(__file__).parents[3]


def options(section: type[Section], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        inner = section_of(field)
        found += options(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def test_the_file_in_deploy_is_not_stale() -> None:
    """If this fails: python -m relayd.config.example"""
    assert (ROOT / example.FILE).read_text() == example.render(example.example())


def test_it_says_what_it_was_made_from() -> None:
    assert Settings.model_validate(tomllib.loads(example.render(example.example()))) == example.example()


def test_it_loads(tmp_path: Path) -> None:
    (tmp_path / "relayd.toml").write_text(example.render(example.example()))
    for name, content in zip(("cert.pem", "key.pem"), self_signed("relay.example.net"), strict=True):
        (tmp_path / name).write_bytes(content)
    assert load(tmp_path / "relayd.toml").hostname == "relay.example.net"


@pytest.mark.parametrize("settings", [example.example(), Settings(hostname="a.example")])
def test_every_option_is_shown_with_its_text(settings: Settings) -> None:
    text = example.render(settings)
    assert len(options(Settings)) > 30
    for option in options(Settings):
        name = option.rpartition(".")[2]
        assert f"\n{name} = " in text or f"\n# {name} = " in text, option
    assert all(len(line) <= 120 for line in text.splitlines())


def test_what_is_commented_out_is_right_too() -> None:
    """Every option uncommented is still a file of the schema: defaults and examples are valid."""
    lines = example.render(Settings(hostname="a.example")).splitlines()
    shown = [line.removeprefix("# ") for line in lines if line.startswith(("# [", "[")) or " = " in line]
    Settings.model_validate(tomllib.loads("\n".join(shown)))


def test_tables_of_every_depth_are_read_back() -> None:
    """Passwords apart: those are never written."""
    credentials = {"username": "ada", "token_command": ["token", "--for", 'a "quoted" one']}
    hops = ["a:25", {"host": "b", "port": 26, "weight": 3, "implicit_tls": True}]
    sections = {
        "sources": [{"name": n, "addresses": [{"ipv4": "192.0.2.1"}, {"ipv6": "::2", "weight": 2}]} for n in "ab"],
        "destinations": [{"hosts": ["mx.example"], "retry_schedule": ["1s", "2m"], "tls": "encrypt"}],
        "routes": [
            {"domains": ["*"], "next_hops": hops, "credentials": credentials},
            {"domains": ["*"], "next_hops": hops, "senders": ["<>"]},
            {"domains": ["*"], "next_hops": hops, "credentials": credentials},
        ],
    }
    settings = Settings.model_validate({"hostname": "a.example", **sections})
    assert Settings.model_validate(tomllib.loads(example.render(settings))) == settings


def test_the_examples_of_the_manual_are_right() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/ROUTING.md").read_text(), re.DOTALL)
    settings = Settings.model_validate(tomllib.loads('hostname = "a.example"\n' + "\n".join(blocks)))
    assert settings.routes and settings.destinations and settings.sources
    found = [one.key for _, check in contradictions.CHECKS for one in check(settings)]
    assert found == ["routes[1].credentials.password_file"], "a file that only the example names"


def test_every_option_has_a_text() -> None:
    def check(section: type[Section]) -> None:
        assert section.__doc__
        for name, field in section.model_fields.items():
            inner = section_of(field)
            if inner:
                check(inner)
            else:
                assert example.texts(section).get(name), name

    check(Settings)
