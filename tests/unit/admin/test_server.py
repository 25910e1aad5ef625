"""The admin port over a real socket: what it answers, to whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from relayd import metrics
from relayd.admin import server
from relayd.admin.server import Admin, answers_to


class Backend:
    """Says what the test wants it to say. threads: which have asked."""

    reason = ""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def unready(self) -> str:
        self.threads.add(threading.get_ident())
        return self.reason

    async def metrics(self) -> CollectorRegistry:
        return metrics.REGISTRY


class Answer(NamedTuple):
    status: int
    headers: str
    body: str


class Port:
    """The server under test and a client that writes requests as they are."""

    def __init__(self, admin: Admin, backend: Backend) -> None:
        self.admin = admin
        self.backend = backend

    async def ask(self, target: str, method: str = "GET", host: str = "localhost", headers: str = "") -> Answer:
        return await self.send(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")

    async def send(self, request: str) -> Answer:
        reader, writer = await asyncio.open_connection(*self.admin.address)
        writer.write(request.encode("latin-1"))
        text = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
        head, _, body = text.partition("\r\n\r\n")
        return Answer(int(head.split(" ", 2)[1]), head.lower(), body)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    backend = Backend()
    admin = Admin(server.bind("127.0.0.1", 0), "127.0.0.1", backend)
    admin.start()
    yield Port(admin, backend)
    await admin.close()


async def test_metrics_in_both_formats(port: Port) -> None:
    text = await port.ask("/metrics")
    assert text.status == 200
    assert "content-type: text/plain; version=" in text.headers
    assert "relayd_messages_accepted_total" in text.body
    openmetrics = await port.ask("/metrics", headers="Accept: application/openmetrics-text; version=1.0.0\r\n")
    assert "content-type: application/openmetrics-text" in openmetrics.headers
    assert openmetrics.body.endswith("# EOF\n")


async def test_health_says_nothing_of_readiness(port: Port) -> None:
    port.backend.reason = "starting"
    assert (await port.ask("/healthz")).status == 200


async def test_readiness_follows_the_backend(port: Port) -> None:
    assert (await port.ask("/readyz"))[::2] == (200, "ready\n")
    port.backend.reason = "spool failed"
    assert (await port.ask("/readyz"))[::2] == (503, "spool failed\n")


async def test_only_reading(port: Port) -> None:
    assert (await port.ask("/healthz", method="HEAD"))[::2] == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await port.ask("/healthz", method=method)).status == 405


async def test_unknown_paths(port: Port) -> None:
    assert (await port.ask("/")).status == 404
    assert (await port.ask("/../../etc/passwd")).status == 404


async def test_foreign_hosts_learn_nothing(port: Port) -> None:
    for target in ("/metrics", "/healthz", "/none"):
        answer = await port.ask(target, host="attacker.example")
        assert answer.status == 421
        assert "relayd_" not in answer.body


async def test_one_host_and_no_more(port: Port) -> None:
    assert (await port.send("GET /healthz HTTP/1.0\r\n\r\n")).status == 421
    two = await port.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert two.status in (400, 421)


async def test_software_is_not_named(port: Port) -> None:
    assert "server:" not in (await port.ask("/healthz")).headers


async def test_it_is_gone_when_closed() -> None:
    admin = Admin(server.bind("127.0.0.1", 0), "127.0.0.1", Backend())
    admin.start()
    address = admin.address
    await Port(admin, Backend()).ask("/healthz")
    await admin.close()
    with pytest.raises(OSError, match="refused|Connect call failed"):
        await asyncio.open_connection(*address)


async def test_closing_what_never_started() -> None:
    await Admin(server.bind("127.0.0.1", 0), "127.0.0.1", Backend()).close()


def test_a_port_in_use_is_an_error_at_once() -> None:
    with server.bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(OSError, match="in use"):
            server.bind("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize(
    ("bound_to", "header"),
    [
        ("127.0.0.1", "localhost:9925"),
        ("127.0.0.1", "127.0.0.1:9925"),
        ("127.0.0.1", "LOCALHOST"),
        ("127.0.0.1", "[::1]:9925"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "[::1]"),
        ("localhost", "127.0.0.1"),
        ("192.0.2.1", "192.0.2.1:80"),
        ("0.0.0.0", "192.0.2.1"),
        ("::", "[2001:db8::1]:80"),
        ("relay.example", "Relay.Example:80"),
    ],
)
def test_known_hosts(bound_to: str, header: str) -> None:
    assert answers_to(bound_to, header)


@pytest.mark.parametrize(
    ("bound_to", "header"),
    [
        ("127.0.0.1", ""),
        ("127.0.0.1", "attacker.example"),
        ("127.0.0.1", "localhost.attacker.example"),
        ("127.0.0.1", "192.0.2.1"),
        ("192.0.2.1", "localhost"),
        ("0.0.0.0", "attacker.example"),
        ("0.0.0.0", "localhost"),
        ("::", "relay.example"),
        ("relay.example", "192.0.2.1"),
    ],
)
def test_unknown_hosts(bound_to: str, header: str) -> None:
    assert not answers_to(bound_to, header)


async def test_what_is_asked_is_asked_on_the_event_loop(port):
    """The queue changes there, and what looks at it from a thread may fail."""
    scraped: set[int] = set()

    def oldest() -> float:
        scraped.add(threading.get_ident())
        return 0.0

    unwatch = metrics.watch_queue(lambda: dict.fromkeys(metrics.STATES, 0), oldest)
    try:
        assert (await port.ask("/metrics")).status == 200
        assert (await port.ask("/readyz")).status == 200
    finally:
        unwatch()
    assert scraped == port.backend.threads == {threading.get_ident()}
