"""Large messages leave their files as they came, or not at all, never whole in memory and never altered."""

import asyncio
import email
import email.policy
import os

import pytest

from relayd import metrics
from relayd.spool import bodyfile
from relayd.spool.bodyfile import HEADER, NewFile, path_of
from relayd.spool.records import Filed
from tests.fakes.smtp_peer import CHUNKING, DROP, SILENCE
from tests.integration.outbound.rig import IMPATIENT, Relay, envelope

HEAD = b"Received: by us\r\nSubject: large\r\n\r\n"
PLAIN = ("PIPELINING", "8BITMIME")
BOUNCE = {"RCPT": lambda session, line: "250 ok" if "@sender" in line else "550 5.1.1 no"}


def text(octets: int) -> bytes:
    lines = b".\r\n..\r\n\r\n.x\r\nabc\xe4\r\n" + b"y" * 1237 + b"\r\n"
    return HEAD + lines * (octets // len(lines))


def bodies(tmp_path):
    return tmp_path / "shard-00" / "bodies"


def files(tmp_path) -> list[str]:
    return [name for _, _, names in os.walk(bodies(tmp_path)) for name in names]


def quarantine(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "shard-00" / "quarantine").iterdir())


async def test_leaves_octet_for_octet(start, relay, tmp_path, eventually):
    peers = [await start(), await start(capabilities=CHUNKING), await start(capabilities=("SIZE",))]
    relay = await relay(routes={"one.example": [peers[0]], "two.example": [peers[1]], "*": [peers[2]]})
    body = text(5_000_000)
    name = await relay.submit_large("a@one.example", "b@two.example", "c@three.example", body=body)
    message = relay.queue.get(name)
    if message is not None:
        assert message.body == Filed(len(body), message.body.crc)
    await eventually(lambda: relay.empty)
    assert [message.body == body for peer in peers for message in peer.messages] == [True] * 3
    assert b"BDAT %d LAST\r\n" % len(body) in peers[1].sessions[0].raw
    await eventually(lambda: not files(tmp_path))
    assert relay.queue.memory.used == 0


@pytest.mark.parametrize("capabilities", [PLAIN, CHUNKING])
@pytest.mark.parametrize("octets", [1, 2, 65535, 65536, 131072, 131073])
async def test_dots_at_the_edges_of_blocks(start, relay, octets, capabilities, eventually):
    peer = await start(capabilities=capabilities)
    relay = await relay(routes={"*": [peer]})
    body = b"x" * octets + b"\r\n." + b"\r\n." * 100_000 + b"\r\n"
    await relay.submit_large("a@one.example", body=body)
    await eventually(lambda: relay.empty)
    assert peer.messages[0].body == body


@pytest.mark.parametrize("octets", [131072 - 1, 131072, 131072 + 1, 131072 + 2, 655360 + 1])
async def test_a_chunk_that_ends_at_the_edge_of_a_block(start, relay, octets, eventually):
    """Its last octet goes by itself, also where it is all that the last block holds."""
    peer = await start(capabilities=CHUNKING)
    relay = await relay(routes={"*": [peer]})
    body = HEAD + b"x" * (octets - len(HEAD) - 2) + b"\r\n"
    await relay.submit_large("a@one.example", body=body)
    await eventually(lambda: relay.empty)
    assert len(body) == octets and peer.messages[0].body == body
    assert peer.sessions[0].raw.endswith(b"LAST\r\n" + body)


@pytest.mark.parametrize("knows_bdat", [True, False])
async def test_where_bdat_is_unknown_it_goes_by_data(start, relay, knows_bdat, eventually):
    script = {"BDAT": "502 5.5.1 no"} if knows_bdat else {}
    peer = await start(script, capabilities=CHUNKING, knows_bdat=knows_bdat)
    relay = await relay(routes={"*": [peer]})
    body = text(1_000_000)
    await relay.submit_large("a@one.example", body=body)
    await eventually(lambda: relay.empty)
    assert [message.body for message in peer.messages] == [body]
    assert len(peer.sessions) == (1 if knows_bdat else 2)


async def test_survives_a_restart(start, tmp_path, eventually):
    refusing = await start({"MAIL": "451 later"})
    body = text(1_000_000)
    async with Relay(tmp_path, routes={"*": [refusing]}, retry_schedule=(0.2,)) as relay:
        name = await relay.submit_large("a@one.example", body=body)
        await eventually(lambda: relay.queue.get(name).results[0])
        abandoned = relay.queue.file(relay.queue.new_id())
        abandoned.write(b"x" * 1000)
        await eventually(lambda: len(files(tmp_path)) == 2)
    peer = await start()
    async with Relay(tmp_path, routes={"*": [peer]}) as relay:
        assert files(tmp_path) == [name], "the orphan is gone"
        await eventually(lambda: relay.empty)
        await eventually(lambda: not files(tmp_path))
    assert peer.messages[0].body == body
    assert not quarantine(tmp_path)


def altered(path):
    with path.open("r+b") as file:
        file.seek(HEADER + 700_000)
        file.write(b"?!")


def truncated(path):
    os.truncate(path, 500_000)


def linked(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [altered, truncated, linked, piped, os.unlink])
async def test_a_damaged_body_is_never_sent_and_stops_nobody(start, tmp_path, damage, eventually):
    peer = await start()
    async with Relay(tmp_path, routes={"*": [await start({"MAIL": "451 later"})]}, retry_schedule=(0.05,)) as relay:
        name = await relay.submit_large("a@one.example", body=text(1_000_000))
        await eventually(lambda: relay.queue.get(name).results[0])
    damage(path_of(bodies(tmp_path), name))
    bugs = metrics.bugs._value.get()
    async with Relay(tmp_path, routes={"*": [peer]}, retry_schedule=(0.05,)) as relay:
        await eventually(lambda: relay.queue.get(name).results[0].attempts > 2)
        await relay.submit("b@one.example")
        await eventually(lambda: peer.messages)
        assert relay.queue.get(name).results[0].reply.code == 451
    assert len(peer.messages) == 1 and b"large" not in bytes(peer.sessions[0].raw)
    assert metrics.bugs._value.get() == bugs
    if damage is not os.unlink:
        assert f"{name}.body" in quarantine(tmp_path)


@pytest.mark.parametrize("capabilities", [PLAIN, CHUNKING])
async def test_a_body_that_changes_while_it_is_sent_never_ends(
    start, relay, tmp_path, monkeypatch, capabilities, eventually
):
    peer = await start(capabilities=capabilities)
    relay = await relay(routes={"*": [peer]}, retry_schedule=(30.0,))
    checked = bodyfile.SoundFile._check_body

    def then_altered(self):
        checked(self)
        for name in files(tmp_path):
            altered(path_of(bodies(tmp_path), name))

    monkeypatch.setattr(bodyfile.SoundFile, "_check_body", then_altered)
    name = await relay.submit_large("a@one.example", body=text(1_000_000))
    await eventually(lambda: relay.queue.get(name).results[0])
    assert not peer.messages
    assert capabilities is CHUNKING or b"\r\n.\r\n" not in peer.sessions[0].raw
    assert 500_000 < len(peer.sessions[0].raw) < 950_000, "the last block stays here"
    assert relay.queue.get(name).results[0].reply.code == 451


@pytest.mark.parametrize("capabilities", [(PLAIN, PLAIN), (CHUNKING, PLAIN), (PLAIN, CHUNKING), (CHUNKING, CHUNKING)])
async def test_the_second_host_gets_it_from_the_start(start, relay, capabilities, eventually):
    lost, second = await start({"BODY": DROP}, capabilities=capabilities[0]), await start(capabilities=capabilities[1])
    relay = await relay(routes={"*": [lost, second]}, retry_schedule=(0.05,))
    body = text(15_000_000)
    await relay.submit_large("a@one.example", body=body)
    await eventually(lambda: relay.empty)
    assert [message.body == body for message in second.messages] == [True]
    assert not lost.messages


async def test_a_bounce_returns_the_header_alone(start, relay, tmp_path, eventually):
    peer = await start(BOUNCE)
    relay = await relay(routes={"*": [peer]})
    await relay.submit_large("a@one.example", body=text(3_000_000))
    await eventually(lambda: relay.empty)
    (message,) = peer.messages
    report = email.message_from_bytes(message.body, policy=email.policy.SMTPUTF8)
    assert report.get_payload()[2].get_payload().split() == HEAD.decode().split()
    assert len(message.body) < 10_000
    await eventually(lambda: not files(tmp_path))


async def test_a_bounce_without_a_host(start, relay, tmp_path, eventually):
    """Nobody was asked; the header is read for the notification all the same."""
    peer = await start()
    relay = await relay(routes={"sender.example": [peer]})

    async def unknown(domain):
        return bounce_outcome()

    relay.resolver.mail_hosts = unknown
    await relay.submit_large("a@one.example", body=text(3_000_000))
    await eventually(lambda: relay.empty)
    assert b"Subject: large" in peer.messages[0].body


def bounce_outcome():
    from relayd.message.outcome import Outcome, Scope, Verdict
    from relayd.smtp import reply

    return Outcome(Verdict.FAILED, Scope.RECIPIENT, reply.DOMAIN_NOT_FOUND)


@pytest.mark.parametrize(("head", "taken"), [(b"Subject: \xc3\xa4", False), (b"Subject: a", True)])
async def test_smtputf8_asks_for_the_header_alone(start, relay, head, taken, eventually):
    peer = await start(capabilities=PLAIN)
    relay = await relay(routes={"*": [peer]})
    body = head + b"\r\n\r\n" + b"\xc3\xa4\r\n" * 200_000
    await relay.submit_large("a@one.example", body=body, smtputf8=True)
    await eventually(lambda: relay.empty)
    assert [m.mail.startswith("MAIL FROM:<a@") for m in peer.messages] == [taken]


@pytest.mark.parametrize("capabilities", [PLAIN, CHUNKING])
async def test_attack_31_a_peer_that_stops_reading(start, relay, tmp_path, capabilities, eventually):
    peer = await start({"BODY": SILENCE}, capabilities=capabilities)
    relay = await relay(routes={"*": [peer]}, timeouts=IMPATIENT, retry_schedule=(30.0,))
    name = await relay.submit_large("a@one.example", body=text(20_000_000))
    await eventually(lambda: relay.queue.get(name).results[0])
    assert relay.queue.memory.used == 0
    assert files(tmp_path) == [name]


@pytest.mark.parametrize("capabilities", [PLAIN, CHUNKING])
async def test_a_shutdown_in_the_middle(start, tmp_path, capabilities, eventually):
    peer = await start({"BODY": SILENCE}, capabilities=capabilities)
    async with Relay(tmp_path, routes={"*": [peer]}) as relay:
        name = await relay.submit_large("a@one.example", body=text(20_000_000))
        await eventually(lambda: peer.sessions and len(peer.sessions[0].raw) > 10_000)
        assert relay.queue.memory.used > 0
    assert relay.queue.memory.used == 0
    assert files(tmp_path) == [name]


async def test_a_shutdown_while_the_header_is_read_loses_no_outcome(start, tmp_path, monkeypatch, eventually):
    peer = await start({"RCPT": ["250 ok", "550 5.1.1 no"]})
    reading = asyncio.Event()
    async with Relay(tmp_path, routes={"*": [peer]}) as relay:
        body = relay.queue.body

        async def slow(message):
            if peer.messages:
                reading.set()
                await asyncio.Event().wait()
            return await body(message)

        relay.queue.body = slow
        name = await relay.submit_large("a@one.example", "b@one.example", body=text(1_000_000), sender="")
        await reading.wait()
    async with Relay(tmp_path, routes={"*": [peer]}) as relay:
        await eventually(lambda: relay.empty)
    assert len(peer.messages) == 1 and relay.queue.get(name) is None


async def test_a_file_is_durable_before_its_record(tmp_path, monkeypatch):
    """I1: everything of the file is synced before `accept` is called with it."""
    calls = []
    fsync = os.fsync

    def noted(descriptor):
        calls.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    async with Relay(tmp_path) as relay:
        monkeypatch.setattr(os, "fsync", noted)
        writing = relay.queue.file(relay.queue.new_id())
        writing.write(text(200_000))
        filed = await writing.finish()
        path = path_of(bodies(tmp_path), writing.id)
        assert [call for call in calls if "bodies" in call] == [str(path), str(path.parent), str(bodies(tmp_path))]
        await relay.queue.accept(envelope("a@b.example", id=writing.id, size=filed.octets), filed)


def test_new_files_are_exclusive(tmp_path):
    name = "000" + "ab" * 10
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / name).write_bytes(b"another's")
    new = NewFile(tmp_path, name, set())
    with pytest.raises(FileExistsError):
        new.append([b"x"])
    new.remove()
    assert (tmp_path / "ab" / name).read_bytes() == b"another's"
