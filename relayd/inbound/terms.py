"""The terms on which a listener takes mail: its settings, its collaborators, its deadlines, said once for its sessions.

Made by `listener`, read by `session` and the parts of a session. Holds no state of its own.
"""

from __future__ import annotations

import msgspec

from relayd.auth.authenticator import Authenticator
from relayd.config.schema import Limits
from relayd.inbound.policy import Policy
from relayd.inbound.quotas import Quotas
from relayd.spool.queue import Queue
from relayd.tls import Context


class Timing(msgspec.Struct, frozen=True):
    """Every wait of inbound, in seconds; tests shorten them.

    idle: for a command (RFC 5321 §4.5.3.2.7 wants five minutes) and between two chunks of a message. data_grace: before
    the minimum data rate counts. handshake: of TLS. linger: for a client to take note of our last words, and to end the
    handshake before them. tick: how exact all of these are. accept_pause: after descriptors ran out. company: for other
    processes that start and accept from the same sockets.
    """

    idle: float = 300.0
    data_grace: float = 30.0
    handshake: float = 30.0
    linger: float = 2.0
    tick: float = 1.0
    accept_pause: float = 1.0
    company: float = 1.0


class Terms(msgspec.Struct, frozen=True, eq=False):
    """What all sessions of one listener share."""

    submission: bool
    """Whether clients authenticate here, and have their messages completed."""
    implicit_tls: bool
    normalize_lf: bool
    hostname: str
    limits: Limits
    timing: Timing
    tls_context: Context | None
    policy: Policy
    quotas: Quotas
    queue: Queue
    authenticator: Authenticator

    def hello(self, *, secure: bool) -> str:
        """The text of the reply to EHLO (RFC 5321 §4.1.1.1), a line for each extension."""
        lines = [
            self.hostname,
            "PIPELINING",  # RFC 2920
            f"SIZE {self.limits.message_size}",  # RFC 1870
            "8BITMIME",  # RFC 6152
            "SMTPUTF8",  # RFC 6531
            "ENHANCEDSTATUSCODES",  # RFC 2034
            "MT-PRIORITY",  # RFC 6710 §9.2: without a name, the policy is MIXER: low, normal and urgent
        ]
        if self.tls_context and not secure:
            lines.append("STARTTLS")  # RFC 3207 §4.2: not under TLS
        if self.submission and secure:
            lines.append("AUTH PLAIN LOGIN")  # RFC 4954
        return "\n".join(lines)
