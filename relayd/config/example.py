"""The annotated configuration file, made from the schema: deploy/relayd.toml, and what `relayd init` writes.

`python -m relayd.config.example` writes deploy/relayd.toml anew. An option whose value is its default stands commented
out, so a file made here says what was decided and shows what could be.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from relayd.config.schema import Section, Settings, section_of

FILE = Path("deploy/relayd.toml")

_WIDTH = 110
_HEADER = """\
# Configuration of relayd. Check it with `relayd check --config FILE`.
#
# Options commented out show their default, or an example where there is none. Relative paths are relative to this
# file. Each option answers to an environment variable too, with "__" between levels, as in
# RELAYD_LIMITS__MESSAGE_SIZE=20MB; lists and tables go whole, as JSON.
# Sizes are "B", "KB", "MB", "GB", "TB" (of 1024), durations "ms", "s", "m", "h", "d".
"""


_EXAMPLE = {
    "hostname": "relay.example.net",
    "workers": 2,
    "spool": {"path": "/var/lib/relayd/spool"},
    "tls": {"certificate": "cert.pem", "private_key": "key.pem"},
    "listeners": [
        {"bind": "0.0.0.0:587", "kind": "submission"},
        {"bind": "0.0.0.0:465", "kind": "submissions"},
        {"bind": "127.0.0.1:25", "kind": "relay"},
    ],
    "relay": {"trusted_networks": ["127.0.0.0/8", "::1/128"]},
    "auth": {"users_file": "/var/lib/relayd/users"},
    "routes": [{"domains": ["example.org"], "next_hops": ["mx1.example.org:25", "mx2.example.org:25"]}],
    "local": {"postmaster": "ops@example.net"},
}
_SAMPLES = {
    "quotas": [{"recipients_per_hour": 1000}],
    "sources": [{"name": "main", "addresses": [{"ipv4": "192.0.2.25", "ipv6": "2001:db8::25"}]}],
    "destinations": [{"domains": ["example.com", "*.example.com"], "connections": 10}],
    "routes": [
        {
            "domains": ["*"],
            "next_hops": ["smarthost.example.net:587"],
            "credentials": {"username": "relay@example.net", "password_file": "smarthost.password"},
        }
    ],
}
"""Of tables that the example has not."""


def example() -> Settings:
    """What deploy/relayd.toml shows: every kind of listener, mail for one domain to a smarthost, the rest by MX."""
    return Settings.model_validate(_EXAMPLE)


def render(settings: Settings) -> str:
    """The file that says `settings`, with every option and its text."""
    samples = Settings.model_validate({**_EXAMPLE, **_SAMPLES})
    options = "\n".join(_options(settings, annotated=True))
    return "\n".join([_HEADER, options, *_tables_inside("", settings, samples, annotated=True)])


def _tables_inside(prefix: str, section: Section, sample: Section, *, annotated: bool) -> Iterator[str]:
    """The tables that a section holds, each with its text; one that it has not is a comment, with `sample`'s values."""
    for name, field in type(section).model_fields.items():
        if not section_of(field):
            continue
        present, samples = getattr(section, name), getattr(sample, name)
        if present:
            yield from _tables(prefix + name, present, samples, annotated=annotated)
        elif annotated:
            block = "\n".join(_tables(prefix + name, samples, samples, annotated=True))
            yield textwrap.indent(block.rstrip(), "# ", lambda line: bool(line.strip()) and line[:2] != "# ") + "\n"


Sections = Section | Sequence[Section]


def _tables(title: str, present: Sections, sample: Sections, *, annotated: bool) -> Iterator[str]:
    """A section's table, or one for each of several, of which the first carries the text; then the tables inside."""
    if isinstance(present, Section):
        assert isinstance(sample, Section)
        yield _table(f"[{title}]", present, annotated=annotated)
        yield from _tables_inside(f"{title}.", present, sample, annotated=annotated)
        return
    assert not isinstance(sample, Section)
    for number, section in enumerate(present):
        yield _table(f"[[{title}]]", section, annotated=annotated and not number)
        yield from _tables_inside(f"{title}.", section, sample[0], annotated=annotated and not number)


def _table(title: str, section: Section, *, annotated: bool) -> str:
    comment = _comment(type(section)) if annotated else ""
    return comment + "\n".join([title, *_options(section, annotated=annotated)])


def _options(section: Section, *, annotated: bool) -> Iterator[str]:
    shown, usual = section.model_dump(mode="json", exclude_defaults=True), section.model_dump(mode="json")
    own = type(section).__annotations__
    text = texts(type(section)) if annotated else {}
    # Those of the section itself before those it shares with others.
    for name, field in sorted(type(section).model_fields.items(), key=lambda option: option[0] not in own):
        if section_of(field):
            continue
        if annotated:
            yield from textwrap.wrap(text.get(name, ""), _WIDTH, initial_indent="# ", subsequent_indent="# ")
        if name in shown:
            yield f"{name} = {_toml(shown[name])}"
        elif annotated:
            yield f"# {name} = {_toml(_sample(field, usual[name]))}"
    yield ""


def texts(section: type[Section]) -> dict[str, str]:
    """The text below each option of a section, and of those it has from others."""
    found: dict[str, str] = {}
    for part in reversed(section.__mro__):
        if part is not Section and issubclass(part, Section):
            (body,) = ast.parse(inspect.getsource(part)).body
            assert isinstance(body, ast.ClassDef)
            for option, text in itertools.pairwise(body.body):
                match option, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                        found[name] = inspect.cleandoc(said)
    return found


def _sample(field: FieldInfo, value: object) -> object:
    """The default, or an example where it is empty or depends on the machine."""
    return field.examples[0] if field.examples and (not value or field.default_factory) else value


def _comment(section: type[Section]) -> str:
    text = " ".join((inspect.getdoc(section) or "").split())
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")) + "\n"


def _toml(value: object) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{name} = {_toml(item)}' for name, item in value.items())}}}"
    return str(value).lower()


if __name__ == "__main__":
    FILE.write_text(render(example()), encoding="utf-8")
