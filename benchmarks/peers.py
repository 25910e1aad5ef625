"""What is measured: no relay at all, relayd and the servers beside it, each started afresh in a directory of its own.

Each peer is a context: inside it, mail for anybody sent to the port it yields goes on to the sink. The other servers'
configurations are in `postfix.py` and `servers.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from postfix import postfix
from processes import HOST, ROOT, free_port, running
from servers import exim, haraka, opensmtpd
from wanted import USER, Wanted, certify, password_hash

Start = Callable[[Wanted], contextlib.AbstractContextManager[int]]
"""Runs a relay; yields the port to send mail to."""


class Peer(NamedTuple):
    """What can be measured. root: must be started as root. domains, tls: whether it is set up here for such loads."""

    start: Start
    root: bool = True
    domains: bool = False
    tls: bool = False


RELAYD = """\
{workers}hostname = "relay.bench.test"
[[listeners]]
bind = "{host}:{port}"
kind = "{kind}"
[relay]
trusted_networks = ["127.0.0.0/8"]
[admin]
bind = "{host}:{admin}"
[log]
file = "events.log"
"""

_ROUTE = "[[routes]]\ndomains = [{domain}]\nnext_hops = [{hop}]\n"
_SECURED = '[tls]\ncertificate = "certificate.pem"\nprivate_key = "key.pem"\n[auth]\nusers_file = "users"\n'


@contextlib.contextmanager
def none(wanted: Wanted) -> Iterator[int]:
    """Send into the sink: what the load tools themselves cost."""
    yield wanted.sink


@contextlib.contextmanager
def relayd(wanted: Wanted, workers: int = 0) -> Iterator[int]:
    """Run relayd of this repository, with every guarantee on: fsync before 250, metrics, events to a file.

    workers: 0 for as many as there are CPUs.
    """
    port = free_port()
    command, environment = relayd_command(wanted, port, free_port(), workers)
    with running(command, wanted.scratch / "relayd.out", port, environment):
        yield port


def relayd_command(wanted: Wanted, port: int, admin: int, workers: int = 0) -> tuple[list[str], dict[str, str]]:
    """Write its files; the command that runs it, and its environment: this repository's code, none of our settings."""
    scratch = wanted.scratch
    said = f"workers = {workers}\n" if workers else ""
    kind = "submission" if wanted.tls else "relay"
    text = RELAYD.format(workers=said, host=HOST, port=port, admin=admin, kind=kind)
    for domain, hop in wanted.routes().items():
        text += _ROUTE.format(domain=json.dumps(domain), hop=json.dumps(hop))
    if wanted.tls:
        certify(scratch)
        text += _SECURED
        (scratch / "users").write_text(f"{USER}:{password_hash()}\n", encoding="utf-8")
        (scratch / "users").chmod(0o600)
    (scratch / "relayd.toml").write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}
    environment["PYTHONPATH"] = str(ROOT)
    return [wanted.python, "-m", "relayd", "serve", "--config", str(scratch / "relayd.toml")], environment


PEERS = {
    "none": Peer(none, root=False, domains=True),
    "postfix": Peer(postfix, domains=True, tls=True),
    "relayd": Peer(relayd, root=False, domains=True, tls=True),
    "relayd-1": Peer(partial(relayd, workers=1), root=False, domains=True, tls=True),
    "exim": Peer(exim),
    "opensmtpd": Peer(opensmtpd),
    "haraka": Peer(haraka, root=False),
}
