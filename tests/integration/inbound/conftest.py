"""Every test of inbound runs on both event loops: the relay's own (uvloop) and the standard library's."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.fakes.inbound import Certificate


def pytest_asyncio_loop_factories(config, item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Certificate:
    directory: Path = tmp_path_factory.mktemp("tls")
    return Certificate(directory)
