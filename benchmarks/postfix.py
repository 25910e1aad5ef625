"""Postfix, with Dovecot for AUTH: run from configurations of its own; nothing of the system's is read or changed.

Needs root, and Debian's packages postfix and, for AUTH, dovecot-core (`install.sh`).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from processes import HOST, await_listener, free_port, program, running_until
from wanted import PASSWORD, USER, Wanted, certify

from tests.interop.mail_servers import POSTFIX_MASTER

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

# Mail from one network, or with TLS and AUTH as at relayd's submission listener; never both.
_FROM_NETWORK = """\
smtpd_relay_restrictions = permit_mynetworks, reject
"""
_SUBMISSION = """\
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_tls_chain_files = {scratch}/key.pem, {scratch}/certificate.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {scratch}/dovecot/auth
"""

# The password is kept in clear: a hash would be computed at every AUTH, auth_cache_size or not, and would be most of
# what is measured. relayd keeps a hash and remembers, for a minute, that a password was right.
_DOVECOT = """\
base_dir = {scratch}/dovecot/run
state_dir = {scratch}/dovecot/state
log_path = {scratch}/dovecot/log
ssl = no
protocols =
auth_mechanisms = plain
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {scratch}/dovecot/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/nonexistent
}}
service auth {{
  unix_listener {scratch}/dovecot/auth {{
    mode = 0660
    user = postfix
    group = postfix
  }}
}}
service stats {{
  client_limit = 2000
}}
"""

@contextlib.contextmanager
def postfix(wanted: Wanted) -> Iterator[int]:
    """Run Postfix; where `tls` is wanted, with Dovecot beside it."""
    port, scratch = free_port(), wanted.scratch
    configuration = scratch / "etc"
    for directory in (configuration, scratch / "queue", scratch / "data"):
        directory.mkdir()
    shutil.chown(scratch / "data", "postfix")
    facts = {"scratch": scratch, "host": HOST, "port": port}
    main = _MAIN_CF + (_SUBMISSION if wanted.tls else _FROM_NETWORK)
    (configuration / "main.cf").write_text(main.format(**facts) + _routes(wanted, configuration), encoding="utf-8")
    (configuration / "master.cf").write_text(POSTFIX_MASTER.format(**facts), encoding="utf-8")
    control = [program("postfix"), "-c", str(configuration)]
    with _dovecot(wanted), (scratch / "postfix.out").open("ab") as output:
        subprocess.run([*control, "start"], stdout=output, stderr=output, check=True)
        try:
            await_listener(port)
            yield port
        finally:
            subprocess.run([*control, "stop"], stdout=output, stderr=output, check=True)


def _routes(wanted: Wanted, configuration: Path) -> str:
    """Its relayhost, or a transport for each domain."""
    routes = wanted.routes()
    if not wanted.domains:
        return f"relayhost = {_bracketed(routes['*'])}\n"
    table = configuration / "transport"
    lines = (f"{domain} smtp:{_bracketed(hop)}\n" for domain, hop in routes.items())
    table.write_text("".join(lines), encoding="utf-8")
    return f"transport_maps = texthash:{table}\n"


def _bracketed(hop: str) -> str:
    """An address:port as Postfix writes it: [address]:port."""
    address, _, port = hop.rpartition(":")
    return f"[{address}]:{port}"


@contextlib.contextmanager
def _dovecot(wanted: Wanted) -> Iterator[None]:
    """Dovecot's authentication, and no mailboxes, where it is wanted."""
    if not wanted.tls:
        yield
        return
    certify(wanted.scratch)
    directory = wanted.scratch / "dovecot"
    directory.mkdir()
    users = directory / "users"
    users.write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
    users.chmod(0o644)  # one user, of one run; Dovecot's own one reads it
    configuration = directory / "dovecot.conf"
    configuration.write_text(_DOVECOT.format(scratch=wanted.scratch), encoding="utf-8")
    command = [program("dovecot"), "-F", "-c", str(configuration)]
    with running_until((directory / "auth").exists, command, directory / "out"):
        yield
