"""The index against a dict, against damage, against whatever lies in its place, and beside those who only look."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relayd.spool import index, index_file
from relayd.spool.index import FORMAT, Index, IndexDamagedError, Put, Waiting, open_read_only
from relayd.spool.salvage import salvage
from relayd.spool.store import FormatError

SHARD = 0x2A
ALWAYS = 1e12


def no(*_: object) -> bool:
    return False


def name(n: int) -> str:
    return f"{SHARD:03x}{n:020x}"


def head(n: int) -> bytes:
    return random.Random(n).randbytes(200 + n % 100)


def body(n: int) -> bytes:
    return random.Random(-n).randbytes(n * 37 % 9000)


def put(n: int, *waiting: Waiting, **changes: object) -> Put:
    return Put(name(n), head(n), waiting, body(n))._replace(**changes)


def wait(due: float, domain: str = "a.example", account: str = "user:ann") -> Waiting:
    return Waiting(domain, account, due)


def ids(found) -> list[str]:
    return [message.id for message in found]


def due(tested: Index, before: float = ALWAYS, **changes: object) -> list[str]:
    return ids(tested.due(before, **{"lanes": 1000, "each": 1000, "skip": no, "full": no, **changes}))


def contents(tested: Index) -> dict[str, tuple[bytes, bytes | None, bool]]:
    """Everything that can be asked for a message's id."""
    found = {}
    for message in tested.page(0, 10**6):
        stored: bytes | None = None
        with contextlib.suppress(KeyError):
            stored = tested.body(message.id)
        found[message.id] = (message.head, stored, message.held)
    return found


@pytest.fixture(autouse=True)
def unsynced(monkeypatch) -> None:
    """A thousand small files need no disk; one test looks at what is synced."""
    monkeypatch.setattr(index_file, "SYNCHRONOUS", "OFF")
    monkeypatch.setattr(index_file, "sync_directory", lambda directory: None)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
def tested(path):
    with contextlib.closing(Index(path, SHARD)) as opened:
        yield opened


def filled(path: Path, messages: int) -> None:
    """An index of that many messages, closed: one file."""
    made = Index(path, SHARD)
    puts = [put(n, wait(100 + n, f"d{n % 7}.example")) for n in range(1, messages + 1)]
    made.move(puts, (), 7)
    made.close()
    assert list(path.parent.iterdir()) == [path]


# --- messages ---------------------------------------------------------------------------------------------------------


def test_what_is_put_is_found_again(tested):
    tested.move([put(1, wait(5)), put(2, held=True), put(3, wait(4), body=None), put(4, body=b"")], (), 9)
    assert contents(tested) == {
        name(1): (head(1), body(1), False),
        name(2): (head(2), body(2), True),
        name(3): (head(3), None, False),
        name(4): (head(4), b"", False),
    }
    assert (tested.count, tested.held, tested.taken) == (4, 1, 9)
    assert tested.oldest().id == name(1)
    assert tested.get(name(2)).head == head(2)
    assert tested.get_many([name(3), name(9), name(1)]).keys() == {name(3), name(1)}
    first, second = tested.page(0, 2)
    assert ids(tested.page(second.number, 10)) == [name(3), name(4)]
    assert first.number < second.number


def test_an_empty_index(tested):
    assert (tested.count, tested.held, tested.taken, tested.oldest()) == (0, 0, 0, None)
    assert due(tested) == tested.page(0, 10) == []
    assert tested.tidy() is False


def test_a_new_result_leaves_the_body_and_the_place(tested):
    tested.move([put(1, wait(5)), put(2, wait(6))], ())
    number = tested.get(name(1)).number
    tested.move([put(1, wait(7), head=b"newer", body=None, held=True)], ())
    assert tested.get(name(1)) == (number, name(1), b"newer", True)
    assert tested.body(name(1)) == body(1)
    assert due(tested) == [name(2), name(1)]
    tested.move([put(1, body=b"another")], ())
    assert tested.body(name(1)) == b"another"


def test_a_move_again_changes_nothing(tested):
    tested.move([put(1, wait(5)), put(2, wait(6)), put(3, held=True)], ())
    puts, drops = [put(1, wait(8), head=b"x", body=None), put(4, wait(1), wait(1), held=True)], [name(2), name(9)]
    tested.move(puts, drops, 3)
    once = contents(tested), tested.page(0, 9), due(tested), tested.count, tested.held, tested.taken
    tested.move(puts, drops, 3)
    assert (contents(tested), tested.page(0, 9), due(tested), tested.count, tested.held, tested.taken) == once
    assert due(tested) == [name(4), name(1)]
    assert (tested.count, tested.held, tested.taken) == (3, 2, 3)


def test_the_last_put_of_an_id_counts_and_a_drop_more(tested):
    tested.move([put(1, head=b"1"), put(1, head=b"2"), put(2)], [name(2), name(2)])
    assert contents(tested) == {name(1): (b"2", body(1), False)}
    assert tested.count == 1


def test_what_is_no_id_of_this_shard_is_unknown(tested):
    others = ["", "02b" + "0" * 20, name(1).upper(), name(1)[:-1], name(1) + "00", "x" * 23, "é" * 23]
    tested.move([put(1)], others)
    assert tested.count == 1
    for other in others:
        assert tested.get(other) is None
        with pytest.raises(KeyError):
            tested.body(other)
        with pytest.raises(ValueError):
            tested.move([put(2), put(3)._replace(id=other)], ())
    with pytest.raises(ValueError):
        tested.move([put(2), put(3, wait(float("nan")))], ())
    assert ids(tested.page(0, 9)) == [name(1)]
    assert tested.count == 1


def test_a_dropped_number_is_not_used_again_while_open(tested):
    tested.move([put(1), put(2)], ())
    last = tested.get(name(2)).number
    tested.move([put(3)], [name(2)])
    assert tested.get(name(3)).number > last


# --- what is due ------------------------------------------------------------------------------------------------------


def test_due_is_in_order_and_each_message_once(tested):
    tested.move([put(1, wait(30), wait(10, "b.example")), put(2, wait(20)), put(3, wait(5, "c.example")), put(4)], ())
    assert due(tested, 4.9) == []
    assert due(tested, 5) == [name(3)]
    assert due(tested, 20) == [name(3), name(1), name(2)]
    assert due(tested) == [name(3), name(1), name(2)]


def test_lanes_take_turns_by_their_earliest(tested):
    tested.move([put(n, wait(n, f"d{n % 3}.example")) for n in range(1, 10)], ())
    assert due(tested, lanes=2, each=2) == [name(n) for n in (1, 4, 2, 5)]
    assert due(tested, each=1) == [name(n) for n in (1, 2, 3)]
    assert due(tested, lanes=0) == due(tested, each=0) == []
    tested.move([put(1, wait(50, "d1.example"))], ())
    assert due(tested, each=1) == [name(n) for n in (2, 3, 4)]


def test_accounts_are_lanes_of_their_own(tested):
    tested.move([put(n, wait(n, account="ann")) for n in range(1, 9)] + [put(9, wait(9, account="bob"))], ())
    assert due(tested, each=2) == [name(1), name(2), name(9)]
    asked = []
    assert due(tested, full=lambda *lane: asked.append(lane) or lane[1] == "ann") == [name(9)]
    assert asked == [("a.example", "ann"), ("a.example", "bob")]


def test_what_is_left_out_does_not_count(tested):
    tested.move([put(n, wait(n, f"d{n % 3}.example")) for n in range(1, 10)], ())
    first = {name(n) for n in (1, 4, 7, 2)}
    assert due(tested, lanes=1, each=1, skip=first.__contains__) == [name(5)]
    assert due(tested, lanes=1, each=9, full=lambda domain, _: domain != "d0.example") == [name(n) for n in (3, 6, 9)]


def test_a_message_found_before_takes_no_place_in_its_other_lane(tested):
    tested.move([put(1, wait(1), wait(2, "b.example")), put(2, wait(3, "b.example"))], ())
    assert due(tested, lanes=2, each=1) == [name(1), name(2)]


def test_of_domains_takes_the_oldest_due_of_all(tested):
    puts = [put(n, wait(n, f"d{n % 3}.example", f"u{n % 2}")) for n in range(1, 13)]
    tested.move([*puts, put(20, wait(2, "d1.example", "x"), wait(3, "d2.example"))], ())
    found = ids(tested.of_domains(["d1.example", "d2.example", "d1.example", "none.example"], 5, skip=no))
    assert found == [name(n) for n in (1, 2, 20, 4, 5)]
    assert ids(tested.of_domains(["d0.example"], 9, skip=name(6).__eq__)) == [name(n) for n in (3, 9, 12)]
    assert tested.of_domains([], 9, skip=no) == tested.of_domains(["d0.example"], 0, skip=no) == []


def steps(tested: Index, ask) -> int:
    """Instructions of SQLite's machine, in hundreds."""
    count = 0

    def step() -> bool:
        nonlocal count
        count += 1
        return False

    tested._db.set_progress_handler(step, 100)
    ask()
    tested._db.set_progress_handler(None)
    return count


@pytest.mark.parametrize("lanes", [1, 2000])
def test_what_waits_behind_costs_nothing(tested, lanes):
    def ask() -> None:
        assert len(due(tested, lanes=20, each=20)) >= 20
        assert len(tested.of_domains(["d0.example"], 2, skip=no)) == 1 if lanes > 1 else 2

    tested.move([put(n, wait(n, f"d{n}.example" if lanes > 1 else "d0.example"), body=b"") for n in range(50)], ())
    few = steps(tested, ask)
    more = range(50, 2000)
    tested.move([put(n, wait(n, f"d{n}.example" if lanes > 1 else "d0.example"), body=b"") for n in more], ())
    assert steps(tested, ask) <= few + 1


# --- against a model --------------------------------------------------------------------------------------------------

NUMBERS = st.integers(1, 8)
DOMAINS = ("a.example", "b.example", "ü.example", "")
GROUPS = st.lists(
    st.builds(
        Waiting, st.sampled_from(DOMAINS), st.sampled_from(["ann", "bob\0"]), st.sampled_from([0.0, 1.5, 2.0, 3.0])
    ),
    max_size=3,
)
PUTS = st.lists(
    st.builds(Put, NUMBERS.map(name), st.binary(max_size=5), GROUPS, st.none() | st.binary(max_size=9), st.booleans()),
    max_size=4,
)
SKIPPED = st.frozensets(NUMBERS.map(name), max_size=3)


class IndexMachine(RuleBasedStateMachine):
    """A dict of puts in order of arrival; every question is answered by looking at all of it."""

    @initialize(directory=st.uuids())
    def start(self, directory) -> None:
        self.path = MACHINES / str(directory) / "index.db"
        self.path.parent.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.tested = Index(self.path, SHARD)
        self.model: dict[str, Put] = {}
        self.taken = 0

    @rule(
        puts=PUTS,
        drops=st.lists(NUMBERS.map(name), max_size=2),
        taken=st.none() | st.integers(1, 99),
        again=st.booleans(),
    )
    def move(self, puts, drops, taken, again) -> None:
        for _ in range(1 + again):
            self.tested.move(puts, drops, taken)
        last = {one.id: one for one in puts if one.id not in drops}
        for key, one in last.items():
            stored = self.model[key].body if key in self.model and one.body is None else one.body
            self.model[key] = one._replace(body=stored)
        for key in drops:
            self.model.pop(key, None)
        self.taken = self.taken if taken is None else taken

    @rule()
    def reopen(self) -> None:
        self.tested.close()
        self.tested = Index(self.path, SHARD)

    @rule()
    def die(self) -> None:
        """Another index from the files as they are, without a close."""
        copy = self.path.parent / "copy"
        copy.mkdir()
        for part in self.path.parent.glob("index.db*"):
            shutil.copy(part, copy)
        self.tested._db.close()
        for part in self.path.parent.glob("index.db*"):
            part.unlink()
        for part in copy.iterdir():
            part.rename(self.path.with_name(part.name))
        copy.rmdir()
        self.tested = Index(self.path, SHARD)

    @rule()
    def tidy(self) -> None:
        while self.tested.tidy():
            pass

    def lanes(self, skip) -> dict[tuple[str, str], list[tuple[float, int, str]]]:
        numbers = {found.id: found.number for found in self.tested.page(0, 100)}
        lanes: dict[tuple[str, str], list[tuple[float, int, str]]] = {}
        for key, one in self.model.items():
            for domain, account, when in one.waiting:
                lanes.setdefault((domain, account), []).append((when, numbers[key], key))
        return {lane: sorted(row for row in rows) for lane, rows in lanes.items()}

    @rule(
        before=st.sampled_from([0.0, 1.9, 2.0, 9.0]),
        lanes=st.integers(0, 3),
        each=st.integers(0, 3),
        skipped=SKIPPED,
        full=st.sampled_from(["", "ann", "nobody"]),
    )
    def due(self, before, lanes, each, skipped, full) -> None:
        answer = self.tested.due(
            before, lanes=lanes, each=each, skip=skipped.__contains__, full=lambda _, account: account == full
        )
        found = ids(answer)
        assert len(set(found)) == len(found)
        ready = {
            lane: [row for row in rows if row[0] <= before and row[2] not in skipped]
            for lane, rows in self.lanes(skipped).items()
            if lane[1] != full
        }
        ready = {lane: rows for lane, rows in ready.items() if rows}
        assert set(found) <= {row[2] for rows in ready.values() for row in rows}
        if lanes >= len(ready) and each >= max(map(len, ready.values()), default=0):
            assert set(found) == {row[2] for rows in ready.values() for row in rows}
        elif lanes and each and ready:
            # Some lane gives its first, whichever limit holds, and none gives more than its share.
            assert found[0] in {rows[0][2] for rows in ready.values()}
            assert len(found) <= lanes * each

    @rule(domains=st.sets(st.sampled_from(DOMAINS)), limit=st.integers(0, 5), skipped=SKIPPED)
    def of_domains(self, domains, limit, skipped) -> None:
        rows = sorted(row for lane, rows in self.lanes(skipped).items() for row in rows if lane[0] in domains)
        expected = dict.fromkeys(key for _, _, key in rows if key not in skipped)
        assert ids(self.tested.of_domains(domains, limit, skip=skipped.__contains__)) == list(expected)[:limit]

    @rule(after=st.integers(-1, 20), limit=st.integers(0, 5))
    def page(self, after, limit) -> None:
        everything = self.tested.page(0, 100)
        assert self.tested.page(after, limit) == [found for found in everything if found.number > after][:limit]

    @invariant()
    def same(self) -> None:
        expected = {key: (one.head, one.body, one.held) for key, one in self.model.items()}
        assert contents(self.tested) == expected
        assert self.tested.count == len(expected)
        assert self.tested.held == sum(one.held for one in self.model.values())
        assert self.tested.taken == self.taken
        lanes = {lane: min(rows)[0] for lane, rows in self.lanes(()).items()}
        stored = self.tested._db.execute("SELECT domain, account, due FROM lanes").fetchall()
        assert {(domain, account): earliest for domain, account, earliest in stored} == lanes

    def teardown(self) -> None:
        if hasattr(self, "tested"):
            self.tested.close()


MACHINES = Path("/nonexistent")


def test_any_sequence_of_calls(tmp_path, monkeypatch):
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setitem(globals(), "MACHINES", tmp_path)
    limits = settings(
        max_examples=15, stateful_step_count=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(IndexMachine, settings=limits)


# --- durability and errors --------------------------------------------------------------------------------------------


def copied(path: Path, target: Path) -> Path:
    """The files as a crash would leave them."""
    target.mkdir()
    for part in path.parent.glob("index.db*"):
        if not part.name.endswith("-shm"):
            shutil.copy(part, target)
    return target / path.name


def test_every_commit_and_the_directory_are_synced(path, monkeypatch):
    monkeypatch.undo()
    synced = []
    monkeypatch.setattr(index_file, "sync_directory", lambda directory: synced.append((directory, path.exists())))
    with contextlib.closing(Index(path, SHARD)) as tested:
        assert tested._db.pragma("synchronous") == 2
        assert tested._db.pragma("journal_mode") == "wal"
    assert synced == [(path.parent, True)]


def test_a_move_is_in_the_files_when_it_returns(tested, path, tmp_path):
    tested.move([put(1, wait(5))], (), 4)
    with contextlib.closing(Index(copied(path, tmp_path / "crash"), SHARD)) as after:
        assert contents(after) == contents(tested)
        assert (after.taken, due(after)) == (4, [name(1)])


def test_a_move_that_fails_changes_nothing(tested):
    tested.move([put(1, wait(5))], (), 1)
    pages = tested._db.pragma("page_count")
    tested._db.pragma("max_page_count", pages + 10)
    with pytest.raises(OSError) as raised:
        tested.move([put(n, wait(n, "new.example")) for n in range(2, 100)], [name(1)], 2)
    assert raised.value.errno == errno.ENOSPC
    assert (contents(tested).keys(), due(tested), tested.count, tested.taken) == ({name(1)}, [name(1)], 1, 1)
    tested._db.pragma("max_page_count", 10**6)
    tested.move([put(n) for n in range(2, 100)], [name(1)], 2)
    assert (tested.count, tested.taken) == (98, 2)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (apsw.IOError, errno.EIO),
        (apsw.FullError, errno.ENOSPC),
        (apsw.ReadOnlyError, errno.EROFS),
        (apsw.CantOpenError, errno.EIO),
        (apsw.BusyError, errno.EBUSY),
    ],
)
def test_what_the_disk_says(tested, error, number, monkeypatch):
    def failing(*_: object) -> None:
        raise error("disk")

    monkeypatch.setattr(index._Change, "_wait", failing)
    with pytest.raises(OSError) as raised:
        tested.move([put(1)], ())
    assert raised.value.errno == number
    assert contents(tested) == {}


def test_nothing_is_written_behind_a_failed_write(path, monkeypatch):
    tested = Index(path, SHARD)
    tested.move([put(1)], ())

    def failing(*_: object) -> None:
        raise apsw.IOError("fsync")

    with monkeypatch.context() as patch:
        patch.setattr(index._Change, "_wait", failing)
        with pytest.raises(OSError):
            tested.move([put(2)], ())
    for write in (lambda: tested.move([put(2)], ()), tested.tidy):
        with pytest.raises(OSError):
            write()
    assert tested.get(name(1)).head == head(1)
    before = path.read_bytes()
    tested.close()
    assert path.read_bytes() == before
    with contextlib.closing(Index(path, SHARD)) as again:
        again.move([put(2)], ())
        assert contents(again).keys() == {name(1), name(2)}


def test_the_log_stays_bounded(tested, path, monkeypatch):
    monkeypatch.setattr(index, "CHECKPOINT_OCTETS", 200_000)
    for n in range(200):
        tested.move([put(n, wait(n), body=bytes(9000))], ())
    log = path.with_name("index.db-wal")
    assert log.stat().st_size < 400_000
    assert path.stat().st_size > 200 * 9000 * 0.8


def test_tidy_gives_the_room_back_in_steps(tested, path, monkeypatch):
    monkeypatch.setattr(index, "TIDY_PAGES", 50)
    tested.move([put(n, wait(n), body=bytes(9000)) for n in range(100)], ())
    tested.move((), [name(n) for n in range(99)])
    tested._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    sizes = [path.stat().st_size]
    more = True
    while more:
        more = tested.tidy()
        sizes.append(path.stat().st_size)
        assert sizes[-2] - sizes[-1] <= 50 * index_file.PAGE_OCTETS
    assert sizes[0] > 900_000
    assert sizes[-1] < 100_000
    assert contents(tested) == {name(99): (head(99), bytes(9000), False)}
    assert len(sizes) > 4


# --- those who only look ----------------------------------------------------------------------------------------------


def test_looking_beside_the_owner(tested, path):
    tested.move([put(1, wait(5))], (), 3)
    with contextlib.closing(open_read_only(path, SHARD)) as looking:
        assert contents(looking) == contents(tested)
        assert (due(looking), looking.taken, looking.count) == ([name(1)], 3, 1)
        tested.move([put(2, wait(1))], [name(1)])
        assert due(looking) == [name(2)]
        for write in (lambda: looking.move([put(3)], ()), looking.tidy):
            with pytest.raises(OSError):
                write()
    tested.move([put(3)], ())
    assert contents(tested).keys() == {name(2), name(3)}


def test_looking_without_an_owner_changes_nothing(path):
    filled(path, 20)
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in path.parent.iterdir()}
    with contextlib.closing(open_read_only(path, SHARD)) as looking:
        assert looking.count == len(contents(looking)) == 20
        with pytest.raises(OSError):
            looking.move([put(30)], ())
    assert {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in path.parent.iterdir()} == before


def test_looking_after_a_crash_sees_the_log(tested, path, tmp_path):
    tested.move([put(1, wait(5))], (), 3)
    crashed = copied(path, tmp_path / "crash")
    before = {part: part.read_bytes() for part in crashed.parent.iterdir()}
    with contextlib.closing(open_read_only(crashed, SHARD)) as looking:
        assert contents(looking) == contents(tested)
    assert {part: part.read_bytes() for part in before} == before


def test_looking_for_what_is_not_there(path):
    with pytest.raises(FileNotFoundError):
        open_read_only(path, SHARD)
    assert list(path.parent.iterdir()) == []


# --- what lies in its place -------------------------------------------------------------------------------------------


def test_files_are_private(tested, path):
    tested.move([put(1)], ())
    modes = {part.name: stat.S_IMODE(part.stat().st_mode) for part in path.parent.iterdir()}
    assert modes == {"index.db": 0o600, "index.db-wal": 0o600, "index.db-shm": 0o600}


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda entry: entry.symlink_to("/dev/zero")])
def test_irregular_files_are_refused(path, suffix, make):
    if suffix:
        filled(path, 3)
    make(path.with_name(path.name + suffix))
    for opening in (Index, open_read_only):
        with pytest.raises(OSError) as raised:
            opening(path, SHARD)
        assert raised.value.errno == errno.EINVAL
    if not suffix:
        with pytest.raises(OSError), contextlib.closing(Index(path.with_name("new.db"), SHARD)) as target:
            salvage(path, target)


def change(path: Path, *statements: str) -> None:
    index_file.load_checksums()
    with contextlib.closing(apsw.Connection(str(path), vfs="cksmvfs")) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        f"PRAGMA user_version = {FORMAT + 1}",
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 0",
        "UPDATE state SET shard = 1",
    ],
)
def test_another_format_is_refused_untouched(path, statement):
    filled(path, 3)
    change(path, statement)
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in path.parent.iterdir()}
    for opening in (Index, open_read_only):
        with pytest.raises(FormatError):
            opening(path, SHARD)
    assert {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in path.parent.iterdir()} == before


def test_a_newer_format_in_the_log_is_refused_and_stays_there(tested, path, tmp_path):
    tested._db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    newer = copied(path, tmp_path / "newer")
    before = {part: part.read_bytes() for part in newer.parent.iterdir()}
    with pytest.raises(FormatError):
        Index(newer, SHARD)
    assert {part: part.read_bytes() for part in before} == before


@pytest.mark.parametrize(
    "statement",
    [
        "DROP INDEX lanes_due",
        "CREATE TRIGGER t AFTER INSERT ON messages BEGIN DELETE FROM messages; END",
        "CREATE TABLE more(x)",
        "DELETE FROM state",
        "UPDATE state SET taken = 'x'",
    ],
)
def test_another_layout_is_damage(path, statement):
    filled(path, 3)
    change(path, statement)
    with pytest.raises(IndexDamagedError):
        Index(path, SHARD)


def test_a_plain_database_of_somebody_else(path):
    with contextlib.closing(apsw.Connection(str(path))) as other:
        other.execute("CREATE TABLE theirs(x)")
    before = path.read_bytes()
    with pytest.raises(FormatError):
        Index(path, SHARD)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"SQLite format 3\0" * 500])
def test_a_file_of_anything_else(path, content):
    path.write_bytes(content)
    with pytest.raises((IndexDamagedError, FormatError)):
        Index(path, SHARD)
    assert path.read_bytes() == content
    with contextlib.closing(Index(path.with_name("fresh.db"), SHARD)) as target:
        assert salvage(path, target)[:2] == (0, 0)


def test_a_log_without_its_index_is_damage(tested, path, tmp_path):
    tested.move([put(1)], ())
    left = copied(path, tmp_path / "left")
    left.unlink()
    with pytest.raises(IndexDamagedError):
        Index(left, SHARD)
    assert left.with_name("index.db-wal").exists()


def test_an_unfinished_creation_is_begun_anew(path):
    for end in ("", "-wal", "-journal"):
        path.with_name(f"index.db.new{end}").write_bytes(b"half")
    filled(path, 1)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change_to",
    [
        "head = zeroblob(250)",
        "head = 'text'",
        "waits = x'90'",
        "held = 1",
        "id = zeroblob(10)",
        "body = 3",
        "crc = crc + 1",
    ],
)
def test_a_row_that_was_altered_is_found_out(path, change_to):
    filled(path, 3)
    change(path, f"UPDATE messages SET {change_to} WHERE number = 2")
    with contextlib.closing(Index(path, SHARD)) as tested:
        for ask in (
            lambda: tested.page(0, 9),
            lambda: due(tested),
            lambda: tested.of_domains(["d2.example"], 9, skip=no),
        ):
            with pytest.raises(IndexDamagedError):
                ask()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE bodies SET octets = zeroblob(length(octets)) WHERE number = 2",
        "UPDATE bodies SET octets = 'text' WHERE number = 2",
        "UPDATE bodies SET (crc, octets) = (SELECT crc, octets FROM bodies WHERE number = 1) WHERE number = 2",
        "DELETE FROM bodies WHERE number = 2",
    ],
)
def test_a_body_that_was_altered_is_found_out(path, statement):
    filled(path, 3)
    change(path, statement)
    with contextlib.closing(Index(path, SHARD)) as tested:
        with pytest.raises(IndexDamagedError):
            tested.body(name(2))
        assert tested.body(name(3)) == body(3)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE lanes SET domain = x'ff' || domain",
        "UPDATE lanes SET domain = CAST(x'ff' AS TEXT) WHERE lane = 2",
        "DELETE FROM messages WHERE number = 2",
        "DELETE FROM lanes",
    ],
)
def test_tables_that_lie_raise_nothing_else(path, statement):
    filled(path, 20)
    change(path, statement)
    with contextlib.closing(Index(path, SHARD)) as tested:
        for ask in (
            lambda: due(tested),
            lambda: tested.move((), [name(n) for n in range(1, 21)]),
            lambda: tested.of_domains(["d2.example"], 9, skip=no),
        ):
            with contextlib.suppress(IndexDamagedError):
                ask()


def everything(path: Path) -> tuple[object, ...]:
    with contextlib.closing(Index(path, SHARD)) as tested:
        by_domain = [ids(tested.of_domains([f"d{n}.example"], 99, skip=no)) for n in range(7)]
        single = [tested.get(name(n)) for n in range(1, 40)]
        return (
            contents(tested),
            due(tested),
            by_domain,
            single,
            tested.count,
            tested.held,
            tested.taken,
            tested.oldest(),
        )


def test_flipped_octets_never_answer_wrongly(path):
    filled(path, 40)
    data = path.read_bytes()
    expected = everything(path)
    rng = random.Random(1)
    positions = [*range(110), *rng.sample(range(110, len(data)), 100)]
    caught = 0
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        path.unlink()
        path.write_bytes(flipped)
        try:
            assert everything(path) == expected
        except (IndexDamagedError, OSError):
            caught += 1
        for companion in path.parent.glob("index.db-*"):
            companion.unlink()
    assert caught > 180


def test_a_flipped_log_gives_what_was_committed_before(tested, path, tmp_path):
    states = []
    for n in range(1, 6):
        states.append(contents(tested))
        tested.move([put(n, wait(n))], ())
    states.append(contents(tested))
    crashed = copied(path, tmp_path / "crash")
    log = crashed.with_name("index.db-wal")
    main, data = crashed.read_bytes(), log.read_bytes()
    rng = random.Random(2)
    for position in [*range(60), *rng.sample(range(len(data)), 60)]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        crashed.write_bytes(main)
        log.write_bytes(flipped)
        with contextlib.suppress(IndexDamagedError, OSError), contextlib.closing(Index(crashed, SHARD)) as after:
            assert contents(after) in states
        for companion in crashed.parent.glob("index.db-*"):
            companion.unlink()


# --- salvage ----------------------------------------------------------------------------------------------------------


def salvaged(path: Path) -> tuple[object, dict[str, tuple[bytes, bytes | None, bool]], list[str]]:
    fresh = path.with_name("fresh.db")
    for part in path.parent.glob("fresh.db*"):
        part.unlink()
    before = path.read_bytes()
    with contextlib.closing(Index(fresh, SHARD)) as target:
        result = salvage(path, target)
        assert path.read_bytes() == before
        assert target.count == result.messages
        assert target.taken == 0
        return result, contents(target), due(target)


def expected_contents(messages: int) -> dict[str, tuple[bytes, bytes | None, bool]]:
    return {name(n): (head(n), body(n), False) for n in range(1, messages + 1)}


def test_salvage_of_a_sound_file_is_everything(path):
    filled(path, 300)
    result, found, waiting = salvaged(path)
    assert result == (300, 0, 7)
    assert found == expected_contents(300)
    assert sorted(waiting) == sorted(found)


def test_salvage_reads_the_log_too(tested, path, tmp_path):
    tested.move([put(1, wait(2)), put(2, wait(1), body=None)], ())
    result, found, waiting = salvaged(copied(path, tmp_path / "crash"))
    assert result.messages == 2
    assert found == contents(tested)
    assert waiting == [name(2), name(1)]


@pytest.mark.parametrize("seed", range(12))
def test_salvage_around_damaged_pages(path, seed):
    filled(path, 300)
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    pages = len(data) // index_file.PAGE_OCTETS
    for page in rng.sample(range(pages), 1 + seed):
        start = page * index_file.PAGE_OCTETS
        data[start : start + index_file.PAGE_OCTETS] = rng.choice(
            [bytes(index_file.PAGE_OCTETS), rng.randbytes(index_file.PAGE_OCTETS)]
        )
    path.write_bytes(data)
    result, found, _ = salvaged(path)
    assert found.items() <= expected_contents(300).items()
    assert result.messages == len(found)
    assert result.messages + result.lost >= 299


def test_salvage_without_the_first_page(path):
    filled(path, 100)
    data = path.read_bytes()
    path.write_bytes(bytes(index_file.PAGE_OCTETS) + data[index_file.PAGE_OCTETS :])
    with pytest.raises((IndexDamagedError, FormatError)):
        Index(path, SHARD)
    result, found, _ = salvaged(path)
    assert found == expected_contents(100)
    assert result.lost == 0


def test_salvage_loses_only_what_stood_on_the_page(path):
    """One page after the other: every message that is not on it comes back, and what is lost is counted."""
    filled(path, 40)
    data = path.read_bytes()
    size = index_file.PAGE_OCTETS
    lost = []
    for page in range(len(data) // size):
        path.write_bytes(data[: page * size] + bytes(size) + data[(page + 1) * size :])
        result, found, _ = salvaged(path)
        assert found.items() <= expected_contents(40).items()
        assert result.messages + result.lost == 40, f"page {page}"
        lost.append(result.lost)
    # The roots of `messages` and `bodies` are the way to all of them.
    assert sum(count == 40 for count in lost) == 2
    assert sorted(lost)[-3] < 16
    assert lost[0] == 0


def test_salvage_of_random_flips_never_raises(path):
    filled(path, 40)
    data = path.read_bytes()
    rng = random.Random(3)
    for _ in range(20):
        flipped = bytearray(data)
        for _ in range(30):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped[: len(data) - rng.choice([0, 0, 1, 5000])])
        _, found, _ = salvaged(path)
        assert found.items() <= expected_contents(40).items()


def test_a_file_that_takes_no_log_is_refused(path, monkeypatch):
    """SQLite answers which mode it is in, whether that was asked for or not."""
    monkeypatch.setattr(index_file, "LOG", "PRAGMA journal_mode = DELETE")
    with pytest.raises(OSError, match="no log"):
        Index(path, SHARD)
    assert not path.exists()
