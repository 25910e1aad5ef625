"""The installed command from `init` to the last 250: one message's whole way, a stop, a crash, and what an operator sees."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Session
from aiosmtpd.smtp import Envelope as SinkEnvelope

import relayd
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.spool.records import Accepted
from relayd.spool.shard import JournalStore
from tests.fakes.relay_process import environment, free_ports

PASSWORD = "correct horse battery staple"


class Sink:
    """A next hop made of another library; `closed` refuses connections."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.contents: list[bytes] = []
        self.recipients: list[str] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        factory = lambda: SMTP(self, hostname="sink.example", enable_SMTPUTF8=True)  # noqa: E731
        self._server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: SinkEnvelope, address: str, _: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: SinkEnvelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.contents.append(envelope.content)
        self.recipients += envelope.rcpt_tos
        return "250 taken"


class Relay:
    """A directory made by `relayd init`, its ports made free ones, and the process serving it."""

    def __init__(self, directory: Path, next_hop: int) -> None:
        self.config = directory / "relayd.toml"
        self.certificate = directory / "cert.pem"
        self.directory = directory
        self.submission, self.submissions, self.relay, self.admin = free_ports(4)
        self.process: subprocess.Popen[bytes] | None = None
        made = self.run("init", directory, "--user", "ada", "--password-stdin", config=False, stdin=PASSWORD)
        assert made.returncode == 0, made.stderr
        text = self.config.read_text()
        for old, new in ((2587, self.submission), (2465, self.submissions), (2525, self.relay), (9925, self.admin)):
            text = text.replace(f":{old}", f":{new}")
        text = text.replace('# bind = "127.0.0.1', 'bind = "127.0.0.1').replace(
            '# disk_reserve = "1GB"', 'disk_reserve = "1MB"'
        )
        text = re.sub(r"# retry_schedule = .*", 'retry_schedule = ["1s"]', text, count=1)
        self.config.write_text(text + f'\n[[routes]]\ndomains = ["*"]\nnext_hops = ["127.0.0.1:{next_hop}"]\n')

    def run(self, *arguments: object, config: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "relayd", *map(str, arguments)]
        command += ["--config", str(self.config)] if config else []
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=30, check=False, env=environment()
        )

    def launch(self) -> None:
        with (self.directory / "output").open("ab") as output:
            command = [sys.executable, "-m", "relayd", "serve", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())

    async def start(self) -> None:
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + 20
        while (await asyncio.to_thread(self.get, "/readyz"))[0] != 200:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return await asyncio.to_thread(process.wait, 35)

    def output(self) -> str:
        return (self.directory / "output").read_text()

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    async def submit(self, *recipients: str, body: str = "Subject: hello\r\n\r\n.dotted\r\nbody\r\n") -> None:
        await asyncio.to_thread(self._submit, recipients, body)

    def _submit(self, recipients: tuple[str, ...], body: str) -> None:
        context = ssl.create_default_context(cafile=str(self.certificate))
        with smtplib.SMTP("localhost", self.submission, timeout=10) as client:
            client.starttls(context=context)
            client.login("ada", PASSWORD)
            assert client.sendmail("ada@example.net", recipients, body) == {}


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    sink = Sink()
    yield sink
    await sink.close()


@pytest.fixture
async def relay(tmp_path: Path, sink: Sink) -> AsyncIterator[Relay]:
    relay = await asyncio.to_thread(Relay, tmp_path / "relay", sink.port)
    yield relay
    if relay.process is not None:
        relay.process.kill()
        relay.process.wait()


async def test_the_whole_way(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    await sink.open()
    await relay.start()
    await relay.submit("bob@example.org", "eve@example.org")
    await eventually(lambda: sink.contents)
    assert sink.recipients == ["bob@example.org", "eve@example.org"]
    assert sink.contents[0].startswith(b"Received: ")
    assert sink.contents[0].endswith(b"\r\n\r\n.dotted\r\nbody\r\n")
    await eventually(lambda: len(relay.events("delivered")) == 2)
    started = time.monotonic()
    assert await relay.end(signal.SIGTERM) == 0, relay.output()
    assert time.monotonic() - started < 10
    assert [relay.events(name) != [] for name in ("started", "accepted", "stopping", "stopped")] == [True] * 4
    assert PASSWORD not in relay.output()
    assert "body" not in relay.output()


async def test_what_an_operator_sees(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    await relay.start()
    await relay.submit("bob@example.org")
    await eventually(lambda: relay.events("deferred"))
    asked = await asyncio.to_thread(relay.run, "queue", "list", "--json")
    [message] = json.loads(asked.stdout)["messages"]
    assert (message["sender"], message["account"], message["recipients"][0]["address"]) == (
        "ada@example.net", "user:ada", "bob@example.org",
    )  # fmt: skip
    shown = await asyncio.to_thread(relay.run, "queue", "show", message["id"])
    assert "bob@example.org\tdeferred" in shown.stdout
    status, metrics = await asyncio.to_thread(relay.get, "/metrics")
    assert status == 200
    assert "relayd_messages_accepted_total 1.0" in metrics
    assert (
        sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("relayd_queue_messages{")) == 1
    )
    assert await asyncio.to_thread(relay.get, "/healthz") == (200, "ok\n")
    assert await relay.end(signal.SIGTERM) == 0, relay.output()
    read = await asyncio.to_thread(relay.run, "queue", "list", "--json")
    assert [m["id"] for m in json.loads(read.stdout)["messages"]] == [message["id"]]


async def test_a_crash_loses_nothing(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    await relay.start()
    for number in range(5):
        await relay.submit(f"r{number}@example.org")
    assert await relay.end(signal.SIGKILL) == -signal.SIGKILL
    await sink.open()
    await relay.start()
    await eventually(lambda: len(sink.recipients) == 5)
    assert sorted(sink.recipients) == [f"r{number}@example.org" for number in range(5)]
    assert await relay.end(signal.SIGTERM) == 0
    read = await asyncio.to_thread(relay.run, "queue", "list", "--json")
    assert json.loads(read.stdout)["total"] == 0


async def test_users_change_while_it_runs(relay: Relay, sink: Sink) -> None:
    await relay.start()
    removed = await asyncio.to_thread(relay.run, "user", "remove", "ada")
    assert removed.returncode == 0
    with pytest.raises(smtplib.SMTPAuthenticationError):
        await relay.submit("bob@example.org")
    await asyncio.to_thread(relay.run, "user", "add", "ada", "--password-stdin", stdin=PASSWORD)
    await relay.submit("bob@example.org")


async def test_a_second_server_on_the_spool_gives_up(relay: Relay) -> None:
    """Its ports are free ones: the spool's lock alone is what stops it."""
    await relay.start()
    text = relay.config.read_text()
    for port, other in zip((relay.submission, relay.submissions, relay.relay, relay.admin), free_ports(4), strict=True):
        text = text.replace(f":{port}", f":{other}")
    second = relay.directory / "second.toml"
    second.write_text(text)
    command = [sys.executable, "-m", "relayd", "serve", "--config", str(second)]
    ended = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30, check=False, env=environment()
    )
    assert ended.returncode == os.EX_TEMPFAIL
    assert "Traceback" not in ended.stderr
    asked = await asyncio.to_thread(relay.run, "queue", "list")
    assert asked.returncode == 0  # the first one's control socket is still its own
    assert (await asyncio.to_thread(relay.get, "/readyz"))[0] == 200


async def seed(relay: Relay, shard: int, *recipients: str) -> None:
    """Leave a message in a shard, as a relay that was stopped would have."""
    store = JournalStore(relay.directory / "spool" / f"shard-{shard:02d}", shard)
    await store.open()
    body = b"Subject: seeded\r\n\r\nx\r\n"
    name = queue_id.compose(shard, os.urandom(10))
    to = tuple(map(Address, recipients))
    envelope = Envelope(name, Address("ada@example.net"), to, "user:ada", time.time(), len(body))
    await store.commit([Accepted(envelope, body)])
    await store.close()


async def test_fewer_shards_than_before(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    """What the shards above hold is delivered; new mail goes elsewhere."""
    config = relay.config.read_text()
    for number in range(16):
        await seed(relay, number % 8, f"r{number}@example.org")
    relay.config.write_text(re.sub("# shards = .*", "shards = 1", re.sub("# workers = .*", "workers = 1", config)))
    await sink.open()
    await relay.start()
    await relay.submit("last@example.org")
    await eventually(lambda: len(sink.recipients) == 17)
    assert [queue_id.shard_of(str(event["id"])) for event in relay.events("accepted")] == [0]


async def test_every_shard_tells_of_failures(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    relay.config.write_text(re.sub("# shards = .*", "shards = 8", relay.config.read_text()))
    for number in range(12):
        await seed(relay, number % 8, "bob@example.org", f"nobody{number}@example.org")
    await sink.open()
    await relay.start()
    await eventually(lambda: len(sink.recipients) == 24)
    assert sorted(sink.recipients) == ["ada@example.net"] * 12 + ["bob@example.org"] * 12
    reported = {
        name
        for content in sink.contents
        for name in re.findall(rb"^Final-Recipient: rfc822; (\S+)", content, re.MULTILINE)
    }
    assert reported == {b"nobody%d@example.org" % number for number in range(12)}
    assert {queue_id.shard_of(str(event["id"])) for event in relay.events("notified")} == set(range(8))
    await eventually(lambda: not json.loads(relay.run("queue", "list", "--json").stdout)["total"])
    assert await relay.end(signal.SIGTERM) == 0
    await relay.start()
    assert [event["quarantined"] for event in relay.events("recovered")] == [0] * 16


async def test_a_stop_while_starting(relay: Relay, eventually) -> None:  # type: ignore[no-untyped-def]
    """The admin port answers while the spool's lock is waited for, and a stop doesn't wait for it."""
    shard = relay.directory / "spool/shard-00"
    shard.mkdir(parents=True)
    with (shard / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        relay.launch()
        await eventually(lambda: relay.get("/readyz") == (503, "starting\n"))
        assert await asyncio.to_thread(relay.get, "/healthz") == (200, "ok\n")
        started = time.monotonic()
        assert await relay.end(signal.SIGTERM) == 0
    assert time.monotonic() - started < 4


async def test_a_second_signal_cuts(relay: Relay, sink: Sink, eventually) -> None:  # type: ignore[no-untyped-def]
    """The next hop takes the connection and says nothing: a drain would wait for it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", sink.port))
        silent.listen()
        await relay.start()
        await relay.submit("bob@example.org")
        await eventually(lambda: 'relayd_connections{direction="outbound"} 1.0' in relay.get("/metrics")[1])
        process = relay.process
        assert process is not None
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: relay.get("/readyz") == (503, "stopping\n"))
        assert await relay.end(signal.SIGINT) == 0
    assert time.monotonic() - started < 10
    read = await asyncio.to_thread(relay.run, "queue", "list", "--json")
    assert json.loads(read.stdout)["total"] == 1


def become_nobody(relay: Relay, workers: int = 1) -> None:
    text = relay.config.read_text().replace('# user = "relayd"', 'user = "nobody"')
    relay.config.write_text(re.sub("# workers = .*", f"workers = {workers}", text))


def others_may_enter(*paths: str) -> bool:
    """Whether others than root can get at these files."""
    return all(parent.stat().st_mode & 0o001 for path in paths for parent in Path(path).resolve().parents)


WORKERS = [1, 2] if others_may_enter(sys.executable, relayd.__file__, pytest.__file__) else [1]
"""Several workers are started when root has been given up: by an interpreter in root's home that cannot be."""


def processes(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def users(pid: int) -> set[str]:
    """All four of a process: real, effective, saved, of file systems."""
    [line] = re.findall(r"^Uid:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return set(line.split())


def privileged_port() -> int:
    """A free one that only root can take."""
    for port in range(600, 1024):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("workers", WORKERS)
async def test_root_is_given_up(relay: Relay, sink: Sink, eventually, workers: int) -> None:  # type: ignore[no-untyped-def]
    for directory in itertools.takewhile(lambda path: path != Path(tempfile.gettempdir()), relay.directory.parents):
        directory.chmod(0o755)
    await asyncio.to_thread(relay.run, "user", "remove", "ada")
    become_nobody(relay, workers)
    text = relay.config.read_text()
    port = privileged_port()
    relay.config.write_text(text.replace(f":{relay.submission}", f":{port}"))
    relay.submission = port
    added = await asyncio.to_thread(relay.run, "user", "add", "ada", "--password-stdin", stdin=PASSWORD)
    assert added.returncode == 0
    await sink.open()
    await relay.start()
    assert relay.process is not None
    nobody = (relay.directory / "spool").stat().st_uid
    assert nobody != 0
    before = processes(relay.process.pid)
    assert len(before) == (1 if workers == 1 else 1 + workers)
    assert [users(pid) for pid in before] == [{str(nobody)}] * len(before)
    await relay.submit("bob@example.org")
    await eventually(lambda: sink.contents)
    if workers > 1:  # none of those that take their place could bind the port, or read the private key
        for worker in before[1:]:
            os.kill(worker, signal.SIGKILL)
        await eventually(lambda: relay.output().count('"recovered"') == 2 * workers, 30)
        await relay.submit("bob@example.org")
        await eventually(lambda: len(sink.contents) == 2)
    assert await relay.end(signal.SIGTERM) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_the_users_file_of_init_is_readable_after_root(relay: Relay) -> None:
    """Whatever root does with it later: the file that replaces it has the same owner from its first moment."""
    for directory in relay.directory.parents[:3]:
        directory.chmod(0o755)
    become_nobody(relay)
    await relay.start()
    owner = (relay.directory / "spool").stat().st_uid
    assert (relay.directory / "users").stat().st_uid == owner != 0
    assert await relay.end(signal.SIGTERM) == 0


async def test_a_full_disk_is_not_ready(relay: Relay, eventually) -> None:  # type: ignore[no-untyped-def]
    """As MAIL sees it: a balancer that asks /readyz takes its mail elsewhere."""
    relay.config.write_text(re.sub("(# )?disk_reserve = .*", 'disk_reserve = "1000TB"', relay.config.read_text()))
    relay.launch()
    await eventually(lambda: relay.get("/readyz") == (503, "disk full\n"))
    assert await relay.end(signal.SIGTERM) == 0


async def test_a_port_in_use(relay: Relay) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", relay.submission))
        taken.listen()
        ended = await asyncio.to_thread(relay.run, "serve")
    assert ended.returncode == os.EX_TEMPFAIL
    assert str(relay.submission) in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_log_file_reopened(relay: Relay, eventually) -> None:  # type: ignore[no-untyped-def]
    relay.config.write_text(relay.config.read_text().replace('# file = "-"', 'file = "events.log"'))
    await relay.start()
    log = relay.directory / "events.log"
    log.rename(log.with_suffix(".old"))
    assert relay.process is not None
    relay.process.send_signal(signal.SIGHUP)
    await eventually(log.exists)
    assert await relay.end(signal.SIGTERM) == 0
    assert b'"stopping"' in log.read_bytes()
    assert b'"started"' in log.with_suffix(".old").read_bytes()


async def test_systemd_is_told(relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        await relay.start()
        assert await asyncio.to_thread(systemd.recv, 100) == b"READY=1"
        assert await relay.end(signal.SIGTERM) == 0
        assert await asyncio.to_thread(systemd.recv, 100) == b"STOPPING=1"
