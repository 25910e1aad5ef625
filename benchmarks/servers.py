"""Exim, OpenSMTPD and Haraka as smarthosts: queue on disk, everything else as they come.

Exim and OpenSMTPD run as Debian's packages of them do in tests/interop, which owns how: in namespaces of their own, so
they need root. Haraka comes from npm (`install.sh`). README.md says what each promises with its 250.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator

from processes import HOST, ROOT, free_port, program, running
from wanted import NAME, Wanted

from tests.interop import mail_servers

# mail_servers fills in host, port and sink. Taken away from the defaults is what would hold Exim back on one machine or
# end a connection that is kept: look-ups of the client, and limits of connections and of messages in one.
_EXIM = """\
primary_hostname = relay.bench.test
log_file_path = /var/spool/exim4/%slog
pid_file_path = /run/exim.pid
local_interfaces = {host}
daemon_smtp_ports = {port}
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
smtp_accept_max = 500
smtp_connect_backlog = 500
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
acl_smtp_rcpt = recipient
acl_smtp_data = accept

begin acl
recipient:
  accept hosts = 127.0.0.0/8

begin routers
onward:
  driver = manualroute
  route_list = * {host}
  transport = onward
  self = send

"""

_OPENSMTPD = """\
smtp limit max-mails 1000000
listen on {host} port {port} hostname relay.bench.test
action "onward" relay host smtp://{host}:{sink}
match from any for any action "onward"
"""

# All that a smarthost needs and its own plugins do not do: clients on loopback may relay, mail goes to one next hop.
_HARAKA_PLUGIN = """\
exports.register = function () {{
    this.register_hook('connect', 'trust')
    this.register_hook('rcpt', 'take')
    this.register_hook('get_mx', 'route')
}}
exports.trust = (next, connection) => {{ connection.relaying = true; next() }}
exports.take = (next) => next(OK)
exports.route = (next) => next(OK, {{ priority: 0, exchange: {host}, port: {sink} }})
"""

HARAKA = ROOT / "build" / "interop" / "haraka" / "node_modules" / "Haraka"
"""Where install.sh puts it."""


def exim(wanted: Wanted) -> contextlib.AbstractContextManager[int]:
    """Run Debian's Exim."""
    files = {"exim4/exim4.conf": _EXIM + mail_servers.EXIM_TRANSPORT}
    return _of_debian(mail_servers.EXIM._replace(files=files, command=("/usr/sbin/exim4", "-bdf", "-q1m")), wanted)


def opensmtpd(wanted: Wanted) -> contextlib.AbstractContextManager[int]:
    """Run Debian's OpenSMTPD."""
    files = {**mail_servers.OPENSMTPD.files, "smtpd.conf": _OPENSMTPD}
    return _of_debian(mail_servers.OPENSMTPD._replace(files=files), wanted)


@contextlib.contextmanager
def _of_debian(kind: mail_servers.Kind, wanted: Wanted) -> Iterator[int]:
    spool = wanted.scratch / "spool"
    spool.mkdir()
    with mail_servers.running(kind, wanted.scratch, wanted.sink, spool) as server:
        yield server.port


@contextlib.contextmanager
def haraka(wanted: Wanted) -> Iterator[int]:
    """Run Haraka with its own configuration, less its plugins, and a process for each CPU."""
    port, configuration = free_port(), wanted.scratch / "config"
    if not HARAKA.is_dir():
        raise RuntimeError(f"{HARAKA} is missing: benchmarks/install.sh installs it")
    shutil.copytree(HARAKA / "config", configuration)
    files = {
        "me": NAME,
        "plugins": "smarthost",
        "smtp.ini": f"listen={HOST}:{port}\nnodes=cpus",
        "outbound.ini": "enable_tls=false",
        "log.ini": "[main]\nlevel=NOTICE",
    }
    for name, text in files.items():
        (configuration / name).write_text(f"{text}\n", encoding="utf-8")
    plugin = wanted.scratch / "plugins" / "smarthost.js"
    plugin.parent.mkdir()
    plugin.write_text(_HARAKA_PLUGIN.format(host=json.dumps(HOST), sink=wanted.sink), encoding="utf-8")
    command = [program("node"), str(HARAKA / "bin" / "haraka"), "-c", str(wanted.scratch)]
    with running(command, wanted.scratch / "haraka.out", port):
        yield port
