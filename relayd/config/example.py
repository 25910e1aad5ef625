"""The annotated configuration file, made from the schema: deploy/relayd.toml, and what `relayd init` writes.

`python -m relayd.config.example` writes deploy/relayd.toml anew. An option whose value is its default stands commented
out, so a file made here says what was decided and shows what could be.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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


def example() -> Settings:
    """What deploy/relayd.toml shows: every kind of listener, mail for one domain to a smarthost, the rest by MX."""
    return Settings.model_validate(
        {
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
    )


def render(settings: Settings) -> str:
    """The file that says `settings`, with every option and its text."""
    shown = settings.model_dump(mode="json", exclude_defaults=True)
    usual = settings.model_dump(mode="json")
    blocks = [_HEADER, "\n".join(_options(Settings, shown, usual))]
    for name, field in Settings.model_fields.items():
        if section := section_of(field):
            blocks += _tables(name, section, shown.get(name), usual.get(name))
    return "\n".join(blocks)


def _tables(name: str, section: type[Section], shown: object, usual: object) -> Iterator[str]:
    """The section's table, or one for each of its items; the first carries the text. What is absent is an example."""
    if not usual:
        sample = example().model_dump(mode="json")[name]
        block = "".join(_tables(name, section, sample, sample))
        yield textwrap.indent(block.rstrip(), "# ", lambda line: not line.startswith("# ")) + "\n"
    elif isinstance(usual, Sequence):
        for number, item in enumerate(usual):
            yield _table(f"[[{name}]]", section, item, item, annotated=not number)
    else:
        assert isinstance(usual, Mapping)
        yield _table(f"[{name}]", section, shown if isinstance(shown, Mapping) else {}, usual, annotated=True)


def _table(
    title: str, section: type[Section], shown: Mapping[str, object], usual: Mapping[str, object], *, annotated: bool
) -> str:
    comment = _comment(section) if annotated else ""
    return comment + "\n".join([title, *_options(section, shown, usual, annotated=annotated)])


def _options(
    section: type[Section], shown: Mapping[str, object], usual: Mapping[str, object], *, annotated: bool = True
) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if section_of(field):
            continue
        if annotated:
            yield from textwrap.wrap(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# ")
        if name in shown and shown[name] != field.default:
            yield f"{name} = {_toml(shown[name])}"
        elif annotated:
            yield f"# {name} = {_toml(_sample(field, usual[name]))}"
    yield ""


def _sample(field: FieldInfo, value: object) -> object:
    """The default, or an example where it is empty or depends on the machine."""
    return field.examples[0] if field.examples and (not value or field.default_factory) else value


def _comment(section: type[Section]) -> str:
    text = inspect.getdoc(section) or ""
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")) + "\n"


def _toml(value: object) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower()


if __name__ == "__main__":
    FILE.write_text(render(example()), encoding="utf-8")
