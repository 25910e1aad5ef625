"""Whether a spool is what was written: every frame, record, row and body is read, and what is wrong is told.

Owns what counts as damage; changes nothing, and goes on behind what it finds. Beside a running server it sees the spool
as of about now. An unfinished batch at a journal's end is no damage: nobody was told that it was taken. Called by the
command line.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from relayd.spool import journal, recovery
from relayd.spool.bodyfile import BodyError, SoundFile, path_of
from relayd.spool.index_file import IndexDamagedError, Row, checked, waits_of
from relayd.spool.index_view import IndexView
from relayd.spool.journal import RecordError
from relayd.spool.records import Filed, Message
from relayd.spool.recovery import Loss
from relayd.spool.store import FormatError
from relayd.spool.viewer import ShardView

_TREES = {
    "index of ids": "SELECT COUNT(id) FROM messages INDEXED BY messages_id",
    "index of held messages": "SELECT COUNT(number) FROM messages INDEXED BY messages_held WHERE held",
    "index of lanes": "SELECT COUNT(domain) FROM lanes INDEXED BY lanes_name",
    "index of due lanes": "SELECT COUNT(due) FROM lanes INDEXED BY lanes_due",
}
"""What is derived from the tables, read whole. The tables themselves are read row by row."""

_NEVER = {
    "lanes that are wrong about when they are due": (
        "SELECT COUNT(*) FROM lanes l WHERE l.due IS NOT (SELECT MIN(due) FROM waiting w WHERE w.lane = l.lane)"
    ),
    "groups that wait in no lane": (
        "SELECT COUNT(*) FROM waiting w WHERE NOT EXISTS (SELECT 1 FROM lanes l WHERE l.lane = w.lane)"
    ),
}
"""What there must be none of: mail in it would be tried late, or never."""

_WAITS = (
    "SELECT COUNT(*) FROM lanes l JOIN waiting w ON w.lane = l.lane"
    " WHERE l.domain = ? AND l.account = ? AND w.due = ? AND w.number = ?"
)


class Flaw(msgspec.Struct, frozen=True):
    """Something that is not what was written: the file, and what is wrong with it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Audit(msgspec.Struct):
    """What was read. messages and bodies: those of the index; files: bodies in files of their own.

    torn: batches at the end of a journal that were never acknowledged. flaws: how many there are.
    """

    shards: int = 0
    segments: int = 0
    octets: int = 0
    messages: int = 0
    bodies: int = 0
    files: int = 0
    torn: int = 0
    flaws: int = 0


def audit(*spools: Path, tell: Callable[[Flaw], None]) -> Audit:
    """Read everything in some spool directories, one shard after the other; `tell` is called for each flaw.

    Memory: what a server would have for one shard, without bodies. O(octets). OSError when a directory cannot be read.
    """
    result = Audit()
    for spool in spools:
        for number, directory in recovery.shards(spool):
            result.shards += 1
            _Shard(directory, number, result, tell).read()
    return result


class _Shard:
    """One shard being read."""

    def __init__(self, directory: Path, number: int, result: Audit, tell: Callable[[Flaw], None]) -> None:
        self._directory = directory
        self._number = number
        self._index_file = directory / "index.db"
        self._result = result
        self._tell = tell
        self._told: set[tuple[Path, str]] = set()

    def read(self) -> None:
        """Everything."""
        with ExitStack() as resources:
            try:
                view = ShardView(self._directory, self._number, resources, self._index_told)
                losses = self._losses(view)
            except FormatError as error:
                # A newer segment: not for this version to judge, and the other shards are.
                self._flaw(self._directory, str(error))
                return
            self._journal(view, losses)
            if view.index is not None:
                self._result.octets += view.index_octets()
                with view.index.still():
                    self._index(view.index)
            for message in view.ledger.messages.values():
                self._file(message)

    def _flaw(self, file: Path, what: str) -> None:
        """Tell of a flaw once, however often it is met."""
        if (file, what) not in self._told:
            self._told.add((file, what))
            self._result.flaws += 1
            self._tell(Flaw(str(file), what.removeprefix(f"{file}: ")))

    def _index_told(self, what: str) -> None:
        self._flaw(self._index_file, what)

    # --- the journal --------------------------------------------------------------------------------------------------

    def _losses(self, view: ShardView) -> list[Loss]:
        """Those of all segments: the view has left out what the index has taken and the server has yet to unlink."""
        taken = view.index.taken if view.index else 0
        numbers = journal.segment_numbers(self._directory / "journal")
        return view.replay(taken=0).losses if any(number <= taken for number in numbers) else view.losses

    def _journal(self, view: ShardView, losses: list[Loss]) -> None:
        for segment in view.segments():
            self._result.segments += 1
            self._result.octets += segment.octets
        for loss in losses:
            if loss.torn:
                self._result.torn += 1
                continue
            kept = " (a copy is in the quarantine)" if (self._directory / "quarantine" / loss.name).exists() else ""
            file = journal.segment_path(self._directory / "journal", loss.segment)
            self._flaw(file, f"{loss.octets} octets at {loss.offset}: {loss.reason}{kept}")

    # --- the index ----------------------------------------------------------------------------------------------------

    def _index(self, index: IndexView) -> None:
        for what, statement in _TREES.items():
            index.number(what, statement)
        messages = bodies = groups = 0
        for row in index.rows():
            messages += 1
            try:
                bodies += self._message(index, row)
                groups += self._groups(index, row)
            except IndexDamagedError as error:
                self._index_told(str(error))
        self._result.messages += messages
        self._result.bodies += bodies
        if not any(file == self._index_file for file, _ in self._told):
            self._agree(index, messages, bodies, groups)

    def _message(self, index: IndexView, row: Row) -> int:
        """Check a row and its body; how many bodies it has."""
        found = checked(row, self._number)
        try:
            message = journal.from_head(found.head, self._number)
        except RecordError as error:
            raise IndexDamagedError(f"{found.id}: {error}") from error
        if message.envelope.id != found.id or message.held != found.held:
            raise IndexDamagedError(f"{found.id}: the head of another message, or of another time")
        if isinstance(message.body, Filed):
            self._file(message)
            return 0
        index.body_of(row)
        return 1

    def _file(self, message: Message) -> None:
        """Check a body that is in a file of its own."""
        name, filed = message.envelope.id, message.body
        if not isinstance(filed, Filed):
            return
        self._result.files += 1
        try:
            SoundFile(self._directory / "bodies", name, filed).close()
        except (BodyError, OSError) as error:
            self._flaw(path_of(self._directory / "bodies", name), str(error))

    def _groups(self, index: IndexView, row: Row) -> int:
        groups = waits_of(row[4])
        for domain, account, due in groups:
            if index.query(_WAITS, domain, account, due, row[0]) != [(1,)]:
                raise IndexDamagedError(f"message {row[0]}: waits for {domain}, and is not found there")
        return len(groups)

    def _agree(self, index: IndexView, messages: int, bodies: int, groups: int) -> None:
        """Whether the tables agree with each other; asked of an index all of which could be read."""
        for what, statement, expected in (
            ("messages by id", _TREES["index of ids"], messages),
            ("bodies", "SELECT COUNT(*) FROM bodies", bodies),
            ("groups of recipients", "SELECT COUNT(*) FROM waiting", groups),
            *((what, statement, 0) for what, statement in _NEVER.items()),
        ):
            if (count := index.number(what, statement)) != expected:
                self._index_told(f"{what}: {count} instead of {expected}")
        try:
            for (line,) in index.query("PRAGMA integrity_check(100)"):
                if line != "ok":
                    self._index_told(str(line))
        except IndexDamagedError as error:
            self._index_told(str(error))
