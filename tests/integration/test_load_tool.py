"""benchmarks/load.py against a next hop that remembers, and against relayd: it sends what it says, or says it did not."""

import asyncio
import collections
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from load import Load, Plan, RefusedError, Report
from peers import PEERS
from processes import ROOT, beside_the_loop
from wanted import PASSWORD, USER, Wanted

from tests.fakes.sink import Received, Session, Sink


async def loaded(port: int, *options: str) -> tuple[int, str, str]:
    """The tool's exit code, output and complaints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "benchmarks" / "load.py"), f"127.0.0.1:{port}", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "LOAD_PASSWORD": ""},
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 60)
    except BaseException:
        process.kill()
        raise
    return process.returncode or 0, output.decode(), errors.decode()


def plan(port: int, messages: int, **more: object) -> Plan:
    return Plan("127.0.0.1", port, messages, float("inf"))._replace(**more)


async def test_connections_are_kept_and_every_message_is_counted_and_timed() -> None:
    async with Sink() as sink:
        before = time.monotonic_ns()
        code, output, errors = await loaded(sink.port, "--messages", "30", "--connections", "3", "--size", "2000")
        assert (code, errors) == (0, "")
        report = Report(**json.loads(output))
        assert sink.connections == 3
        assert report.messages == len(sink.received) == 30
        assert before / 1e9 < report.began < report.began + report.seconds < time.monotonic()
        assert 0 < report.accept_ms["p50"] <= report.accept_ms["p99"] <= report.accept_ms["max"]
        assert report.late_ms == {}
        for received in sink.received:
            sent = re.match(rb"X-Sent: (\d+)\r\n", received.content)
            assert sent
            assert before < int(sent[1]) < time.monotonic_ns()
            assert len(received.content.partition(b"\r\n\r\n")[2]) == pytest.approx(2000, abs=2)


async def test_a_connection_for_each_message() -> None:
    async with Sink() as sink:
        report = await Load(plan(sink.port, 7, connections=2, kept=False)).run()
        assert report.messages == sink.connections == len(sink.received) == 7


async def test_recipients_go_around_the_domains() -> None:
    async with Sink() as sink:
        await Load(plan(sink.port, 10, recipients=4, domains=8)).run()
        counts = collections.Counter(address for received in sink.received for address in received.addresses)
        assert counts == {f"sink@d{number}.bench.test": 5 for number in range(8)}
        assert {len(received.addresses) for received in sink.received} == {4}


async def test_nothing_is_pipelined_where_that_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []
    reply, arrived = Session._reply, Session.data_received

    def plain(session: Session, verb: bytes, argument: bytes) -> bytes:
        return b"250 plain.example\r\n" if verb == b"EHLO" else reply(session, verb, argument)

    def noted(session: Session, data: bytes) -> None:
        pieces.append(data)
        arrived(session, data)

    monkeypatch.setattr(Session, "_reply", plain)
    monkeypatch.setattr(Session, "data_received", noted)
    async with Sink() as sink:
        await Load(plan(sink.port, 3, connections=1, recipients=2)).run()
        assert len(sink.received) == 3
    commands = [piece for piece in pieces if not piece.startswith(b"X-Sent")]
    assert commands
    assert all(piece.count(b"\r\n") == 1 for piece in commands)


async def test_a_rate_is_kept_from_above() -> None:
    async with Sink() as sink:
        report = await Load(plan(sink.port, 21, rate=100.0)).run()
        assert report.seconds >= 0.2
        assert set(report.late_ms) == {"p50", "p99", "max"}


async def test_time_is_a_limit_of_its_own() -> None:
    async with Sink() as sink:
        report = await Load(plan(sink.port, sys.maxsize, seconds=0.3, rate=50.0)).run()
        assert 1 <= report.messages == len(sink.received) <= 15


class Full(Sink):
    """Has no room after three messages."""

    def message(self, received: Received) -> bytes:
        return super().message(received) if len(self.received) < 3 else b"452 4.3.1 Full\r\n"


class Gone(Sink):
    """Hangs up in front of the fourth message."""

    def sender(self, session: Session) -> bytes:
        return super().sender(session) if len(self.received) < 3 else b"421 4.3.2 Gone\r\n"


@pytest.mark.parametrize(("kind", "said"), [(Full, "452 4.3.1 Full"), (Gone, "421 4.3.2 Gone")])
async def test_a_load_that_is_refused_in_part_fails_with_the_reply(kind: type[Sink], said: str) -> None:
    async with kind() as sink:
        code, output, errors = await loaded(sink.port, "--messages", "10", "--connections", "1")
        assert (code, output) == (1, "")
        assert said in errors
        assert "Traceback" not in errors


async def test_nobody_there_is_a_failure() -> None:
    async with Sink() as sink:
        port = sink.port
    code, output, errors = await loaded(port, "--messages", "1")
    assert (code, output) == (1, "")
    assert errors.startswith("load: ")


async def test_a_run_without_an_end_is_not_begun() -> None:
    code, _, errors = await loaded(9, "--connections", "1")
    assert code == 2
    assert "--messages or --seconds" in errors


@pytest.mark.parametrize("kept", [True, False])
async def test_tls_and_a_password_reach_relayd(tmp_path: Path, kept: bool) -> None:
    async with Sink() as sink, beside_the_loop(PEERS["relayd"].start(Wanted(tmp_path, sink.port, tls=True))) as port:
        secured = plan(port, 6, connections=2, kept=kept, ca=tmp_path / "ca.pem", user=USER, password=PASSWORD)
        assert (await Load(secured).run()).messages == 6
        async with asyncio.timeout(30):
            while len(sink.received) < 6:
                await asyncio.sleep(0.01)
        assert all(b"with ESMTPSA" in received.content for received in sink.received)
        assert PASSWORD.encode() not in (tmp_path / "events.log").read_bytes()
        with pytest.raises(ExceptionGroup) as wrong:
            await Load(secured._replace(password="wrong")).run()
        assert wrong.value.subgroup(RefusedError)
        with pytest.raises(ExceptionGroup):
            await Load(secured._replace(name="other.test")).run()
