"""`relayd spool` on real spools: sound ones, damaged ones, and one that is in use."""

import email
import email.policy
import email.utils
import json
import random
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from zlib import crc32

import apsw
import pytest

from relayd import clock
from relayd.cli import spool_export
from relayd.message import queue_id
from relayd.message.envelope import Envelope
from relayd.smtp import address
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply
from relayd.spool import index_file
from relayd.spool.journal import HEAD, HEADER
from relayd.spool.records import Accepted, Message, Result, Settled, State
from relayd.spool.shard import JournalStore
from tests.unit.cli.conftest import Run

HOSTILE = (
    '"a>; state=delivered; x=\\"y"@example.org',
    '"two  spaces; and, <more>"@example.org',
    "grüße@exämple.org",
    '"\\\r"@example.org',
    "r@[192.0.2.1]",
)


def name(number: int) -> str:
    return queue_id.compose(0, number.to_bytes(10, "big"))


def body(number: int) -> bytes:
    return b"Subject: %d\r\nX-Relayd-Id: forged\r\n\r\n" % number + b"%d line\r\n" % number * 500


def accepted(number: int, *recipients: str, **changes: object) -> Accepted:
    to = tuple(map(Address, recipients or (f"r{number}@example.org",)))
    fields = {"sender": Address("s@example.net"), "account": "user:app", "size": len(body(number)), **changes}
    return Accepted(Envelope(id=name(number), recipients=to, accepted_at=1e9 + number, **fields), body(number))


def deferred(number: int, reply: str = "Try later") -> Settled:
    result = Result(0, State.DEFERRED, 2, 1e9, 4e9, Reply(450, "4.2.0", reply), "mx[192.0.2.1]:25")
    return Settled(name(number), (result,))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    path = tmp_path / "relayd.toml"
    path.write_text('hostname = "a.example"\n')
    return path


@pytest.fixture
def shard(config: Path) -> Path:
    return config.parent / "spool/shard-00"


@pytest.fixture
async def store(shard: Path) -> AsyncIterator[JournalStore]:
    """A hundred messages at rest, twenty in the journal."""
    store = JournalStore(shard, 0)
    await store.open()
    await store.commit([accepted(number) for number in range(100)])
    await store.seal()
    await store.commit([accepted(number) for number in range(100, 120)])
    await store.commit([deferred(3), deferred(110)])
    yield store
    await store.close()


@pytest.fixture
async def closed(store: JournalStore, shard: Path) -> Path:
    await store.close()
    return shard


def flip(path: Path, *offsets: int) -> None:
    octets = bytearray(path.read_bytes())
    for offset in offsets:
        octets[offset] ^= 0x10
    path.write_bytes(octets)


def changed(shard: Path, statement: str) -> None:
    connection = index_file.connect(shard / "index.db", apsw.SQLITE_OPEN_READWRITE)
    connection.execute(statement).fetchall()
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    connection.close()


def page_of(shard: Path, table: str, *, leaf: int) -> int:
    """The offset of a page of the index."""
    connection = index_file.connect(shard / "index.db", apsw.SQLITE_OPEN_READONLY, immutable=True)
    sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path"
    pages = [number for (number,) in connection.execute(sql, (table,))]
    connection.close()
    return (pages[leaf] - 1) * index_file.PAGE_OCTETS


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_as_json(run: Run, config: Path, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall", lambda: 1e9 + 1000)
    (closed / "quarantine/x.bad").write_bytes(b"bad")
    before = tree(closed)
    result = run("spool", "inspect", "--json", "--config", config)
    assert result.code == 0
    document = json.loads(result.out)
    (found,) = document["shards"]
    assert (found["shard"], found["directory"]) == (0, str(closed))
    # Message 3 has a newer result in the journal, so it is in memory as well.
    assert (found["journal"], found["at_rest"], found["oldest"]) == (21, 99, 1000)
    assert (found["index"]["format"], found["index"]["messages"]) == (1, 100)
    assert found["index"]["octets"] >= sum(len(body(number)) for number in range(100))
    assert [segment["number"] for segment in found["segments"]] == [found["index"]["taken"] + 1]
    assert found["segments"][0]["messages"] == 21
    assert found["segments"][0]["version"] == 1
    assert found["bodies"] == {"files": 0, "octets": 0}
    assert found["quarantine"] == {"files": 1, "octets": 3}
    assert document["totals"]["messages"] == 120
    assert tree(closed) == before


def test_inspect_as_text(run: Run, config: Path, closed: Path) -> None:
    (closed / "bodies/3f").mkdir(parents=True)
    (closed / "bodies/3f/a").write_bytes(bytes(2048))
    result = run("spool", "inspect", "--config", config)
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert (result.code, result.err) == (0, "")
    assert lines[0][:3] == ["Shard", "Journal", "At rest"]
    assert lines[1][:3] == ["0", "21", "99"]
    assert lines[1][6] == "1 (2.0KB)"
    assert lines[-1][0].startswith("120 messages: 21 in journals, 99 at rest")


def test_inspect_on_a_terminal(run: Run, config: Path, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.cli.output.console._force_terminal", True)
    monkeypatch.setattr("relayd.cli.output.console._width", 300)
    assert str(closed) in run("spool", "inspect", "--config", config).out


def test_inspect_a_damaged_index(run: Run, config: Path, closed: Path) -> None:
    flip(closed / "index.db", page_of(closed, "messages_id", leaf=0) + 2000)
    result = run("spool", "inspect", "--json", "--config", config)
    document = json.loads(result.out)
    assert result.code == 65
    # The newer result of message 3 leads nowhere now.
    assert document["shards"][0]["journal"] == 20
    assert "index.db" in document["problems"][0]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_spool_yet(run: Run, config: Path, command: str) -> None:
    assert run("spool", command, "--config", config).code == 0
    (config.parent / "spool").rmdir()
    assert run("spool", command, "--json", "--config", config).code == 0


def test_several_directories(run: Run, config: Path, closed: Path) -> None:
    other = config.parent / "other"
    (other / "shard-01/journal").mkdir(parents=True)
    config.write_text(f'hostname = "a.example"\n[spool]\npaths = ["{closed.parent}", "{other}"]\n')
    document = json.loads(run("spool", "inspect", "--json", "--config", config).out)
    assert [found["shard"] for found in document["shards"]] == [0, 1]
    assert run("spool", "verify", "--config", config).code == 0


# --- verify -----------------------------------------------------------------------------------------------------------


def verdict(run: Run, config: Path) -> tuple[int, dict[str, int], list[dict[str, str]]]:
    result = run("spool", "verify", "--json", "--config", config)
    document = json.loads(result.out)
    assert document["sound"] == (result.code == 0) == (not document["flaws"])
    assert document["read"]["flaws"] == len(document["flaws"])
    return result.code, document["read"], document["flaws"]


def test_verify_what_is_sound(run: Run, config: Path, closed: Path) -> None:
    before = tree(closed)
    code, read, _ = verdict(run, config)
    assert (code, read["segments"], read["messages"], read["bodies"]) == (0, 1, 100, 100)
    assert run("spool", "verify", "--config", config).out.rstrip().endswith("sound")
    assert tree(closed) == before


def test_verify_finds_flipped_octets_everywhere(run: Run, config: Path, closed: Path) -> None:
    (segment,) = (closed / "journal").iterdir()
    sound = segment.read_bytes()
    # Not in the last frame's end: that would be an unfinished batch, which is no damage.
    for offset in (3, HEADER + 5, HEADER + HEAD + 4, HEADER + HEAD + 20 * 13 + 50, len(sound) // 2):
        flip(segment, offset)
        code, read, flaws = verdict(run, config)
        assert code == 65, offset
        assert {flaw["file"] for flaw in flaws} == {str(segment)}
        assert read["messages"] == 100
        segment.write_bytes(sound)
    assert run("spool", "verify", "--config", config).code == 0


def test_an_unfinished_batch_is_no_damage(run: Run, config: Path, closed: Path) -> None:
    (segment,) = (closed / "journal").iterdir()
    with segment.open("ab") as file:
        file.write(b"\xf1RLF" + bytes(20))
    code, read, _ = verdict(run, config)
    assert (code, read["torn"]) == (0, 1)


def test_verify_reads_segments_that_the_index_has_taken(run: Run, config: Path, closed: Path) -> None:
    (segment,) = (closed / "journal").iterdir()
    changed(closed, f"UPDATE state SET taken = {int(segment.stem)}")
    assert run("spool", "verify", "--config", config).code == 0
    flip(segment, len(segment.read_bytes()) // 2)
    assert run("spool", "verify", "--config", config).code == 65


@pytest.mark.parametrize(
    ("table", "within"),
    [
        ("messages", 2000),
        ("messages", 3),
        ("messages_id", 2000),
        ("bodies", 2000),
        ("lanes", 4000),
        ("waiting", 4000),
        ("lanes_due", 4000),
        ("lanes_name", 4090),
        ("messages_held", 100),
    ],
)
def test_verify_finds_a_damaged_page_of_any_tree(run: Run, config: Path, closed: Path, table: str, within: int) -> None:
    index = closed / "index.db"
    flip(index, page_of(closed, table, leaf=-1) + within)
    code, _, flaws = verdict(run, config)
    assert code == 65
    assert {flaw["file"] for flaw in flaws} == {str(index)}


def test_verify_goes_on_behind_damage(run: Run, config: Path, closed: Path) -> None:
    flip(closed / "index.db", page_of(closed, "messages", leaf=0) + 2000, page_of(closed, "messages", leaf=2) + 2000)
    (segment,) = (closed / "journal").iterdir()
    flip(segment, HEADER + HEAD + 20 * 13 + 50)
    code, read, flaws = verdict(run, config)
    assert code == 65
    assert 40 < read["messages"] < 100
    ranges = [flaw["what"] for flaw in flaws if re.match(r"messages number \d+ to \d+: ", flaw["what"])]
    assert len(ranges) == 2
    assert ranges[0].startswith("messages number 1 to ")
    assert sum(flaw["file"] == str(segment) for flaw in flaws) == 1


@pytest.mark.parametrize("page", [0, -1])
def test_verify_without_the_first_or_the_last_page(run: Run, config: Path, closed: Path, page: int) -> None:
    index = closed / "index.db"
    start = page * index_file.PAGE_OCTETS % index.stat().st_size
    flip(index, *range(start + 2000, start + 4000))
    code, read, flaws = verdict(run, config)
    assert (code, read["segments"]) == (65, 1)
    assert read["messages"] == 100
    assert len(flaws) <= 2


@pytest.mark.parametrize("content", [b"", b"not an index", bytes(9000)])
def test_verify_what_is_no_index(run: Run, config: Path, closed: Path, content: bytes) -> None:
    (closed / "index.db").write_bytes(content)
    code, read, flaws = verdict(run, config)
    assert (code, read["segments"]) == (65, 1)
    assert {flaw["file"] for flaw in flaws} == {str(closed / "index.db")}


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM bodies WHERE number = 7",
        "UPDATE bodies SET octets = x'00' || octets WHERE number = 7",
        "UPDATE messages SET head = x'90' WHERE number = 7",
        "UPDATE messages SET held = 1 WHERE number = 7",
        "DELETE FROM messages WHERE number = 7",
        "DELETE FROM waiting WHERE number = 7",
        "INSERT INTO waiting VALUES (1, 5.0, 7)",
        "INSERT INTO waiting VALUES (99, 5.0, 7)",
        "UPDATE lanes SET due = due + 1 WHERE lane = 1",
        "DELETE FROM lanes WHERE lane = 1",
        "INSERT INTO bodies VALUES (999, 0, x'00')",
    ],
)
def test_verify_an_index_that_contradicts_itself(run: Run, config: Path, closed: Path, statement: str) -> None:
    changed(closed, statement)
    code, _, flaws = verdict(run, config)
    assert code == 65
    assert len(flaws) >= 1


def test_verify_names_what_is_damaged_a_line_each(run: Run, config: Path, closed: Path) -> None:
    changed(closed, "UPDATE bodies SET crc = 0 WHERE number IN (5, 6)")
    lines = run("spool", "verify", "--config", config).out.splitlines()
    index = closed / "index.db"
    assert lines[:2] == [f"{index}: the body of {name(number)} is not what was written" for number in (4, 5)]
    assert lines[2].endswith("2 damaged")


def test_a_newer_format_is_told_and_the_other_shards_are_read(run: Run, config: Path, closed: Path) -> None:
    changed(closed, "PRAGMA user_version = 99")
    (closed.parent / "shard-01/journal").mkdir(parents=True)
    code, read, flaws = verdict(run, config)
    assert (code, read["shards"]) == (65, 2)
    assert "format 99" in flaws[0]["what"]


def test_a_segment_of_a_newer_format_is_told(run: Run, config: Path, closed: Path) -> None:
    (segment,) = (closed / "journal").iterdir()
    head = bytearray(segment.read_bytes()[: HEADER - 4])
    head[9] = 99
    segment.write_bytes(head + crc32(head).to_bytes(4, "big") + segment.read_bytes()[HEADER:])
    code, _, flaws = verdict(run, config)
    assert (code, len(flaws)) == (65, 1)
    assert "format 99" in flaws[0]["what"]
    assert run("spool", "inspect", "--config", config).code == 65


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_flipped_is_found_and_never_exported(
    run: Run, config: Path, closed: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    (segment,) = (closed / "journal").iterdir()
    for number, path in enumerate((closed / "index.db", segment)):
        sound = path.read_bytes()
        flip(path, *(rng.randrange(len(sound)) for _ in range(1 + 2 * seed)))
        code, read, _ = verdict(run, config)
        assert code == 65 or read["torn"]
        out = tmp_path / f"{number}"
        assert run("spool", "export", out, "--config", config).code in {0, 65}
        for file in out.iterdir():
            assert parted(file)[1] == body(int(file.stem[3:], 16))
        path.write_bytes(sound)


# --- beside a server --------------------------------------------------------------------------------------------------


async def test_beside_a_running_store(run: Run, config: Path, store: JournalStore, tmp_path: Path) -> None:
    document = json.loads(run("spool", "inspect", "--json", "--config", config).out)
    assert document["totals"]["messages"] == 120
    assert verdict(run, config)[0] == 0
    assert run("spool", "export", tmp_path / "out", "--config", config).code == 0
    assert len(list((tmp_path / "out").iterdir())) == 120
    # Nothing of that stood in the store's way.
    await store.commit([accepted(200)])
    await store.seal()
    assert verdict(run, config)[1]["messages"] == 121


async def test_a_message_that_leaves_the_queue_meanwhile(
    run: Run, config: Path, closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segment,) = (closed / "journal").iterdir()

    class Slow(spool_export.Exporter):
        def write(self, message: Message) -> None:
            segment.unlink(missing_ok=True)
            super().write(message)

    monkeypatch.setattr("relayd.cli.spool.Exporter", Slow)
    result = run("spool", "export", tmp_path / "out", name(5), name(110), "--config", config)
    assert result.code == 0
    assert f"{name(110)} has left the queue" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name(5)}.eml"]


# --- export -----------------------------------------------------------------------------------------------------------


def parted(path: Path) -> tuple[list[bytes], bytes]:
    """The fields of the envelope, unfolded, and the message, as docs/SPOOL.md tells to read them."""
    octets = path.read_bytes()
    match = re.match(rb"(.*?\r\nX-Relayd-Size: \d+)\r\n", octets, re.DOTALL)
    assert match
    return re.sub(rb"\r\n(?= )", b"", match[1]).split(b"\r\n"), octets[match.end() :]


def test_export_everything(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    before = tree(closed)
    out = tmp_path / "out"
    result = run("spool", "export", out, "--config", config)
    assert (result.code, result.err) == (0, "120 messages written\n")
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for number in range(120):
        path = out / f"{name(number)}.eml"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert parted(path)[1] == body(number)
    assert tree(closed) == before


def test_the_envelope_of_an_exported_message(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    assert run("spool", "export", tmp_path / "out", name(110), name(3), name(3), "--config", config).code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2
    fields, message = parted(tmp_path / "out" / f"{name(110)}.eml")
    assert message == body(110)
    assert fields == [
        f"X-Relayd-Id: {name(110)}".encode(),
        b"X-Relayd-Sender: <s@example.net>",
        (
            b'X-Relayd-Recipient: <r110@example.org>; state=deferred; attempts=2; at="Sun, 09 Sep 2001 01:46:40 +0000";'
            b' due="Tue, 02 Oct 2096 07:06:40 +0000"; reply="450 4.2.0 Try later"; host="mx[192.0.2.1]:25"'
        ),
        b"X-Relayd-Accepted: Sun, 09 Sep 2001 01:48:30 +0000",
        b"X-Relayd-Account: user:app",
        b"X-Relayd-Size: %d" % len(message),
    ]
    # The results of a message at rest that the journal knows more of.
    assert b"state=deferred" in parted(tmp_path / "out" / f"{name(3)}.eml")[0][2]


def path_of(field: bytes) -> tuple[str, bytes]:
    """The path in a field, by the parser that accepted it, and what stands behind it."""
    argument = field.partition(b": ")[2]
    end = re.match(rb'<(?:"(?:[^"\\]|\\.)*"|[^">])*>', argument, re.DOTALL)
    assert end
    return str(address.forward_path(end[0], utf8=True)[0]), argument[end.end() :]


async def test_what_is_exported_can_be_submitted_again(run: Run, config: Path, shard: Path, tmp_path: Path) -> None:
    store = JournalStore(shard, 0)
    await store.open()
    recipients = tuple(text for text in HOSTILE if text.isprintable())
    account = "user:grüße\r\nX-Relayd-Id: forged"
    results = [
        Result(number, State.FAILED, 1, 1e9, 0.0, Reply(550, "", text), "h\r\nX: y")
        for number, text in ((0, 'say "no"; state=queued\\'), (1, "näh\r\nX-Forged: 1 " + "ü" * 900), (2, '"' * 1024))
    ]
    await store.commit([accepted(1, *recipients, sender=Address(HOSTILE[0]), account=account, smtputf8=True)])
    await store.commit([Settled(name(1), tuple(results))])
    await store.close()
    assert run("spool", "export", tmp_path / "out", "--config", config).code == 0
    path = tmp_path / "out" / f"{name(1)}.eml"
    fields, message = parted(path)
    assert message == body(1)
    titles = " ".join(field.partition(b":")[0].decode().removeprefix("X-Relayd-") for field in fields)
    assert titles == f"Id Sender{' Recipient' * len(recipients)} Accepted Account Size"
    assert path_of(fields[1]) == (HOSTILE[0], b"")
    assert [path_of(field)[0] for field in fields[2 : 2 + len(recipients)]] == list(recipients)
    assert max(map(len, path.read_bytes().split(b"\r\n"))) <= 998
    parsed = email.message_from_bytes(path.read_bytes(), policy=email.policy.compat32)
    assert parsed["Subject"] == "1"
    behind = [email.message_from_bytes(b"X: x" + path_of(field)[1]) for field in fields[2:6]]
    parameters = [dict(one.get_params(header="X") or ()) for one in behind]
    assert [one["state"] for one in parameters] == ["failed", "failed", "failed", "queued"]
    assert email.utils.collapse_rfc2231_value(parameters[0]["reply"]) == '550 say "no"; state=queued\\'
    assert email.utils.collapse_rfc2231_value(parameters[1]["reply"]).startswith("550 näh\r X-Forged: 1 üü")
    assert email.utils.collapse_rfc2231_value(parameters[0]["host"]) == "h\r\nX: y"
    assert email.utils.collapse_rfc2231_value(parameters[2]["reply"]).startswith('550 """')


def test_addresses_that_would_break_a_line_are_not_accepted_from_disk() -> None:
    with pytest.raises(address.AddressError):
        address.forward_path(b"<%b>" % HOSTILE[3].encode(), utf8=True)


@pytest.mark.parametrize(
    "start", [b" continued\r\n", b"X-Relayd-Recipient: <x@example.com>\r\n", b"\r\nno header\r\n", b".\r\n"]
)
async def test_a_message_may_begin_with_anything(
    run: Run, config: Path, shard: Path, tmp_path: Path, start: bytes
) -> None:
    store = JournalStore(shard, 0)
    await store.open()
    message = Accepted(accepted(1, size=len(start)).envelope, start)
    await store.commit([message])
    await store.close()
    run("spool", "export", tmp_path, "--config", config)
    fields, rest = parted(tmp_path / f"{name(1)}.eml")
    assert (len(fields), rest) == (6, start)


def test_nothing_is_overwritten(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{name(5)}.eml").write_bytes(b"mine")
    (out / f"{name(6)}.eml").symlink_to(tmp_path / "elsewhere")
    result = run("spool", "export", out, "--config", config)
    assert result.code == 73
    assert f"{name(5)}.eml is there already" in result.err
    assert "118 messages written, 2 there already" in result.err
    assert (out / f"{name(5)}.eml").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere").exists()


def test_an_unreadable_body_stops_nothing(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{name(5)}.eml").touch()
    changed(closed, "UPDATE bodies SET crc = 0 WHERE number = 8")
    changed(closed, "DELETE FROM bodies WHERE number = 9")
    result = run("spool", "export", out, "--config", config)
    assert result.code == 65
    assert f"{name(7)}: the body" in result.err
    assert "117 messages written, 1 there already, 2 not readable" in result.err
    assert not (out / f"{name(7)}.eml").exists()


def test_what_is_sound_on_a_damaged_page_is_exported(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    flip(
        closed / "index.db", *(page_of(closed, table, leaf=0) + 2000 for table in ("messages", "messages_id", "bodies"))
    )
    result = run("spool", "export", tmp_path / "out", "--config", config)
    assert result.code == 65
    assert len(list((tmp_path / "out").iterdir())) >= 117


def test_a_record_that_cannot_be_read_stops_nothing(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    (segment,) = (closed / "journal").iterdir()
    flip(segment, HEADER + HEAD + 20 * 13 + 50)
    run("spool", "export", tmp_path / "out", "--config", config)
    assert len(list((tmp_path / "out").iterdir())) == 119


@pytest.mark.parametrize("identity", ["x", "../../etc/passwd", "*", name(1) + "/"])
def test_what_is_no_id(run: Run, config: Path, closed: Path, tmp_path: Path, identity: str) -> None:
    assert run("spool", "export", tmp_path / "out", name(1), identity, "--config", config).code == 64
    assert not (tmp_path / "out").exists()


def test_no_such_message(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    result = run("spool", "export", tmp_path / "out", name(999), name(1), "--config", config)
    assert result.code == 65
    assert "no such message" in result.err
    assert (tmp_path / "out" / f"{name(1)}.eml").exists()


def test_where_no_directory_can_be_made(run: Run, config: Path, closed: Path, tmp_path: Path) -> None:
    assert run("spool", "export", tmp_path / "a/b", "--config", config).code == 73
    assert run("spool", "export", config, "--config", config).code == 74


async def test_a_file_that_cannot_be_finished_is_removed(
    run: Run, config: Path, closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_export, "envelope_fields", full)
    assert run("spool", "export", tmp_path / "out", "--config", config).code == 74
    assert list((tmp_path / "out").iterdir()) == []
