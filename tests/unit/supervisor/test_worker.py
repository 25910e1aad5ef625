"""A worker's part of the relay: its settings, handed over as they were said, and its portion of the limits."""

from __future__ import annotations

import msgspec
import pytest

from relayd.config import load
from relayd.config.schema import Settings
from relayd.control.messages import Setup
from relayd.supervisor import worker

CONFIGURATION = """
hostname = "relay.example"
workers = 2
[[listeners]]
bind = "127.0.0.1:2525"
kind = "relay"
bare_lf = "normalize"
[relay]
trusted_networks = ["127.0.0.0/8", "::1/128"]
[limits]
memory = "100MB"
[delivery]
retry_schedule = ["2m", "1h"]
[[routes]]
domains = ["*.example.net"]
next_hops = ["127.0.0.1:2500", {host="mx.example.net", port=587, weight=2}]
[routes.credentials]
username = "ada"
password = "correct horse"
[log]
file = "events.log"
"""


def test_the_settings_that_arrive_are_those_that_were_loaded(tmp_path, monkeypatch):
    """Secrets, paths and the environment with them, though file and environment have changed by then."""
    file = tmp_path / "relayd.toml"
    file.write_text(CONFIGURATION)
    monkeypatch.setenv("RELAYD_LIMITS__RECIPIENTS", "7")
    found = load.loaded(file)
    assert found.settings == load.load(file)
    monkeypatch.delenv("RELAYD_LIMITS__RECIPIENTS")
    file.unlink()
    sent = msgspec.msgpack.encode(Setup(0, 2, str(found.file), found.raw, b"", b"", [(0, 5)], 6))
    setup = msgspec.msgpack.decode(sent, type=Setup)
    arrived = load.trusted(found.file, setup.options)
    assert arrived == found.settings
    assert arrived.limits.recipients == 7
    assert arrived.routes[0].credentials.password.get_secret_value() == "correct horse"
    assert arrived.log.file == tmp_path / "events.log"


@pytest.mark.parametrize(("workers", "memory"), [(2, 500), (3, 333), (10, 100), (2000, 1)])
def test_a_portion_of_the_memory_is_an_equal_part_and_never_nothing(workers, memory):
    settings = Settings(hostname="relay.example", limits={"memory": 1000})
    part = worker.portion(settings, workers)
    assert part.limits.memory == memory
    assert part.limits.model_copy(update={"memory": 1000}) == settings.limits, "everything else is for all together"
