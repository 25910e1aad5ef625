"""What supervisor and workers tell and ask each other over a channel.

A new kind is a struct here, and in `Question` or `Note`. Questions have an answer, notes have none. Requests of the
control socket (`protocol`) are questions to workers too.
"""

from __future__ import annotations

import msgspec

from relayd.control.protocol import Request, Status
from relayd.control.snapshot import Family
from relayd.scheduler import lease_messages
from relayd.scheduler.usage import Used


class _Message(msgspec.Struct, frozen=True, tag_field="command"):
    pass


# --- supervisor to worker -------------------------------------------------------------------------------------------


class Setup(_Message, frozen=True, tag="setup"):
    """The first note to a worker: which one it is, the validated configuration, and what only root could read or bind.

    sockets: for each, the listener's place in the configuration and the inherited descriptor. headcount: the
    inherited descriptor of `inbound.headcount`. certificate and private_key: PEM, empty without [tls].
    """

    number: int
    workers: int
    file: str
    options: dict[str, object]
    certificate: bytes
    private_key: bytes
    sockets: list[tuple[int, int]]
    headcount: int


class Drain(_Message, frozen=True, tag="drain"):
    """A note: take no more mail, finish what is in flight, end. reason: for the log."""

    reason: str


class Cut(_Message, frozen=True, tag="cut"):
    """A note: end now; nothing accepted is lost by that."""


class Reload(_Message, frozen=True, tag="reload"):
    """A note: open the log file anew, renew what changed outside of the configuration."""


class LeasesGranted(_Message, frozen=True, tag="leases.granted"):
    """A note: what the machine's broker gives the worker of sites, and wants back."""

    replies: list[lease_messages.Reply]


class ReportQuery(_Message, frozen=True, tag="report.query"):
    """A question, answered by a Report."""


# --- worker to supervisor -------------------------------------------------------------------------------------------


class Report(_Message, frozen=True, tag="report"):
    """How a worker is; as a note: it takes mail from now on, or this was its last word."""

    status: Status
    families: list[Family]


class StartFailed(_Message, frozen=True, tag="start.failed"):
    """A note: the worker could not start. reason: one line; code: of sysexits."""

    reason: str
    code: int


class LeasesAsked(_Message, frozen=True, tag="leases.asked"):
    """A note: what the worker could use of sites, gives back of them, and how they took it."""

    requests: list[lease_messages.Request]


# --- both ways ------------------------------------------------------------------------------------------------------


class LoginFailed(_Message, frozen=True, tag="login.failed"):
    """A note: one more failed login counts for each of these keys of the limiter; at: wall seconds."""

    keys: list[str]
    at: float


class QuotasUsed(_Message, frozen=True, tag="quotas.used"):
    """A note: what other processes have counted of accounts' quotas, or the worker itself since it said so last."""

    used: list[Used]


Question = Request | ReportQuery
Note = Setup | Drain | Cut | Reload | Report | StartFailed | LoginFailed | QuotasUsed | LeasesAsked | LeasesGranted
