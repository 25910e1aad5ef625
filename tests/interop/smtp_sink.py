"""Postfix's smtp-sink, a next hop that fails at the command it is told to, and a reader of the mail it writes down.

Owns the process and its files. Must not know relayd, nor what a failure ought to lead to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fakes.relay_process import HOST
from tests.fakes.sink import Received


class SmtpSink:
    """One smtp-sink, listening once constructed. `stop` ends it; afterwards its port is free for another.

    flags: as in smtp-sink(1). directory: made, for what it takes.
    """

    def __init__(self, directory: Path, port: int, flags: Sequence[str]) -> None:
        directory.mkdir()
        self.directory = directory
        self.port = port
        path = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert path, "smtp-sink is not installed"
        user = ("-u", "root") if os.geteuid() == 0 else ()  # it insists on a name
        command = (path, *user, *flags, "-d", f"{directory}/", f"inet:{HOST}:{port}", "256")
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._await_listener()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM; a second time for nothing."""
        self._process.terminate()
        self._process.wait(10)

    def taken(self) -> list[Received]:
        """Every message it read to the final dot, whatever it answered to that; when it has ended."""
        dumps = [path.read_bytes() for path in self.directory.iterdir()]
        return [_parsed(dump) for dump in dumps if dump.endswith(b"\n\n")]  # the others were cut off

    def _await_listener(self) -> None:
        """Without connecting: it may have been told to fail there."""
        listening = re.compile(rf": 0100007F:{self.port:04X} 00000000:0000 0A ")  # proc(5), /proc/net/tcp
        deadline = time.monotonic() + 10
        while not listening.search(Path("/proc/net/tcp").read_text("ascii")):
            assert self._process.poll() is None, f"smtp-sink ended with {self._process.returncode}"
            assert time.monotonic() < deadline, "smtp-sink does not listen"
            time.sleep(0.005)


def _parsed(dump: bytes) -> Received:
    """DUMP FILE FORMAT of smtp-sink(1): its own fields, the message with LF for CRLF, an empty line."""
    fields = re.match(rb"(?:X-[A-Za-z-]+: .*\n)+Received: .*\n\t.*\n\t.*\n", dump)
    assert fields, dump[:200]
    arguments = re.findall(rb"^X-(Mail|Rcpt)-Args: (.*)\n", fields[0], re.MULTILINE)
    senders, recipients = ([text for kind, text in arguments if kind == each] for each in (b"Mail", b"Rcpt"))
    return Received(senders[0], tuple(recipients), dump[fields.end() : -1].replace(b"\n", b"\r\n"))
