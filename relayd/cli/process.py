"""The process itself, for `relayd serve`: descriptor limit, scheduling, user, and what systemd is told."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import socket
import sys
from pathlib import Path

from relayd import log


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the hard limit allows; returns how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a sandbox forbids it
        log.alert("descriptor limit not raised", limit=soft, error=str(error))
        return soft
    return hard


def prefer_throughput() -> None:
    """Interrupt nobody by waking up (SCHED_BATCH, sched(7)); threads and workers inherit it. Another policy stays.

    The thread that writes the journal is woken some 16 times a commit before it gets the interpreter, each time in the
    place of a process that was working: 8 % of the machine's cycles (docs/decisions/0015).
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # a sandbox forbids it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def become(user: str | None) -> None:
    """Stop being root, for good. Without a user to become, stay and say so loudly."""
    if os.geteuid() != 0:
        return
    if user is None:
        log.alert("running as root", remedy="set [process] user")
        sys.stderr.write("relayd: running as root; set [process] user to a user of its own\n")
        return
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def give(path: Path, user: str) -> None:
    """Make a file or directory that root made the user's, who has to use it later."""
    if os.geteuid() == 0 and path.exists():
        entry = pwd.getpwnam(user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def notify(state: str) -> None:
    """Tell systemd "READY=1" or "STOPPING=1" (sd_notify(3)); without systemd, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.alert("systemd was not told", state=state, error=str(error))
