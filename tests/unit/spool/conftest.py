"""What more than one room of the spool is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import small_disk as fake


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own with room for 16 MB."""
    with fake.small_disk(tmp_path / "disk", "size=16m") as disk:
        yield disk.path
