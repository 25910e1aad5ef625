"""The control socket: server and client over a real socket, and lines no client of ours would send."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.control import client, protocol
from relayd.control.answers import Answers
from relayd.control.protocol import Listing, MessageView, QueueList, QueueShow, Status, StatusQuery
from relayd.control.server import Control
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool.records import Message, Result, State
from relayd.spool.store import StoreError

STATUS = Status("0.1.0", 1, "relay.example", "", 1.0, {"ready": 3}, 2.0)
IDS = [queue_id.compose(0, bytes([number] * 10)) for number in range(3)]


def queued(identity: str, sender: str = "a@example.net") -> Message:
    recipients = (Address("b@example.org"), Address("c@example.org"), Address("d@example.org"))
    envelope = Envelope(identity, Address(sender), recipients, "user:app", 1000.0, 42, client="192.0.2.1")
    later = Result(1, State.DEFERRED, 2, 1100.0, 4e9, Reply(450, "4.2.0", "greylisted"), "mx.example.org[192.0.2.2]:25")
    done = Result(2, State.DELIVERED, 1, 1100.0, 0.0, Reply(250, "2.0.0", "ok"))
    return Message(envelope, b"", [None, later, done])


class Backend:
    """A queue of three messages on two pages; `broken` has it fail as a bug would, `unreadable` as a disk."""

    broken = False
    unreadable = False

    def __init__(self) -> None:
        self.queue = {identity: queued(identity, f"{number}@example.net") for number, identity in enumerate(IDS)}

    async def pages(self) -> AsyncIterator[list[Message]]:
        assert not self.broken
        if self.unreadable:
            raise StoreError("the disk is broken")
        messages = list(self.queue.values())
        yield messages[:2]
        yield messages[2:]

    async def message(self, queue_id: str) -> Message | None:
        if self.unreadable:
            raise StoreError("the disk is broken")
        return self.queue.get(queue_id)

    def status(self) -> Status:
        return STATUS


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    backend = Backend()
    control = Control(tmp_path, Answers(backend))
    await control.start()
    yield backend
    await control.close()
    assert not (tmp_path / protocol.SOCKET).exists()


async def raw(spool: Path, data: bytes) -> list[dict[str, object]]:
    """The answers to bytes as they are, up to the server's end of the conversation."""
    reader, writer = await asyncio.open_unix_connection(spool / protocol.SOCKET, limit=1 << 20)
    writer.write(data)
    writer.write_eof()
    text = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("backend")
async def test_status(tmp_path: Path) -> None:
    assert await asyncio.to_thread(client.ask, tmp_path, StatusQuery(), Status) == STATUS


@pytest.mark.usefixtures("backend")
async def test_list(tmp_path: Path) -> None:
    listing = await asyncio.to_thread(client.ask, tmp_path, QueueList(), Listing)
    assert listing.total == 3
    assert [view.id for view in listing.messages] == IDS


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("contains", "found"), [("1@EXAMPLE.NET", 1), (IDS[2], 1), ("c@", 3), ("user:app", 3), ("nobody", 0)]
)
async def test_list_what_contains_a_text(tmp_path: Path, contains: str, found: int) -> None:
    listing = await asyncio.to_thread(client.ask, tmp_path, QueueList(contains), Listing)
    assert listing.total == len(listing.messages) == found


@pytest.mark.usefixtures("backend")
async def test_list_no_more_than_asked_for(tmp_path: Path) -> None:
    listing = await asyncio.to_thread(client.ask, tmp_path, QueueList(limit=2), Listing)
    assert (listing.total, len(listing.messages)) == (3, 2)


@pytest.mark.usefixtures("backend")
async def test_show(tmp_path: Path) -> None:
    view = await asyncio.to_thread(client.ask, tmp_path, QueueShow(IDS[1]), MessageView)
    assert (view.id, view.sender, view.account, view.size, view.state) == (
        IDS[1],
        "1@example.net",
        "user:app",
        42,
        "ready",
    )
    assert [(r.state, r.attempts, r.due) for r in view.recipients] == [
        ("queued", 0, None),
        ("deferred", 2, 4e9),
        ("delivered", 1, None),
    ]
    assert view.recipients[1].reply == "450 4.2.0 greylisted"


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("identity", ["", "../../etc/passwd", "*", queue_id.compose(0, bytes([9] * 10)), "\0"])
async def test_no_such_message(tmp_path: Path, identity: str) -> None:
    with pytest.raises(client.ControlError, match="no such message"):
        await asyncio.to_thread(client.ask, tmp_path, QueueShow(identity), MessageView)


def test_a_message_is_deferred_when_all_that_wait_are() -> None:
    message = queued(IDS[0])
    message.results[0] = message.results[1]
    assert protocol.view(message, 2000.0).state == "deferred"
    assert protocol.view(message, 5e9).state == "ready"


@pytest.mark.usefixtures("backend")
async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / protocol.SOCKET).stat().st_mode) == 0o600


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"command": "halt"}', b'{"command": 1}', b'{"command": "queue.show"}',
        b'{"command": "queue.list", "limit": "x"}', b'{"command": "queue.list", "limit": 1e400}',
        b'{"command": "queue.list", "more": 1}', b"[" * 60000, b'{"command": "queue.show", "id": "\\ud800"}',
    ],
)  # fmt: skip
async def test_malformed_lines_are_answered_and_the_next_one_too(tmp_path: Path, line: bytes) -> None:
    answers = await raw(tmp_path, line + b'\n{"command": "status"}\n')
    assert [answer["ok"] for answer in answers] == [False, True]
    assert answers[0]["error"]


@pytest.mark.usefixtures("backend")
async def test_an_endless_line_ends_the_conversation(tmp_path: Path) -> None:
    answers = await raw(tmp_path, b"x" * (protocol.MAX_REQUEST * 3))
    assert [answer["error"] for answer in answers] == ["request too long"]
    assert (await raw(tmp_path, b'{"command": "status"}\n'))[0]["ok"]


async def test_a_bug_is_an_answer(backend: Backend, tmp_path: Path) -> None:
    backend.broken = True
    [answer] = await raw(tmp_path, b'{"command": "queue.list"}\n')
    assert answer["error"] == "internal error; the log has it"
    assert (await raw(tmp_path, b'{"command": "status"}\n'))[0]["ok"]


@pytest.mark.parametrize("request_", [b'{"command": "queue.list"}', b'{"command": "queue.show", "id": "%b"}' % IDS[0].encode()])
async def test_a_disk_that_cannot_be_read_is_an_answer(backend: Backend, tmp_path: Path, request_: bytes) -> None:
    backend.unreadable = True
    [answer] = await raw(tmp_path, request_ + b"\n")
    assert (answer["ok"], answer["error"]) == (False, "the disk is broken")
    backend.unreadable = False
    assert (await raw(tmp_path, request_ + b"\n"))[0]["ok"]


async def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(client.NoServerError):
        client.ask(tmp_path, StatusQuery(), Status)
    with pytest.raises(client.NoServerError):
        client.ask(tmp_path / "none", StatusQuery(), Status)


async def test_a_stale_socket_is_no_server_and_is_replaced(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / protocol.SOCKET))
    with pytest.raises(client.NoServerError):
        client.ask(tmp_path, StatusQuery(), Status)
    control = Control(tmp_path, Answers(Backend()))
    await control.start()
    assert await asyncio.to_thread(client.ask, tmp_path, StatusQuery(), Status) == STATUS
    await control.close()


async def test_a_path_too_long_for_a_socket_address(tmp_path: Path) -> None:
    spool = tmp_path.joinpath(*["a-directory-of-forty-characters-in-length"] * 4)
    spool.mkdir(parents=True)
    control = Control(spool, Answers(Backend()))
    await control.start()
    assert await asyncio.to_thread(client.ask, spool, StatusQuery(), Status) == STATUS
    await control.close()
    assert not list(spool.iterdir())
    with pytest.raises(client.NoServerError):
        client.ask(spool, StatusQuery(), Status)


async def test_closing_ends_idle_conversations(tmp_path: Path) -> None:
    """Without a word to the loop's exception handler, whose words are errors in the log."""
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["message"]))
    control = Control(tmp_path, Answers(Backend()))
    await control.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / protocol.SOCKET)
    writer.write(b'{"command": "status"}\n')
    await reader.readline()
    await control.close()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert errors == []


async def test_closing_on_a_disk_that_lets_nothing_be_removed(tmp_path: Path) -> None:
    control = Control(tmp_path, Answers(Backend()))
    await control.start()
    (tmp_path / protocol.SOCKET).unlink()
    (tmp_path / protocol.SOCKET).mkdir()
    await control.close()
