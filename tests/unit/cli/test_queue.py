"""`relayd queue` on a spool without a server."""

import json
from pathlib import Path

import pytest

from relayd.cli import output
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool.records import Accepted, Result, State
from relayd.spool.shard import JournalStore
from tests.unit.cli.conftest import Run

IDS = [queue_id.compose(0, bytes([number] * 10)) for number in range(3)]
REPLY = Reply(450, "4.2.0", "[red]later[/red]")


def accepted(number: int) -> Accepted:
    recipients = tuple(Address(f"r{n}@example.org") for n in range(5))
    envelope = Envelope(IDS[number], Address(f"{number}@example.net"), recipients, "user:app", 1000.0 + number, 2048)
    return Accepted(envelope, b"x" * 2048, (Result(1, State.DEFERRED, 2, 1100.0, 4e9, REPLY, "mx[192.0.2.1]:25"),))


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    store = JournalStore(tmp_path / "spool/shard-00", 0)
    await store.open()
    await store.commit([accepted(number) for number in range(3)])
    await store.close()
    path = tmp_path / "relayd.toml"
    path.write_text('hostname = "a.example"\n')
    return path


def test_list(run: Run, config: Path) -> None:
    out = run("queue", "list", "--config", config).out.splitlines()
    assert [line.split("\t")[0] for line in out] == ["Id", *IDS]
    assert "<0@example.net>" in out[1]
    assert "r0@example.org, r1@example.org, r2@example.org and 2 more" in out[1]


def test_list_as_json(run: Run, config: Path) -> None:
    document = json.loads(run("queue", "list", "--json", "--config", config).out)
    assert document["total"] == 3
    first = document["messages"][0]
    assert (first["id"], first["sender"], first["account"], first["size"]) == (
        IDS[0],
        "0@example.net",
        "user:app",
        2048,
    )
    assert first["recipients"][1] == {
        "address": "r1@example.org", "state": "deferred", "attempts": 2, "due": 4e9,
        "reply": "450 4.2.0 [red]later[/red]", "host": "mx[192.0.2.1]:25",
    }  # fmt: skip


def test_list_some(run: Run, config: Path) -> None:
    assert json.loads(run("queue", "list", "1@example.net", "--json", "--config", config).out)["total"] == 1
    limited = run("queue", "list", "--limit", "1", "--config", config)
    assert len(limited.out.splitlines()) == 2
    assert "1 of 3 messages" in limited.err


def test_show(run: Run, config: Path) -> None:
    out = run("queue", "show", IDS[1], "--config", config).out
    assert "Sender:  <1@example.net>" in out
    assert "450 4.2.0 [red]later[/red]" in out
    assert json.loads(run("queue", "show", IDS[1], "--json", "--config", config).out)["id"] == IDS[1]


def test_show_on_a_terminal_takes_no_markup(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.cli.output.console._force_terminal", True)
    monkeypatch.setattr("relayd.cli.output.console._width", 300)
    assert "[red]later[/red]" in run("queue", "show", IDS[1], "--config", config).out


def test_no_such_message(run: Run, config: Path) -> None:
    assert run("queue", "show", queue_id.compose(0, bytes([9] * 10)), "--config", config).code == 65


@pytest.mark.parametrize("identity", ["x", "../../etc/passwd", "*", IDS[0] + "/"])
def test_what_is_no_id(run: Run, config: Path, identity: str) -> None:
    assert run("queue", "show", identity, "--config", config).code == 64


def test_no_spool_yet(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text('hostname = "a.example"\n')
    assert json.loads(run("queue", "list", "--json", "--config", path).out) == {"total": 0, "messages": []}


def test_an_ipv6_address_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    output.console.print("Client: 2001:db8:a::1")
    assert capsys.readouterr().out == "Client: 2001:db8:a::1\n"
