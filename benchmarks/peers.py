"""What is measured: relayd, Postfix, and no relay at all, each started afresh on loopback over a directory of its own.

Each peer is a context: inside it, mail for anybody sent to the port it yields goes on to the sink. Only processes
started here are ended, by their own id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HOST = "127.0.0.1"
_PATIENCE = 30.0

Peer = Callable[[Path, int], contextlib.AbstractContextManager[int]]
"""(scratch directory, port of the sink) → the port to send mail to."""

RELAYD = """\
hostname = "relay.bench.test"
[[listeners]]
bind = "{host}:{port}"
kind = "relay"
[relay]
trusted_networks = ["127.0.0.0/8"]
[[routes]]
domains = ["*"]
next_hops = ["{host}:{sink}"]
[admin]
bind = "{host}:{admin}"
[log]
file = "events.log"
"""

# Debian's defaults, with what would hold Postfix back on one machine taken away: no DNS, no reverse look-ups, no pause
# for a queue manager that lags, and as many deliveries at once to the one next hop as relayd makes.
_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {scratch}/queue
data_directory = {scratch}/data
maillog_file = {scratch}/maillog
maillog_file_prefixes = {scratch}
myhostname = relay.bench.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [{host}]:{sink}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_tls_security_level = none
in_flow_delay = 0
default_process_limit = 100
initial_destination_concurrency = 20
default_destination_concurrency_limit = 20
alias_maps =
alias_database =
local_recipient_maps =
"""

_MASTER_CF = """\
{host}:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
"""


@contextlib.contextmanager
def none(_scratch: Path, sink: int) -> Iterator[int]:
    """Send into the sink: what the load tools themselves cost."""
    yield sink


@contextlib.contextmanager
def relayd(scratch: Path, sink: int) -> Iterator[int]:
    """Run relayd of this repository, with every guarantee on: fsync before 250, metrics, events to a file."""
    port, admin = free_port(), free_port()
    configuration = scratch / "relayd.toml"
    configuration.write_text(RELAYD.format(host=HOST, port=port, sink=sink, admin=admin), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}
    command = [sys.executable, "-m", "relayd", "serve", "--config", str(configuration)]
    with running(command, scratch / "relayd.out", port, environment):
        yield port


@contextlib.contextmanager
def postfix(scratch: Path, sink: int) -> Iterator[int]:
    """Run Postfix from a configuration of its own; nothing of the system's is read or changed. Needs root."""
    port = free_port()
    configuration = scratch / "etc"
    for directory in (configuration, scratch / "queue", scratch / "data"):
        directory.mkdir()
    shutil.chown(scratch / "data", "postfix")
    facts = {"scratch": scratch, "host": HOST, "sink": sink, "port": port}
    (configuration / "main.cf").write_text(_MAIN_CF.format(**facts), encoding="utf-8")
    (configuration / "master.cf").write_text(_MASTER_CF.format(**facts), encoding="utf-8")
    control = [program("postfix"), "-c", str(configuration)]
    with (scratch / "postfix.out").open("ab") as output:
        subprocess.run([*control, "start"], stdout=output, stderr=output, check=True)
        try:
            await_listener(port)
            yield port
        finally:
            subprocess.run([*control, "stop"], stdout=output, stderr=output, check=True)


PEERS: dict[str, Peer] = {"none": none, "postfix": postfix, "relayd": relayd}


@contextlib.contextmanager
def running(
    command: list[str], output: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that listens on `port`, its output in a file, ended by SIGTERM."""
    with output.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        await_listener(port, process)
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def await_listener(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when somebody accepts connections there. RuntimeError when nobody does in time."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.02)


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str:
    """Where it is installed. RuntimeError when it is not."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"{name} is missing: Debian package postfix")
    return path
