"""Large bodies, on the event loop: written while they arrive, streamed while they leave, never whole in memory.

Owns the two threads that read and write the files of a shard (`bodyfile`), and what waits for them, which counts in the
memory budget. Knows nothing of records but `Filed`, nothing of SMTP but dots. Used by `queue`, inbound and outbound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import TypeVar

from zlib_ng.zlib_ng import crc32

from relayd import log, metrics
from relayd.message.dsn import header_of
from relayd.smtp.framing import Stuffing
from relayd.spool import bodyfile
from relayd.spool.bodyfile import READ, BodyError, NewFile, SoundFile
from relayd.spool.memory import Memory
from relayd.spool.records import Filed
from relayd.spool.threads import Threads

THREADS = 2
"""For reading and writing bodies: disks take more at once, but a burst of them must not starve the journal."""

T = TypeVar("T")


class Bodies:
    """The body files of a shard. Nothing here blocks; each message's file is its own, so its errors are too."""

    def __init__(self, directory: Path, quarantine: Path) -> None:
        self._directory = directory
        self._quarantine = quarantine
        self._threads = Threads(THREADS, f"{directory.parent.name}-bodies")
        self._synced: set[str] = set()

    def write(self, name: str, memory: Memory) -> Writing:
        """Begin the file of a new message; what waits to be written counts in `memory`."""
        return Writing(name, NewFile(self._directory, name, self._synced), memory, self.call)

    async def read(self, name: str, filed: Filed, memory: Memory) -> Reading:
        """A message's body, checked and open; the caller closes it. BodyError, and the file is quarantined; OSError.

        Checked before an octet of it is sent: a damaged file then costs no session with a peer. The pages it was read
        into are still there when it is sent.
        """
        job = self.call(partial(SoundFile, self._directory, name, filed))
        try:
            file = await asyncio.shield(job)
        except asyncio.CancelledError:
            job.add_done_callback(_close_unwanted)
            raise
        except BodyError as error:
            await self._condemn(name, str(error))
            raise
        return Reading(file, filed, memory, self.call)

    def remove(self, name: str) -> None:
        """The message is done. One that cannot be removed stays until the next start."""
        try:
            self.call(partial(bodyfile.unlink, self._directory, name)).add_done_callback(partial(_removed, name))
        except RuntimeError:
            return  # closed: the next start finds it

    async def sweep(self, live: Container[str], *, doubt: bool) -> None:
        """At open: body files without a message. A crash came before their record, or before their removal."""
        try:
            _, moved = await self.call(partial(bodyfile.sweep, self._directory, self._quarantine, live, doubt=doubt))
        except OSError as error:
            log.alert("bodies not swept", directory=str(self._directory), error=str(error))
            return
        if moved:
            metrics.quarantined.inc(moved)
            log.alert("bodies quarantined", directory=str(self._directory), files=moved)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.close()

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have a thread do it. RuntimeError when closed."""
        return self._threads.call(work)

    async def _condemn(self, name: str, why: str) -> None:
        path = bodyfile.path_of(self._directory, name)
        log.alert("body unusable", id=name, reason=why)
        try:
            await self.call(partial(bodyfile.set_aside, path, self._quarantine))
        except FileNotFoundError:
            return
        except OSError as error:
            # It stays where it is, and the next attempt finds it as damaged.
            log.alert("body not moved", id=name, error=str(error))
        else:
            metrics.quarantined.inc()


class Writing:
    """A body on its way into its file: octets in any portions, then `finish` or `discard`.

    Invariants: at most one job is with a thread, so octets go in order; `waiting` octets are in memory and counted in
    the budget, those of the running job included; once `error` is set or it was discarded, nothing is written, the file
    goes, and so does what waited. `changed` is called, on the loop, when octets were written or it failed.
    """

    def __init__(
        self, name: str, file: NewFile, memory: Memory, call: Callable[[Callable[[], object]], asyncio.Future[object]]
    ) -> None:
        self.id = name
        self.octets = 0
        """Of the body so far."""
        self.waiting = 0
        self.error: OSError | None = None
        self.changed: Callable[[], None] | None = None
        self._file = file
        self._memory = memory
        self._call = call
        self._parts: list[bytes] = []
        self._busy = False
        self._flight = 0
        self._over = False
        self._finished: asyncio.Future[Filed] | None = None

    def write(self, data: bytes) -> None:
        """More of the body. O(1), unbounded: the caller looks at `waiting`."""
        if self._over or not data:
            return
        self.octets += len(data)
        self.waiting += len(data)
        self._memory.force(len(data))
        self._parts.append(data)
        self._next()

    def finish(self) -> asyncio.Future[Filed]:
        """Done when all is on stable storage, or with OSError, and the file is gone. Once; at least one octet before.

        To cancel it changes nothing.
        """
        finished: asyncio.Future[Filed] = asyncio.get_running_loop().create_future()
        self._finished = finished
        if self._over:
            finished.set_exception(self.error or OSError("discarded"))
        else:
            self._next()
        return finished

    def discard(self) -> None:
        """Nobody wants it any more. At any time, more than once."""
        if not self._over:
            self._end()

    def _next(self) -> None:
        if self._busy:
            return
        if self._over:
            self._start(self._file.remove, self._removed)
        elif self._parts:
            parts, self._parts = self._parts, []
            self._start(partial(self._file.append, parts), self._written, sum(map(len, parts)))
        elif self._finished is not None:
            self._start(self._file.seal, self._sealed)

    def _start(
        self, work: Callable[[], object], then: Callable[[asyncio.Future[object]], None], octets: int = 0
    ) -> None:
        try:
            job = self._call(work)
        except RuntimeError:
            # The spool is closed. What is in the file is an orphan of the next start.
            if not self._over:
                self._fail(OSError("the spool is closed"))
            return
        self._busy = True
        self._flight = octets
        job.add_done_callback(then)

    def _written(self, job: asyncio.Future[object]) -> None:
        self._busy = False
        octets, self._flight = self._flight, 0
        self._memory.give(octets)
        self.waiting -= octets
        self._judge(job)
        self._next()
        if self.changed is not None:
            self.changed()

    def _sealed(self, job: asyncio.Future[object]) -> None:
        self._busy = False
        self._judge(job)
        if self._over:
            self._next()
            return
        self._over = True
        filed = job.result()
        assert isinstance(filed, Filed), "what seal returns"
        assert self._finished is not None, "what seal is called for"
        if not self._finished.done():
            self._finished.set_result(filed)

    def _removed(self, job: asyncio.Future[object]) -> None:
        """The end; `_busy` stays, so that nothing follows."""
        if error := job.exception():
            log.alert("unfinished body not removed", id=self.id, error=str(error))

    def _judge(self, job: asyncio.Future[object]) -> None:
        error = job.exception()
        if error is None or self._over:
            return
        if not isinstance(error, OSError):
            metrics.bugs.inc()
            log.alert("bug in writing a body", id=self.id, error=repr(error))
            error = OSError(repr(error))
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = error
        log.alert("body not written", id=self.id, error=str(error))
        self._end()
        if self._finished is not None and not self._finished.done():
            self._finished.set_exception(error)

    def _end(self) -> None:
        self._over = True
        dropped = self.waiting - self._flight
        self._parts.clear()
        self._memory.give(dropped)
        self.waiting -= dropped
        self._next()


class Reading:
    """A checked body, open. Whoever got it closes it; `stream` as often as wanted. Two blocks of memory meanwhile."""

    def __init__(
        self,
        file: SoundFile,
        filed: Filed,
        memory: Memory,
        call: Callable[[Callable[[], tuple[bytes, int]]], asyncio.Future[tuple[bytes, int]]],
    ) -> None:
        self.octets = filed.octets
        self.ascii = file.ascii
        self.ascii_header = file.ascii_header
        self._filed = filed
        self._file = file
        self._memory = memory
        self._call = call
        self._job: asyncio.Future[tuple[bytes, int]] | None = None
        memory.force(2 * READ)

    def stream(self, *, stuffed: bool = True) -> Stream:
        """The body from its first octet; not stuffed, it lacks its last one, which the caller sends."""
        return Stream(self, self._filed, stuffed=stuffed)

    async def header(self) -> bytes:
        """The message's header, or what one block holds of it."""
        block, _ = await self.block(0, 0)
        return header_of(block)

    async def block(self, offset: int, crc: int) -> tuple[bytes, int]:
        """READ octets and the crc up to their end."""
        self._job = self._call(partial(_block, self._file, offset, crc))
        return await asyncio.shield(self._job)

    def close(self) -> None:
        """Once, in the middle of reading too."""
        self._memory.give(2 * READ)
        if self._job is None or self._job.done():
            self._file.close()
        else:
            # Under a thread that reads, the descriptor's number must not become another file's.
            self._job.add_done_callback(self._close_late)

    def _close_late(self, job: asyncio.Future[tuple[bytes, int]]) -> None:
        job.exception()  # nobody asks any more
        self._file.close()


class Stream:
    """A body as it goes out, in order."""

    def __init__(self, reading: Reading, filed: Filed, *, stuffed: bool) -> None:
        self._reading = reading
        self._filed = filed
        self._stuffing = Stuffing() if stuffed else None
        self._offset = 0
        self._crc = 0

    async def next(self) -> bytes:
        """The next part; b"" behind the last. BodyError: what was sent must not be ended.

        The last part comes only if all of them together are still what the record says.
        """
        if self._offset >= self._filed.octets:
            return b""
        try:
            block, self._crc = await self._reading.block(self._offset, self._crc)
        except OSError as error:
            raise BodyError(f"not readable: {error}") from error
        self._offset += len(block)
        if not block or (self._offset == self._filed.octets and self._crc != self._filed.crc):
            raise BodyError("changed since it was checked")
        if self._stuffing is not None:
            return self._stuffing.feed(block)
        return block if self._offset < self._filed.octets else block[:-1]


def _block(file: SoundFile, offset: int, crc: int) -> tuple[bytes, int]:
    block = file.read(offset)
    return block, crc32(block, crc)


def _removed(name: str, job: asyncio.Future[None]) -> None:
    if error := job.exception():
        log.alert("body not removed", id=name, error=str(error))


def _close_unwanted(job: asyncio.Future[SoundFile]) -> None:
    if job.exception() is None:
        job.result().close()
