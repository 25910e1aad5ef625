"""Why mail was refused is counted and logged with each recorded result, and only there."""

import json

import pytest

from relayd import log, metrics
from tests.fakes.smtp_peer import DROP


@pytest.fixture
def lines(tmp_path):
    """The log's lines about attempts, so far."""
    path = tmp_path / "log"
    log.configure(str(path), "info")
    yield lambda: [line for line in map(json.loads, path.read_bytes().splitlines()) if "recipient" in line]
    log.configure("-", "info")


@pytest.fixture
def counted():
    """By how much each category has grown."""
    before = {category: tally.value for category, tally in metrics.refused.items()}

    def grown():
        now = {category: tally.value for category, tally in metrics.refused.items()}
        return {category: value - before[category] for category, value in now.items() if value > before[category]}

    return grown


async def test_each_recorded_refusal_counts_once_under_its_category(start, relay, eventually, lines, counted):
    peer = await start({"RCPT": ["250 ok", "450 4.2.0 Greylisted", "550 5.1.1 user unknown"]})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,))
    await relay.submit(*[f"{name}@peer.example" for name in "abc"], sender="")
    await eventually(lambda: relay.empty)
    assert counted() == {"greylist": 1, "no_mailbox": 1}
    why = {(line["event"], line["recipient"][0]): line.get("category") for line in lines()}
    assert why == {
        ("delivered", "a"): None,
        ("deferred", "b"): "greylist",
        ("delivered", "b"): None,
        ("failed", "c"): "no_mailbox",
    }


async def test_what_expires_counts_as_what_was_said_last(start, relay, eventually, lines, counted):
    peer = await start({"GREETING": DROP})
    relay = await relay(routes={"*": [peer]}, retry_schedule=(0.05,), max_age=0.01)
    await relay.submit("b@peer.example", sender="")
    await eventually(lambda: relay.empty)
    assert set(counted()) == {"connection"}
    assert lines()[-1]["event"] == "expired"
    assert lines()[-1]["category"] == "connection"
