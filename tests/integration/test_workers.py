"""Several worker processes: mail through all of them, and what becomes of it when one, or their supervisor, goes away."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics

from relayd.control import client
from relayd.control.protocol import MessageView, QueueHold, QueueList, QueueShow, Status, StatusQuery
from relayd.message import queue_id
from tests.crash.stage import RESTART_SECONDS, Stage, content, loading, until
from tests.fakes.judge import Judge
from tests.fakes.limited_peer import LimitedPeer
from tests.fakes.relay_process import RelayProcess
from tests.fakes.sender import Sender

WORKERS = 3
ENOUGH = 100_000
"""Messages nobody gets through."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path, workers=WORKERS) as stage:
        yield stage


def pids(stage: Stage) -> dict[int, int]:
    """The process of each worker, as the log has it: the last one that took mail."""
    return {event["worker"]: event["pid"] for _, event in stage.events("started") if "worker" in event}


def accepted(stage: Stage) -> collections.Counter[int]:
    """Messages by worker."""
    return collections.Counter(queue_id.shard_of(event["id"]) % WORKERS for _, event in stage.events("accepted"))


@contextlib.asynccontextmanager
async def load(stage: Stage, sessions: int = 9) -> AsyncIterator[Sender]:
    """Mail as fast as it is taken; everything that was taken has arrived at the end."""
    sender = stage.sender(sessions=sessions)
    sending = asyncio.create_task(sender.send(range(ENOUGH)))
    try:
        yield sender
    finally:
        ended = sending.done()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert not ended, "nothing left to send"


async def spread(stage: Stage) -> int:
    """Mail by connections that are new each time, until each worker has taken some; how many messages."""
    sent = 0
    async with asyncio.timeout(60):
        while len(accepted(stage)) < WORKERS:
            await stage.sender(sessions=9).send(range(sent, sent + 27))
            sent += 27
    return sent


async def judged(stage: Stage) -> None:
    """All mail has gone, and none of it wrong."""
    deadline = time.monotonic() + 20
    while (await stage.relay.metrics())["relayd_workers"] < WORKERS:
        assert time.monotonic() < deadline, stage.relay.log()
        await asyncio.sleep(0.02)
    await stage.relay.emptied()
    verdict = stage.judge.verdict()
    assert verdict.acknowledged
    assert verdict.faults() == {}


async def command(relay: RelayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, relay._command(*arguments), capture_output=True, text=True, timeout=60
    )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


# --- one relay ------------------------------------------------------------------------------------------------------


async def test_all_workers_take_mail_and_all_of_it_arrives(stage):
    sent = await spread(stage)
    await judged(stage)
    assert len(stage.judge.acknowledged) == sent
    assert sum(accepted(stage).values()) == sent
    samples = await stage.relay.metrics()
    assert samples["relayd_messages_accepted_total"] == sent
    assert samples['relayd_deliveries_total{result="delivered"}'] == sent
    assert await stage.relay.stop() == 0
    assert all(gone(pid) for pid in pids(stage).values())
    await stage.relay.start()


async def test_few_connections_are_shared_out_too(stage):
    before = {number: descriptors(pid) for number, pid in pids(stage).items()}
    streams = []
    for _ in range(10 * WORKERS):
        streams.append(await asyncio.open_connection("127.0.0.1", stage.relay.ports["relay"]))
        await streams[-1][0].readuntil(b"\r\n")
    assert min(descriptors(pid) - before[number] for number, pid in pids(stage).items()) >= 5
    for _, writer in streams:
        writer.close()


async def test_every_process_gives_way_to_who_is_at_work(stage):
    """The supervisor's scheduling is its workers', and their threads'."""
    threads = [int(thread.name) for pid in pids(stage).values() for thread in Path(f"/proc/{pid}/task").iterdir()]
    assert len(threads) > WORKERS
    assert {os.sched_getscheduler(thread) for thread in [stage.relay.process.pid, *threads]} == {os.SCHED_BATCH}


async def test_an_operator_sees_one_queue(stage):
    stage.hop.shut = True  # each message waits, and is tried again every second
    sent = await spread(stage)
    listed = json.loads((await command(stage.relay, "queue", "list", "--json")).stdout)
    assert listed["total"] == sent
    ages = [message["accepted_at"] for message in listed["messages"]]
    assert ages == sorted(ages)
    few = json.loads((await command(stage.relay, "queue", "list", "--limit", "7", "--json")).stdout)
    assert (few["total"], len(few["messages"])) == (sent, 7)
    assert few["messages"][0]["id"] == listed["messages"][0]["id"]

    mine = {queue_id.shard_of(message["id"]): message["id"] for message in listed["messages"]}
    assert sorted(mine) == list(range(WORKERS))
    held = await command(stage.relay, "queue", "hold", *mine.values())
    assert held.returncode == 0, held.stderr
    for name in mine.values():
        assert json.loads((await command(stage.relay, "queue", "show", name, "--json")).stdout)["state"] == "held"
    assert (await stage.relay.metrics())['relayd_queue_messages{state="held"}'] == WORKERS
    stage.hop.shut = False
    await until(lambda: len(stage.judge.arrivals) == sent - WORKERS)
    assert (await command(stage.relay, "queue", "release", *mine.values())).returncode == 0
    await judged(stage)
    unknown = queue_id.compose(1, bytes(10))
    missing = await command(stage.relay, "queue", "show", unknown)
    assert (missing.returncode, missing.stderr) == (os.EX_DATAERR, "relayd: no such message\n")


async def test_metrics_add_up_in_both_formats(stage):
    async with asyncio.timeout(60):
        await stage.sender(sessions=12).send(range(100))
    families = {family.name: family for family in plain_metrics(await stage.relay.get("/metrics"))}
    by_process = [sample.labels["worker"] for sample in families["process_resident_memory_bytes"].samples]
    assert by_process == ["supervisor", "0", "1", "2"]
    assert families["relayd_workers"].samples[0].value == WORKERS
    assert families["relayd_spool_healthy"].samples[0].value == 1
    request = ["curl", "-sS", "-H", "Accept: application/openmetrics-text; version=1.0.0"]
    url = f"http://127.0.0.1:{stage.relay.ports['admin']}/metrics"
    text = await asyncio.to_thread(subprocess.check_output, [*request, url], text=True)
    opened = {family.name: family for family in open_metrics(text)}
    assert [s.value for s in opened["relayd_messages_accepted"].samples if s.name.endswith("_total")] == [100]
    buckets = [s.value for s in opened["relayd_delivery_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    await judged(stage)


# --- a worker dies --------------------------------------------------------------------------------------------------


async def test_a_killed_worker_takes_nothing_with_it(stage):
    async with load(stage, sessions=24):
        await until(lambda: len(stage.judge.acknowledged) > 100)
        before = await stage.relay.metrics()
        [(busiest, _)] = accepted(stage).most_common(1)
        pid = pids(stage)[busiest]
        alive = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: gone(pid))
        others = accepted(stage)
        await until(lambda: accepted(stage) - others)  # while the one that was killed is away
        await until(lambda: pids(stage)[busiest] != pid)
        seconds = time.monotonic() - alive - kept_waiting(pids(stage)[busiest])
        stage.judge.cut(alive, time.monotonic())
        after = await stage.relay.metrics()
    for name in ("relayd_messages_accepted_total", 'relayd_deliveries_total{result="delivered"}'):
        assert after[name] >= before[name] > 0
    assert after["relayd_worker_restarts_total"] == 1
    assert seconds < RESTART_SECONDS or seconds - await asyncio.to_thread(loading) < RESTART_SECONDS / 2
    [(_, died)] = stage.events("worker-died")
    assert (died["worker"], died["pid"], died["status"]) == (busiest, pid, -signal.SIGKILL)
    await judged(stage)


async def test_a_worker_told_to_end_by_an_operator_drains_and_is_replaced(stage):
    async with load(stage):
        await until(lambda: len(stage.judge.acknowledged) > 100)
        pid = pids(stage)[0]
        os.kill(pid, signal.SIGTERM)
        await until(lambda: pids(stage)[0] != pid)
    [(_, died)] = stage.events("worker-died")
    assert (died["worker"], died["status"]) == (0, 0)
    samples = await stage.relay.metrics()
    assert samples["relayd_messages_accepted_total"] == sum(accepted(stage).values())
    await judged(stage)


def kept_waiting(pid: int) -> float:
    """Seconds for which a process could have run and others did."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


async def test_the_clients_of_a_killed_worker_see_it_and_the_others_do_not(stage):
    streams = [await asyncio.open_connection("127.0.0.1", stage.relay.ports["relay"]) for _ in range(12)]
    for reader, _ in streams:
        await reader.readuntil(b"\r\n")
    number, victim = max(pids(stage).items(), key=lambda worker: descriptors(worker[1]))
    os.kill(victim, signal.SIGKILL)
    await until(lambda: gone(victim))
    for _, writer in streams:
        writer.write(b"QUIT\r\n")
    ends = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in streams), return_exceptions=True), 10)
    closed = [end for end in ends if end == b"" or isinstance(end, ConnectionResetError)]
    assert closed
    assert all(end.startswith(b"221") for end in ends if end not in closed)
    for _, writer in streams:
        writer.close()
    await until(lambda: pids(stage)[number] != victim)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_worker_that_keeps_dying_is_started_ever_later(stage):
    """At once, then after a second. What was counted in any of its lives stays counted."""
    sent = await spread(stage)
    await stage.relay.emptied()
    assert (await stage.relay.metrics())["relayd_messages_accepted_total"] == sent
    for pause in (0.0, 1.0):
        pid = pids(stage)[2]
        os.kill(pid, signal.SIGKILL)
        died = time.monotonic()
        await until(lambda pid=pid: pids(stage)[2] != pid)
        assert time.monotonic() - died >= pause
    samples = await stage.relay.metrics()
    assert samples["relayd_worker_restarts_total"] == 2
    assert samples["relayd_messages_accepted_total"] == sent
    assert await stage.unready() == ""
    await judged(stage)


async def test_a_message_whose_worker_is_away_is_asked_for_in_vain_but_answered(stage):
    os.kill(pids(stage)[1], signal.SIGKILL)
    await until(lambda: next(stage.events("worker-died"), None))
    for question, answer in (
        (QueueShow(queue_id.compose(1, bytes(10))), "worker 1 is restarting"),
        (QueueShow(queue_id.compose(0, bytes(10))), "no such message"),
        (QueueHold(queue_id.compose(1, bytes(10)), held=True), "worker 1 is restarting"),
        (QueueList(), "worker 1 is restarting"),
    ):
        with pytest.raises(client.ControlError, match=answer):
            await asyncio.to_thread(client.ask, stage.spool, question, MessageView)
    status = await asyncio.to_thread(client.ask, stage.spool, StatusQuery(), Status)
    assert (status.pid, status.unready) == (stage.pid, "")


async def test_a_hung_worker_holds_nobody_up(stage):
    pid = pids(stage)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        await stage.becomes("worker 0 is not answering")
        started = time.monotonic()
        samples = await stage.relay.metrics()
        assert time.monotonic() - started < 2
        assert samples["relayd_workers"] == WORKERS
        async with asyncio.timeout(30):
            await stage.sender().send(range(20))
    finally:
        os.kill(pid, signal.SIGCONT)
    await stage.becomes("")
    assert pids(stage)[0] == pid
    await judged(stage)


# --- the supervisor -------------------------------------------------------------------------------------------------


async def test_workers_do_not_outlive_their_supervisor(stage):
    async with load(stage):
        await until(lambda: len(stage.judge.acknowledged) > 100)
        workers = pids(stage).values()
        await stage.kill()
        started = time.monotonic()
        await until(lambda: all(map(gone, workers)), 10)
        assert time.monotonic() - started < 2
        await stage.relay.start()
        acknowledged = len(stage.judge.acknowledged)
        await until(lambda: len(stage.judge.acknowledged) > acknowledged)
    await judged(stage)


async def test_a_drain_under_load_loses_nothing(stage):
    async with load(stage):
        await until(lambda: len(stage.judge.acknowledged) > 100)
        started = time.monotonic()
        assert await stage.relay.stop() == 0
        assert time.monotonic() - started < 30
        assert all(map(gone, pids(stage).values()))
        await stage.relay.start()
    await judged(stage)


async def test_a_reload_replaces_every_worker_and_refuses_nobody(stage):
    before = pids(stage)
    probing = asyncio.Event()
    outcomes: collections.Counter[str] = collections.Counter()
    prober = asyncio.create_task(probe(stage.relay.ports["relay"], probing, outcomes))
    async with load(stage):
        await until(lambda: len(stage.judge.acknowledged) > 100)
        os.kill(stage.pid, signal.SIGHUP)
        await until(lambda: all(pids(stage)[number] != pid for number, pid in before.items()), 60)
    probing.set()
    await prober
    assert set(outcomes) == {"220"}, outcomes
    samples = await stage.relay.metrics()
    assert samples["relayd_worker_restarts_total"] == 0
    assert samples["relayd_messages_accepted_total"] == sum(accepted(stage).values())
    assert list(stage.events("worker-died")) == []
    assert all(map(gone, before.values()))
    await judged(stage)


async def probe(port: int, end: asyncio.Event, outcomes: collections.Counter[str]) -> None:
    """Connect again and again, as a client that comes once."""
    while not end.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            outcomes[(await reader.read(3)).decode()] += 1
            writer.close()
        except OSError as error:
            outcomes[type(error).__name__] += 1
        await asyncio.sleep(0.002)


async def test_a_reload_takes_up_the_configuration_unless_it_is_wrong(stage):
    before = pids(stage)
    good = stage.relay.configuration.read_text()
    stage.relay.configuration.write_text(good.replace("[delivery]", "[delivery]\nport = 0"))
    os.kill(stage.pid, signal.SIGHUP)
    await until(lambda: any("problems" in event for _, event in stage.events("alert")))
    [problems] = [event["problems"] for _, event in stage.events("alert") if "problems" in event]
    assert "delivery.port" in problems[0]

    # Sound by itself, but the listeners that stay need what it lacks.
    plain = re.sub(r'kind = "submissions?"', 'kind = "relay"', re.sub(r"\[tls\]\n(\w.*\n)+", "", good))
    stage.relay.configuration.write_text(plain)
    os.kill(stage.pid, signal.SIGHUP)
    await until(lambda: any("needs a [tls]" in str(event) for _, event in stage.events("alert")))
    assert pids(stage) == before
    stage.relay.configuration.write_text(
        good.replace(f"workers = {WORKERS}", "workers = 5").replace(
            "[limits]", "[limits]\nmessage_size = 1000\nheader_size = 500"
        )
    )
    os.kill(stage.pid, signal.SIGHUP)
    await until(lambda: all(pids(stage)[number] != pid for number, pid in before.items()), 60)
    fixed = [event["options"] for _, event in stage.events("alert") if "options" in event]
    assert fixed == [["listeners"], ["workers"]]
    assert sorted(pids(stage)) == list(range(WORKERS))
    sender = stage.sender()
    async with asyncio.timeout(20):
        await sender.send([1])
    assert [reply[:3] for reply in sender.refused] == ["552"]


# --- starts that fail -----------------------------------------------------------------------------------------------


async def test_a_worker_that_cannot_start_ends_everything(tmp_path):
    """Only one of them finds its shard's directory to be a file."""
    relay = RelayProcess(tmp_path, [1], workers=2)
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "spool" / "shard-01").write_text("")
    ended = await command(relay, "serve")
    assert ended.returncode == os.EX_IOERR, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if "running as root" not in line]
    assert "shard-01" in line


async def test_a_second_relay_on_the_spool_gives_up(stage, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    second = RelayProcess(other, [1], workers=2, extra=f'[spool]\npath = "{stage.spool}"\n')
    ended = await command(second, "serve")
    assert ended.returncode == os.EX_TEMPFAIL
    assert "belongs to another process" in ended.stderr
    assert (await command(stage.relay, "queue", "list")).returncode == 0


async def test_nobody_else_starts_a_worker(stage):
    """Such a worker would share the spool with those there are."""
    ended = await asyncio.to_thread(
        subprocess.run, [*stage.relay._command("worker")[:-2], "--channel", "0"], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (ended.returncode, len(ended.stderr.splitlines())) == (os.EX_USAGE, 1), ended.stderr


# --- what counts for all of them ------------------------------------------------------------------------------------


async def test_failed_logins_count_together(stage):
    """Five guesses a minute, whichever workers they reach; the sixth is not looked at."""
    stage.relay.add_user("ada", "correct horse")
    context = stage.relay.client_context()
    replies = [await guess(stage.relay, context) for _ in range(9)]
    assert [reply[:5] for reply in replies[:5]] == [b"535 5"] * 5
    failures = [event for _, event in stage.events("authentication-failed")]
    await until(lambda: len(list(stage.events("authentication-failed"))) == 9)
    failures = [event for _, event in stage.events("authentication-failed")]
    assert [event["limited"] for event in failures] == [False] * 5 + [True] * 4


async def guess(relay: RelayProcess, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", relay.ports["submissions"], ssl=context, server_hostname="localhost"
    )
    proof = base64.b64encode(b"\0ada\0wrong")
    with contextlib.closing(writer):
        await reader.readuntil(b"\r\n")
        writer.write(b"EHLO client.test\r\n")
        while not (await reader.readuntil(b"\r\n")).startswith(b"250 "):
            pass
        writer.write(b"AUTH PLAIN " + proof + b"\r\n")
        return await reader.readuntil(b"\r\n")


class Wary(RelayProcess):
    """Trusts one address of loopback's."""

    def _text(self, *options):
        return super()._text(*options).replace("127.0.0.0/8", "127.0.0.1/32")


async def test_limits_on_clients_hold_for_all_workers_together(tmp_path):
    """The fifth connection of a client is refused, and the eighth of all, whichever workers they reach."""
    limits = 'disk_reserve = "16MB"\nconnections = 7\nconnections_per_client = 4'
    async with Stage(tmp_path, Wary, workers=WORKERS, limits=limits) as stage, contextlib.AsyncExitStack() as clients:

        async def greeting(address: str) -> bytes:
            streams = asyncio.open_connection("127.0.0.1", stage.relay.ports["relay"], local_addr=(address, 0))
            reader, writer = await streams
            clients.callback(writer.close)
            return (await reader.readuntil(b"\r\n"))[:9]

        said = [await greeting("127.0.0.2") for _ in range(5)]
        assert said == [b"220 relay"] * 4 + [b"421 4.7.0"]
        said = [await greeting("127.0.0.1") for _ in range(4)]
        assert said == [b"220 relay"] * 3 + [b"421 4.3.2"]
        before = pids(stage)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not before.items() & pids(stage).items())
        assert await greeting("127.0.0.2") == b"220 relay"


async def test_a_quota_holds_for_all_workers_together_and_outlives_them(tmp_path):
    """What each has taken counts with those that come after them, the ones that started before others had ended, too."""
    quota = '[[quotas]]\nrecipients_per_hour = 20\naccounts = ["net:127.0.0.0/8"]\n'
    async with Stage(tmp_path, workers=WORKERS, extra=quota) as stage:
        assert await asked(stage.relay, clients=10, recipients=2) == [b"250", b"250"] * 10
        before = pids(stage)
        os.kill(stage.pid, signal.SIGHUP)
        await until(lambda: len(pids(stage).items() - before.items()) == WORKERS)
        assert await asked(stage.relay, clients=10, recipients=1) == [b"450"] * 10
        assert {event["account"] for _, event in stage.events("alert") if event["what"] == "quota used up"} == {
            "net:127.0.0.0/8"
        }


async def asked(relay: RelayProcess, clients: int, recipients: int) -> list[bytes]:
    """The codes that so many clients get, all connected at once, for so many recipients each."""
    async with contextlib.AsyncExitStack() as connected:
        streams = []
        for _ in range(clients):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.ports["relay"])
            connected.callback(writer.close)
            await reader.readuntil(b"\r\n")
            streams.append((reader, writer))
        for reader, writer in streams:
            writer.write(b"HELO client.test\r\n")
            await reader.readuntil(b"\r\n")
            writer.write(b"MAIL FROM:<a@b.test>\r\n")
            await reader.readuntil(b"\r\n")
        codes = []
        for reader, writer in streams:
            for number in range(recipients):
                writer.write(b"RCPT TO:<u%d@c.test>\r\n" % number)
                codes.append((await reader.readuntil(b"\r\n"))[:3])
        return codes


async def test_a_limit_of_a_site_holds_for_all_workers_together(tmp_path):
    """Four workers, all with mail for it, three connections: never a fourth, and all of it arrives."""
    judge = Judge(content)
    async with LimitedPeer(service=0.01, on_message=judge.take) as peer:
        route = f'[[routes]]\ndomains = ["*"]\nnext_hops = ["127.0.0.1:{peer.port}"]\nconnections = 3\n'
        async with RelayProcess(tmp_path, workers=4, extra=route) as relay:
            sent, shards = 0, set[int]()
            async with asyncio.timeout(60):
                while len(shards) < 4:
                    await Sender(relay.ports["relay"], judge, sessions=16).send(range(sent, sent + 64))
                    sent += 64
                    shards = {queue_id.shard_of(name) for name in re.findall(r'"accepted","id":"(\w+)"', relay.log(10**6))}
            await relay.emptied()
    assert peer.most <= 3
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert len(judge.acknowledged) == sent
