"""Credentials as the configuration says them."""

from pathlib import Path

import msgspec
from pydantic import SecretStr


class Settings(msgspec.Struct, frozen=True):
    username: str = "relay"
    password: SecretStr | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    token_command: tuple[str, ...] = ()
    mechanism: str | None = None


def settings(password: str | None = None, **fields) -> Settings:
    return Settings(password=None if password is None else SecretStr(password), **fields)
