"""Debian's mail servers as next hops: Postfix, Exim and OpenSMTPD, each offering STARTTLS and passing mail on to a sink.

Owns their configuration and their lives. Each runs as root in mount and process namespaces of its own, so that nothing
of the machine is changed and no process is left: /etc has the server's files and users on top, and what it writes goes
to memory, or where the caller says. Exim and OpenSMTPD conflict with Postfix as packages; install.sh has unpacked them.
Must not know relayd. benchmarks/servers.py runs the same servers with configurations of its own.

Each takes mail for addresses at peer.test that begin with n and a digit, and knows no others.
"""

from __future__ import annotations

import contextlib
import shutil
import smtplib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trustme

from tests.fakes.relay_process import HOST, free_ports

UNPACKED = Path(__file__).parents[2] / "build" / "interop"
"""Where install.sh puts the packages that cannot be installed side by side: a directory each."""

DOMAIN = "peer.test"
RECIPIENTS = 30
"""Recipients each takes in a transaction, to those beyond it says 452; OpenSMTPD 451."""

SESSION = 50
"""Messages OpenSMTPD takes in a session; 100 if it were not told."""

_GID = 60_001

_BOX = """\
set -e
etc=$1 unpacked=$2 owner=$3 spool=$4
shift 4
mount -t overlay overlay -o "lowerdir=$etc:/etc" /etc
[ -z "$unpacked" ] || mount -t overlay overlay -o "lowerdir=$unpacked/usr/sbin:/usr/sbin" /usr/sbin
if [ -n "$spool" ]; then mount --bind "$spool" /var/spool; else mount -t tmpfs tmpfs /var/spool; fi
for memory in /run /var/lib; do mount -t tmpfs tmpfs "$memory"; done
mkdir -p /var/lib/opensmtpd/empty /var/lib/postfix /var/spool/exim4 /var/spool/postfix
[ -z "$owner" ] || chown "$owner" /var/lib/postfix /var/spool/exim4
"$@"
exit  # behind a command, so that the shell stays: a server may change its user, and would outlive us (prctl(2))
"""

_POSTFIX_MAIN = """\
compatibility_level = 3.6
maillog_file = /dev/stdout
myhostname = peer.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_host_lookup = native
smtpd_peername_lookup = no
smtputf8_enable = yes
relay_domains = peer.test
relay_recipient_maps = regexp:{{{{ /^n[0-9]/ ok }}}}
relayhost = [{host}]:{sink}
mynetworks =
local_header_rewrite_clients =
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_limit = {recipients}
smtpd_tls_security_level = may
smtpd_tls_chain_files = /etc/server.pem
smtpd_tls_received_header = yes
message_size_limit = 52428800
alias_maps =
alias_database =
"""

POSTFIX_MASTER = """\
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
proxymap unix - - n - - proxymap
relay unix - - n - - smtp
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
"""
"""Debian's, less what needs a chroot or is not used."""

_EXIM = """\
primary_hostname = peer.test
log_file_path = /var/spool/exim4/%slog
log_selector = +smtp_connection
pid_file_path = /run/exim.pid
local_interfaces = {host}
daemon_smtp_ports = {port}
tls_advertise_hosts = *
tls_certificate = /etc/server.pem
smtputf8_advertise_hosts = *
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
message_size_limit = 50M
recipients_max = {recipients}
smtp_accept_max = 100
smtp_accept_queue_per_connection = 0
acl_smtp_rcpt = recipient
acl_smtp_data = accept

begin acl
recipient:
  deny domains = ! peer.test
  require message = 550 5.1.1 No such user
          verify = recipient
  # Greylisting at its simplest: the first attempt is put off, whoever makes it.
  defer message = 451 4.7.1 Not so fast
        local_parts = ^n[0-9]+-grey
        condition = ${{if !exists{{/var/spool/exim4/asked}}}}
        condition = ${{run{{/usr/bin/touch /var/spool/exim4/asked}}{{yes}}{{yes}}}}
  accept

begin routers
onward:
  driver = manualroute
  local_parts = ^n[0-9]
  route_list = * {host}
  transport = onward
  self = send

"""

EXIM_TRANSPORT = """\
begin transports
onward:
  driver = smtp
  port = {sink}
  allow_localhost
  hosts_avoid_tls = *
"""
"""To the sink, in clear."""

_OPENSMTPD = """\
pki peer.test cert "/etc/server.pem"
pki peer.test key "/etc/server.pem"
smtp max-message-size 50M
smtp limit max-mails {session}
smtp limit max-rcpt {recipients}
listen on {host} port {port} tls pki peer.test hostname peer.test
action "onward" relay host smtp://{host}:{sink}
match from any for domain "peer.test" rcpt-to regex "^n[0-9]" action "onward"
"""


class Kind(NamedTuple):
    """What is special about one server.

    files: its configuration, by path in /etc. users: what it must find in /etc/passwd, the first with the group that may
    read the key. owner: of what it writes. unpacked: the package it comes from, when that is not installed.
    unknown_user: the status of its refusal, 5.0.0 when it gives none. session: what it logs for each connection.
    """

    name: str
    command: tuple[str, ...]
    files: dict[str, str]
    users: tuple[str, ...] = ()
    owner: str = ""
    unpacked: str = ""
    smtputf8: bool = True
    unknown_user: str = "5.1.1"
    session: bytes = b""


POSTFIX = Kind(
    "postfix",
    ("/usr/sbin/postfix", "start-fg"),
    {"postfix/main.cf": _POSTFIX_MAIN, "postfix/master.cf": POSTFIX_MASTER},
    owner="postfix",
    session=b": connect from ",
)
EXIM = Kind(
    "exim",
    ("/usr/sbin/exim4", "-bdf", "-q1m", "-v"),
    {"exim4/exim4.conf": _EXIM + EXIM_TRANSPORT},
    users=("Debian-exim",),
    owner="Debian-exim",
    unpacked="exim4-daemon-light",
    session=b" (TCP/IP connection count = ",
)
OPENSMTPD = Kind(
    "opensmtpd",
    ("/usr/sbin/smtpd", "-d"),
    # Without a file of hosts and no other source it would wait for a name server, for every client.
    {"smtpd.conf": _OPENSMTPD, "resolv.conf": "lookup file\n"},
    users=("opensmtpd", "opensmtpq"),
    unpacked="opensmtpd",
    smtputf8=False,
    unknown_user="5.0.0",
    session=b" smtp connected ",
)


class MailServer(NamedTuple):
    """A running server. port: where it listens. sink: where on loopback it passes mail on to. log: what it said.

    tls: whether a handshake succeeds. Debian 12's OpenSMTPD offers STARTTLS and fails (OpenSMTPD #1171: OpenSSL 3).
    """

    kind: Kind
    port: int
    sink: int
    log: Path
    tls: bool = False

    def sessions(self) -> int:
        """Connections so far, ours to look at it among them."""
        return self.log.read_bytes().count(self.kind.session)


@contextlib.contextmanager
def running(kind: Kind, directory: Path, sink: int = 0, spool: Path | None = None) -> Iterator[MailServer]:
    """Run one, its files under `directory`. AssertionError with its log when it does not listen in 20 s.

    sink: where mail goes on to, a free port by default. spool: where its queue lies, in memory by default.
    """
    port, free = free_ports(2)
    server = MailServer(kind, port, sink or free, directory / "log")
    etc = _etc(server, directory)
    unpacked = UNPACKED / kind.unpacked if kind.unpacked else None
    assert unpacked is None or unpacked.is_dir(), f"{unpacked} is missing: run tests/interop/install.sh"
    box = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _BOX, "box")
    with server.log.open("wb") as output:
        process = subprocess.Popen(
            (*box, str(etc), str(unpacked or ""), kind.owner, str(spool or ""), *kind.command),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            _await_listener(server, process)
            yield server._replace(tls=_secures(server.port))
        finally:
            process.kill()  # the shell goes with it, and with that, its namespace's first process, all the others
            process.wait(10)
            _await_end(server)


def _etc(server: MailServer, directory: Path) -> Path:
    """What lies on top of /etc: configuration, certificate, users."""
    etc = directory / "etc"
    facts = {"host": HOST, "port": server.port, "sink": server.sink, "recipients": RECIPIENTS, "session": SESSION}
    for name, text in server.kind.files.items():
        path = etc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**facts), encoding="utf-8")
    for name, line in (("passwd", "{0}:x:{1}:{1}::/var/lib/opensmtpd/empty:/bin/false\n"), ("group", "{0}:x:{1}:\n")):
        added = "".join(line.format(user, _GID + number) for number, user in enumerate(server.kind.users))
        (etc / name).write_text((Path("/etc") / name).read_text(encoding="utf-8") + added, encoding="utf-8")
    issued = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert(DOMAIN, key_type=trustme.KeyType.RSA)
    issued.private_key_and_cert_chain_pem.write_to_path(str(etc / "server.pem"))
    (etc / "server.pem").chmod(0o640)
    if server.kind.users:
        shutil.chown(etc / "server.pem", group=_GID)
    return etc


def _await_listener(server: MailServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not _listens(server.port):
        said = server.log.read_text("utf-8", "replace")
        assert process.poll() is None, f"{server.kind.name} ended:\n{said}"
        assert time.monotonic() < deadline, f"{server.kind.name} does not listen:\n{said}"
        time.sleep(0.05)


def _await_end(server: MailServer) -> None:
    deadline = time.monotonic() + 10
    while _listens(server.port):
        assert time.monotonic() < deadline, f"{server.kind.name} is still there"
        time.sleep(0.01)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _secures(port: int) -> bool:
    """Whether a TLS handshake succeeds behind STARTTLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.closing(smtplib.SMTP(HOST, port, timeout=10)) as client:
        try:
            client.starttls(context=context)
        except (ssl.SSLError, smtplib.SMTPNotSupportedError):
            return False
    return True
