"""A supervisor in this process, with times of its own, and workers that stop answering."""

from __future__ import annotations

import os
import signal

import pytest

from relayd import log
from relayd.config import load
from relayd.supervisor import worker_process
from relayd.supervisor.supervisor import Supervisor
from tests.crash.stage import until
from tests.fakes.relay_process import free_ports


@pytest.fixture
async def supervisor(tmp_path):
    port, admin = free_ports(2)
    (tmp_path / "relayd.toml").write_text(
        f"""
        hostname = "relay.example"
        workers = 2
        [[listeners]]
        bind = "127.0.0.1:{port}"
        kind = "relay"
        [relay]
        trusted_networks = ["127.0.0.0/8"]
        [spool]
        path = "spool"
        [admin]
        bind = "127.0.0.1:{admin}"
        [log]
        file = "events.log"
        """
    )
    log.configure(str(tmp_path / "supervisor.log"), "info")
    supervisor = Supervisor(load.loaded(tmp_path / "relayd.toml"))
    supervisor.bind()
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop("test")
        log.configure("-", "info")


async def test_a_worker_that_does_not_answer_is_killed_and_replaced(supervisor, monkeypatch, tmp_path):
    place = supervisor._places[0]
    hung = place._process
    monkeypatch.setattr(worker_process, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(worker_process, "ANSWER_SECONDS", 0.2)
    os.kill(hung.pid, signal.SIGSTOP)
    await until(hung.ended.is_set, 20)
    await until(lambda: place.status is not None, 20)
    assert place._process.pid != hung.pid
    assert supervisor.unready() == ""
    await until(lambda: '"worker killed, as it does not answer"' in (tmp_path / "supervisor.log").read_text())
