"""Each test of the contract, over each engine."""

from __future__ import annotations

import pytest

from tests.contract.engines import Engine, JournalEngine, MemoryEngine


@pytest.fixture(params=["journal", "memory"])
def engine(request, tmp_path, monkeypatch) -> Engine:
    if request.param == "journal":
        return JournalEngine(tmp_path / "spool" / "shard-03", monkeypatch)
    return MemoryEngine()
