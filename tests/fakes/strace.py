"""strace on a relay: which system calls it makes, and a kill or an error at one that is chosen.

A signal comes before its call has any effect: what a call did is what the kill at the next one leaves behind. `when`
counts the calls of one name in one thread, so whoever counts watches one thread, or names paths that only one uses.
Where strace is missing or may not trace, tests skip. Knows nothing of mail.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

CALLS = (
    "openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate",
    "rename", "link", "unlink", "unlinkat",
)  # fmt: skip
"""What changes files, and with `write` what is told to clients and next hops."""


class Call(NamedTuple):
    """One call in a trace, as it began. arguments: as strace writes them, descriptors with their paths (-y)."""

    thread: int
    name: str
    arguments: str

    @property
    def path(self) -> str:
        """What strace's -P knows it by: the (first) name it is given, or else the file or directory of its descriptor.

        So a name in a directory that is given by its descriptor counts as that directory.
        """
        named = self.name in {"openat", "rename", "link", "unlink", "unlinkat"}
        match = re.search('"(/[^"]*)"', self.arguments) if named else None
        match = match or re.match(r"\d+<(/[^>]*)>", self.arguments)
        return match[1] if match else ""


def program() -> str:
    """Where strace is; a skipped test where it is not."""
    path = shutil.which("strace", path=f"{os.environ.get('PATH', '')}:/usr/bin")
    if path is None:
        pytest.skip("strace, which kills and makes calls fail, is not installed")
    return path


def kill(name: str, when: int) -> tuple[str, ...]:
    """Options: SIGKILL at the call of this name and number."""
    return "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={when}"


def fail(names: str, error: str, when: str = "1+") -> tuple[str, ...]:
    """Options: these calls return an error, and do nothing. when: "1" the first, "1+" all."""
    return "-e", f"trace={names}", "-e", f"inject={names}:error={error}:when={when}"


def delay(names: str, seconds: int) -> tuple[str, ...]:
    """Options: these calls take so much longer."""
    return "-e", f"trace={names}", "-e", f"inject={names}:delay_enter={seconds}s"


def watch(trace: Path) -> tuple[str, ...]:
    """Options: write down all CALLS."""
    return "-y", "-s", "64", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"


def launcher(*options: str) -> tuple[str, ...]:
    """A command to put in front of another, whose process keeps the id it was started with; all its threads."""
    return program(), "-f", "-D", "-qq", *options


@asynccontextmanager
async def attached(process: int, *options: str, seconds: float = 10.0) -> AsyncIterator[None]:
    """Trace a process (with -f) or one thread of it while the context lasts."""
    command = [program(), "-o", os.devnull, *options, "-p", str(process)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        # Whatever goes wrong, the tracer's end lets the thread that reads go on.
        bound = asyncio.get_running_loop().call_later(seconds, tracer.kill)
        try:
            told = await asyncio.to_thread(tracer.stderr.readline)
            bound.cancel()
            if b"attached" not in told:
                pytest.skip(f"strace may not trace here: {told.decode().strip()}")
            yield
        finally:
            bound.cancel()
            tracer.terminate()
            # What it still says would fill the pipe.
            await asyncio.to_thread(tracer.communicate, timeout=seconds)


def threads(process: int) -> list[int]:
    """The threads of a process, oldest first."""
    found = []
    for directory in Path(f"/proc/{process}/task").iterdir():
        fields = (directory / "stat").read_text().rpartition(") ")[2].split()
        found.append((int(fields[19]), int(directory.name)))
    return [thread for _, thread in sorted(found)]


def calls(trace: Path) -> Iterator[Call]:
    """What was written down, in order."""
    for line in trace.read_text("utf-8", "replace").splitlines():
        if match := re.match(r"(\d+) +(\w+)\((.*)", line):
            yield Call(int(match[1]), match[2], match[3])
