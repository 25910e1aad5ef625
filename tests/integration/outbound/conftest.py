"""Peers that close themselves, and outbound without (`carrier`) and with (`relay`) queue, scheduler and dispatcher."""

import asyncio
import contextlib
import json
import ssl

import pytest
import trustme
import uvloop

from relayd import log
from tests.fakes.smtp_peer import SmtpPeer
from tests.fakes.virtual_clock import VirtualLoop, drive
from tests.integration.outbound.rig import Carrier, Relay


def pytest_asyncio_loop_factories(config, item):
    """uvloop, as served; what depends on the transports runs on asyncio's own loop too, what takes long in no time."""
    if item.path.name in {"test_leases.py", "test_outage.py", "test_shaping.py", "test_tarpit.py"}:
        return {"virtual": VirtualLoop}
    loops = {"uvloop": uvloop.new_event_loop}
    if item.path.name in {"test_tls.py", "test_pool.py", "test_transactions.py"}:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture
async def start():
    """`peer = await start(script, ...)`"""
    async with contextlib.AsyncExitStack() as stack:

        async def started(*args, **kwargs) -> SmtpPeer:
            return await stack.enter_async_context(await SmtpPeer.start(*args, **kwargs))

        yield started


@pytest.fixture
async def carrier():
    carrier = Carrier()
    yield carrier
    await carrier.close()


@pytest.fixture
async def clock(monkeypatch):
    """The time, where the loop is virtual; ask for it before `relay`."""
    return drive(monkeypatch)


@pytest.fixture
async def relay(tmp_path):
    """`relay = await relay(...)`: arguments as Relay's."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(**kwargs) -> Relay:
            return await stack.enter_async_context(Relay(tmp_path, **kwargs))

        yield started


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log"
    log.configure(str(path), "info")
    yield path
    log.configure("-", "info")


@pytest.fixture
def events(log_file):
    """`events("deferred")`: the log's lines of an event, so far."""
    return lambda event: [line for line in map(json.loads, log_file.read_bytes().splitlines()) if line["event"] == event]


@pytest.fixture
def alerts(events):
    """`alerts()`: what the operator was told so far."""
    return lambda: events("alert")


@pytest.fixture(scope="session")
def certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("peer.example", "127.0.0.1").configure_cert(context)
    return context
