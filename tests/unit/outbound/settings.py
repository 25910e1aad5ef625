"""Credentials as the configuration says them."""

from pydantic import SecretStr

from relayd.config.schema import Credentials


def settings(password: str | None = None, **fields) -> Credentials:
    """Without validation: what a configuration may not say is tried too."""
    secret = None if password is None else SecretStr(password)
    return Credentials.model_construct(**{"username": "relay", "password": secret, **fields})
