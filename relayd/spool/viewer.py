"""A spool as it is, for whoever only looks: with or without a server at work on it, without lock and without change.

Used by the command line and by tests. Beside a running server the picture is of about now: a message on its way into
the index may be seen twice or not at all, and the batch that is being written counts as torn. Whoever wants to go on
where something is damaged passes `tell`; nobody else gets less than everything without an exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import msgspec

from relayd.message import queue_id
from relayd.spool import journal, recovery
from relayd.spool.bodyfile import BodyError, SoundFile
from relayd.spool.index_file import Found, IndexDamagedError, files_of
from relayd.spool.index_view import IndexView, MissingError, Tell, refuse
from relayd.spool.journal import RecordError, SegmentReader
from relayd.spool.ledger import Ledger
from relayd.spool.records import Filed, Message
from relayd.spool.recovery import Loss, Replay
from relayd.spool.store import FormatError

_LOOKS = 10
"""Times a look begins anew because a segment was unlinked under it."""


class Viewer:
    """Every shard of some spool directories. FormatError, IndexDamagedError, OSError when it is opened.

    tell: told of what cannot be read in an index, instead of an exception. strict: see IndexView. Memory: what a server
    would have, without bodies; `messages` reads those at rest a page at a time.
    """

    def __init__(self, *spools: Path, tell: Tell = refuse, strict: bool = True) -> None:
        self._exit = ExitStack()
        try:
            self.shards = [
                ShardView(directory, shard, self._exit, tell, strict=strict)
                for spool in spools
                for shard, directory in recovery.shards(spool)
            ]
        except BaseException:
            self._exit.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def messages(self) -> Iterator[Message]:
        """All live messages: those at rest, then those the journals answer for, oldest first within each."""
        for shard in self.shards:
            yield from shard.resting()
        live = [message for shard in self.shards for message in shard.ledger.messages.values()]
        yield from sorted(live, key=lambda message: message.envelope.accepted_at)

    def find(self, name: str) -> Message | None:
        """One live message."""
        if not queue_id.is_valid(name):
            return None
        found = (shard.find(name) for shard in self.shards if shard.number == queue_id.shard_of(name))
        return next((message for message in found if message is not None), None)

    def body(self, message: Message) -> Iterator[bytes]:
        """The octets of a live message's body, checked, in parts.

        MissingError when it is not there any more; RecordError, IndexDamagedError, OSError when it cannot be read.
        """
        number = queue_id.shard_of(message.envelope.id)
        holder = next(shard for shard in self.shards if shard.number == number)
        return holder.body(message)

    @property
    def quarantined(self) -> int:
        """Ranges of the journals that cannot be read."""
        return sum(not loss.torn for shard in self.shards for loss in shard.losses)

    @property
    def torn(self) -> int:
        """Batches that were never acknowledged."""
        return sum(loss.torn for shard in self.shards for loss in shard.losses)


class Stock(msgspec.Struct, frozen=True):
    """Files in a directory and below."""

    files: int
    octets: int


class SegmentView(msgspec.Struct, frozen=True):
    """A segment. version: of its format, 0 when that cannot be read. messages: those it answers for."""

    number: int
    version: int
    octets: int
    messages: int


class ShardView:
    """One shard. losses: what of its journal cannot be read. ledger: what the journal adds up to, over the index.

    index: None when there is none, or nothing of it can be read. See `Viewer` for `tell`, IndexView for `strict`.
    """

    def __init__(
        self, directory: Path, number: int, resources: ExitStack, tell: Tell = refuse, *, strict: bool = True
    ) -> None:
        self.directory = directory
        self.number = number
        self._tell = tell
        self.index = self._index(strict=strict)
        if self.index is not None:
            resources.callback(self.index.close)
        replay = self.replay(taken=self.index.taken if self.index else 0)
        self.ledger: Ledger = replay.ledger
        self.losses: list[Loss] = replay.losses
        if self.index is not None:
            for found in self.index.get_many(list(self.ledger.strays)).values():
                if (message := self._message(found)) is not None:
                    self.ledger.reconcile(message)

    # --- messages -----------------------------------------------------------------------------------------------------

    def resting(self) -> Iterator[Message]:
        """Messages that are in the index alone."""
        for found in self.index.messages() if self.index else ():
            if found.id not in self.ledger and (message := self._message(found)) is not None:
                yield message

    def find(self, name: str) -> Message | None:
        """A live message of this shard."""
        message = self.ledger.messages.get(name)
        if message is not None or self.index is None or name in self.ledger:
            return message
        found = self.index.get(name)
        return None if found is None else self._message(found)

    def body(self, message: Message) -> Iterator[bytes]:
        """See `Viewer.body`."""
        name = message.envelope.id
        if isinstance(message.body, Filed):
            yield from self._file(name, message.body)
            return
        place = self.ledger.place(name)
        if place is not None:
            try:
                yield journal.body_at(self.directory / "journal", place)
                return
            except FileNotFoundError:
                # Done since, or moved into the index.
                pass
        if self.index is None:
            raise MissingError(name)
        yield self.index.body(name)

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def at_rest(self) -> int:
        """Messages that are in the index alone."""
        count = self.index.count if self.index else 0
        return max(0, count - len(self.ledger.indexed) - len(self.ledger.gone))

    def oldest(self) -> float | None:
        """Wall time at which the oldest message was accepted, or about that."""
        first = (next(iter(self.ledger.messages.values()), None), next(self.resting(), None))
        return min((message.envelope.accepted_at for message in first if message is not None), default=None)

    def segments(self) -> Iterator[SegmentView]:
        """Those of the journal, oldest first."""
        live = {segment.number: len(segment.live) for segment in self.ledger.segments}
        for number in journal.segment_numbers(self.directory / "journal"):
            try:
                with SegmentReader(journal.segment_path(self.directory / "journal", number)) as reader:
                    yield SegmentView(number, reader.version, reader.size, live.get(number, 0))
            except journal.IrregularFileError:
                yield SegmentView(number, 0, 0, 0)
            except FileNotFoundError:
                continue

    def index_octets(self) -> int:
        """What the index takes on disk, its log included."""
        return sum(map(_octets, files_of(self.directory / "index.db")))

    def stock(self, name: str) -> Stock | None:
        """What is in the shard's `bodies` or `quarantine`; None when there is no such directory."""
        top = self.directory / name
        if not top.is_dir():
            return None
        sizes = [_octets(Path(where, file)) for where, _, files in os.walk(top) for file in files]
        return Stock(len(sizes), sum(sizes))

    def replay(self, *, taken: int) -> Replay:
        """The journal behind the segments the index has taken."""
        known = self.index.get_many if self.index else recovery.nothing
        for _ in range(_LOOKS):
            try:
                return Replay(self.directory, self.number, taken=taken, known=known)
            except FileNotFoundError:
                # Its messages were done, or moved into the index, since the list was made: look again.
                continue
        return Replay(self.directory, self.number, taken=taken, known=known)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _index(self, *, strict: bool) -> IndexView | None:
        path = self.directory / "index.db"
        try:
            return IndexView(path, self.number, self._tell, strict=strict)
        except FileNotFoundError:
            return None
        except (FormatError, IndexDamagedError) as error:
            if self._tell is refuse:
                raise
            self._tell(str(error))
            return None

    def _file(self, name: str, filed: Filed) -> Iterator[bytes]:
        try:
            with closing(SoundFile(self.directory / "bodies", name, filed)) as file:
                offset = 0
                while block := file.read(offset):
                    offset += len(block)
                    yield block
        except FileNotFoundError as error:
            raise MissingError(name) from error
        except BodyError as error:
            raise RecordError(f"{name}: {error}") from error

    def _message(self, found: Found) -> Message | None:
        try:
            return journal.from_head(found.head, self.number)
        except RecordError as error:
            self._tell(f"{self.directory / 'index.db'}: {found.id}: {error}")
            return None


def _octets(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        # The server is at work.
        return 0
