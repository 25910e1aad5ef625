"""What every relay that is measured is asked for: where mail goes, and who may send it.

Owns the certificate, the user and the next hops' addresses, which are the same for all of them.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import NamedTuple

import trustme
from processes import HOST

from relayd.auth.users import HASHER

NAME = "relay.bench.test"
USER = "bench"
PASSWORD = secrets.token_urlsafe(12)
"""Of a relay that lives for one run."""


class Wanted(NamedTuple):
    """What a relay is to do.

    scratch: an empty directory for all it writes. sink: the port of its next hop. domains: so many, each with a next
    hop of its own, see `next_hop`; with 0 all mail goes to the one at HOST. tls: mail is taken with STARTTLS and AUTH
    only. python: the interpreter that runs relayd.
    """

    scratch: Path
    sink: int
    domains: int = 0
    tls: bool = False
    python: str = sys.executable

    def routes(self) -> dict[str, str]:
        """Where each domain's mail goes, as address:port; "*" for any."""
        if not self.domains:
            return {"*": f"{HOST}:{self.sink}"}
        return {f"d{number}.bench.test": f"{next_hop(number)}:{self.sink}" for number in range(self.domains)}


def next_hop(number: int) -> str:
    """The address of a domain's next hop: loopback has more than enough, and the sink listens on all of them."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def certify(scratch: Path) -> None:
    """ca.pem, certificate.pem, key.pem: a certificate for NAME and the authority that signed it, made for this run."""
    authority = trustme.CA()
    issued = authority.issue_cert(NAME)
    authority.cert_pem.write_to_path(str(scratch / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(scratch / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(scratch / "key.pem"))
    (scratch / "key.pem").chmod(0o600)


def password_hash() -> str:
    """PASSWORD as `relayd user add` keeps it."""
    return HASHER.hash(PASSWORD)
