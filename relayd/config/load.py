"""From a file and the environment to `Settings`, or to every reason why not.

Owns where values come from, paths relative to the file, and what single options cannot tell: contradictions between
them, and files they name. Secrets are masked in what it reports. Called by the commands; opens no socket.
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from relayd import tls
from relayd.config import contradictions
from relayd.config.schema import ListenerKind, Section, Settings, section_of
from relayd.config.values import STANDARD_OUTPUT

PREFIX = "RELAYD_"
"""Of environment variables; `__` stands between levels. Lists and tables go whole, as JSON."""

DEFAULT_FILES = (Path("relayd.toml"), Path("/etc/relayd/relayd.toml"))
"""Where the file is looked for when none is named."""

_SECRET = re.compile(r"pas+w|pwd|secret|token|credential|api_?key", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^\s\"']+@|(?!user:)\b[^\s\"':/@]+:[^\s\"']+@")
_MAX_VALUE = 200

Raw = dict[str, object]
S = TypeVar("S", bound=Section)


class Problem(NamedTuple):
    """One thing wrong: in which file (or environment variable), at which key, with which value, and why."""

    file: str
    key: str
    value: str
    reason: str

    def __str__(self) -> str:
        option = f"{self.key} = {self.value}" if self.value else self.key
        return ": ".join(filter(None, (self.file, option, self.reason)))


class Loaded(NamedTuple):
    """Settings, the file they are from, and what it and the environment say: values of TOML and JSON, secrets in clear.

    Another process makes the same settings of the latter (`trusted`), whatever has become of the file.
    """

    file: Path
    raw: Raw
    settings: Settings


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds every reason, never empty."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Options(Settings, BaseSettings):
    """Tells pydantic-settings the names; never made into an object, so that `Settings` itself reads no environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=False)


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str | bytes) -> object:
        """JSON, or the text itself: the schema then reports it together with everything else."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def find() -> Path:
    """The first of DEFAULT_FILES that exists, else the first."""
    return next((path for path in DEFAULT_FILES if _may_exist(path)), DEFAULT_FILES[0])


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Behind a directory that is not ours to enter: reading it says so.
        return True


def load(path: Path) -> Settings:
    """The settings of `path` under the environment's; paths in them absolute. ConfigError with every problem."""
    return loaded(path).settings


def loaded(path: Path) -> Loaded:
    """As `load`, with what the settings were made from."""
    raw = _merged(_read(path), _Environment(_Options)())
    return Loaded(path, raw, checked(path, raw))


def trusted(path: Path, raw: Raw) -> Settings:
    """The settings of what another process `loaded`: no file is looked at, as this one may not be allowed to."""
    return _absolute(Settings.model_validate(raw), path.absolute().parent)


def checked(path: Path, raw: Raw) -> Settings:
    """The settings of what `path` and the environment say. ConfigError with every problem."""
    problems = list(_unknown_variables())
    try:
        settings, broken = Settings.model_validate(raw), set[str]()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems += [_problem(path, detail) for detail in details if not _is_consequence(detail)]
        settings, broken = _remainder(raw, details)
    settings = _absolute(settings, path.absolute().parent)
    problems += [
        Problem(_source(path, found.key), *found[1:])
        for needed, check in _CHECKS
        if not needed & broken
        for found in check(settings)
    ]
    if problems:
        raise ConfigError(problems)
    return settings


def _read(path: Path) -> Raw:
    try:
        path.open("rb").close()  # pydantic-settings takes a missing file for an empty one
        return dict(TomlConfigSettingsSource(_Options, path)())
    except OSError as error:
        raise ConfigError([Problem(str(path), "", "", f"cannot be read: {error.strerror}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(str(path), "", "", f"not TOML: {error}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "", "", f"not UTF-8 at octet {error.start}")]) from None
    except RecursionError:
        raise ConfigError([Problem(str(path), "", "", "not TOML: nested too deeply")]) from None


def _merged(lower: Mapping[str, object], upper: Mapping[str, object]) -> Raw:
    """`upper` over `lower`, table by table."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _absolute(section: S, base: Path) -> S:
    """The section with every relative path in it taken from `base`."""
    changes: Raw = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path) and value != STANDARD_OUTPUT:
            changes[name] = base / value
        elif isinstance(value, Section):
            changes[name] = _absolute(value, base)
        elif isinstance(value, tuple):
            changes[name] = tuple(_absolute_item(one, base) for one in value)
    return section.model_copy(update=changes)


def _absolute_item(item: object, base: Path) -> object:
    if isinstance(item, Path):
        return base / item
    return _absolute(item, base) if isinstance(item, Section) else item


# --- what the schema found ------------------------------------------------------------------------------------------


def _problem(path: Path, detail: ErrorDetails) -> Problem:
    key = _key(detail["loc"])
    reason = detail["msg"].removeprefix("Value error, ")
    value = "" if detail["type"] == "missing" else _shown(key, detail["input"])
    if detail["type"] == "missing":
        reason = "required, but missing"
    if detail["type"] == "too_short":
        reason = "empty: at least one is needed"
    if detail["type"] == "extra_forbidden":
        reason = "unknown option" + _suggestion(detail["loc"])
    return Problem(_source(path, key), key, value, reason)


def _is_consequence(detail: ErrorDetails) -> bool:
    """A list called too short because its items, reported themselves, did not count."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _key(location: tuple[int | str, ...]) -> str:
    """As it is said: `listeners[0].bind`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _shown(key: str, value: object) -> str:
    if _SECRET.search(key) or (isinstance(value, str) and "{" in value and _SECRET.search(value)):
        # Such a text is JSON of the environment that could not be read.
        return "***"
    text = _USERINFO.sub("***@", repr(_masked(value)) if not isinstance(value, str) else f'"{value}"')
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"


def _masked(value: object) -> object:
    match value:
        case dict():
            return {k: "***" if _SECRET.search(str(k)) else _masked(v) for k, v in value.items()}
        case list() | tuple():
            return [_masked(item) for item in value]
    return value


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: type[Section] | None = Settings
    for part in location[:-1]:
        if isinstance(part, str) and section:
            section = section_of(section.model_fields[part])
    close = difflib.get_close_matches(str(location[-1]), section.model_fields if section else (), 1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _source(path: Path, key: str) -> str:
    """The environment variable that gave the option, else the file."""
    levels = re.sub(r"\[\d+\]", "", key).upper().split(".")
    names = ["__".join(levels[:depth]) for depth in range(len(levels), 0, -1)]
    present = {name.upper() for name in os.environ}
    return next((f"${PREFIX}{name}" for name in names if name and PREFIX + name in present), str(path))


def _unknown_variables() -> Iterator[Problem]:
    """Only names with two levels: orchestrators set RELAYD_PORT and its like for a service of that name."""
    for name in sorted(os.environ):
        section, levels, _ = name.upper().removeprefix(PREFIX).lower().partition("__")
        if name.upper().startswith(PREFIX) and levels and section not in Settings.model_fields:
            yield Problem(f"${name}", section, "", "unknown option" + _suggestion((section,)))


def _remainder(raw: Raw, details: list[ErrorDetails]) -> tuple[Settings, set[str]]:
    """Settings of what is right, so that contradictions are found in the same run, and the names of what is not.

    A broken item of a list is stood in for by one that no check objects to, so that the others keep their numbers.
    """
    rest = dict(raw)
    broken: set[str] = set()
    for name, *inner in (detail["loc"] for detail in details):
        items = rest.get(str(name))
        if name in _STAND_INS and inner and isinstance(items, list) and isinstance(inner[0], int):
            rest[str(name)] = [*items[: inner[0]], _STAND_INS[name], *items[inner[0] + 1 :]]
            continue
        broken.add(str(name))
    sound = {name: value for name, value in rest.items() if name not in broken}
    return Settings.model_validate({"hostname": "localhost", **sound}), broken


_STAND_INS: dict[int | str, Raw] = {
    "listeners": {"bind": "localhost:0", "kind": "relay"},
    "destinations": {"domains": ["stand-in.invalid"]},
    "routes": {"domains": ["stand-in.invalid"], "next_hops": ["localhost:25"]},
}


# --- what single options cannot tell --------------------------------------------------------------------------------


def _found(key: str, value: object, reason: str) -> Problem:
    return Problem("", key, _shown(key, str(value)) if not isinstance(value, int) else str(value), reason)


def _check_shards(settings: Settings) -> Iterator[Problem]:
    if settings.shards < settings.workers:
        yield _found("spool.shards", settings.shards, f"fewer than workers ({settings.workers})")


def _check_tls_present(settings: Settings) -> Iterator[Problem]:
    for number, listener in enumerate(settings.listeners):
        if listener.kind is not ListenerKind.RELAY and settings.tls is None:
            yield _found(f"listeners[{number}].kind", listener.kind.value, "needs a [tls] section")


def _check_tls_files(settings: Settings) -> Iterator[Problem]:
    if settings.tls is None:
        return
    unreadable = False
    for name, path in (("certificate", settings.tls.certificate), ("private_key", settings.tls.private_key)):
        if reason := contradictions.unreadable(path):
            unreadable = True
            yield _found(f"tls.{name}", path, reason)
    if unreadable:
        return
    try:
        tls.listener_context(settings.tls.certificate, settings.tls.private_key)
    except tls.TlsError as error:
        name = "private_key" if error.file == settings.tls.private_key else "certificate"
        yield _found(f"tls.{name}", error.file, error.reason)


def _check_binds(settings: Settings) -> Iterator[Problem]:
    """Port 0 means any free port: two of them never meet."""
    binds = [(f"listeners[{n}].bind", listener.bind) for n, listener in enumerate(settings.listeners)]
    if settings.admin.bind:
        binds.append(("admin.bind", settings.admin.bind))
    seen: dict[str, str] = {}
    for key, bind in binds:
        if bind.port and (first := seen.setdefault(str(bind), key)) != key:
            yield _found(key, bind, f"already taken by {first}")


def _check_spool(settings: Settings) -> Iterator[Problem]:
    spool = settings.spool
    named = [("spool.path", spool.path), *((f"spool.paths.{n}", path) for n, path in enumerate(spool.paths))]
    for key, path in named:
        try:
            if path.exists() and not path.is_dir():
                yield _found(key, path, "not a directory")
        except OSError as error:
            yield _found(key, path, f"cannot be looked at: {error.strerror}")
    for number, path in enumerate(spool.paths):
        if path in spool.paths[:number]:
            yield _found(f"spool.paths.{number}", path, "named twice")


def _check_log(settings: Settings) -> Iterator[Problem]:
    file = settings.log.file
    try:
        if file != STANDARD_OUTPUT and not file.parent.is_dir():
            yield _found("log.file", file, "its directory does not exist")
    except OSError as error:
        yield _found("log.file", file, f"its directory cannot be looked at: {error.strerror}")


def _check_user(settings: Settings) -> Iterator[Problem]:
    if settings.process.user is not None:
        try:
            pwd.getpwnam(settings.process.user)
        except (KeyError, ValueError):  # unknown, or with a NUL in it
            yield _found("process.user", settings.process.user, "no such user on this system")


def _check_outgoing(check: contradictions.Check) -> Callable[[Settings], Iterator[Problem]]:
    def checked(settings: Settings) -> Iterator[Problem]:
        for key, value, reason in check(settings):
            yield Problem("", key, _shown(key, value) if value else "", reason)

    return checked


_CHECKS: tuple[tuple[set[str], Callable[[Settings], Iterator[Problem]]], ...] = (
    ({"spool", "workers"}, _check_shards),
    ({"listeners", "tls"}, _check_tls_present),
    ({"tls"}, _check_tls_files),
    ({"listeners"}, _check_binds),
    ({"spool"}, _check_spool),
    ({"log"}, _check_log),
    ({"process"}, _check_user),
    *((sections, _check_outgoing(check)) for sections, check in contradictions.CHECKS),
)
"""Each with the sections it reads: where one of them is broken already, it has nothing to say."""
