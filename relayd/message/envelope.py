"""The envelope: who sent a message, to whom, and how it came. Written once at acceptance, never changed.

Addresses are the validated text of `smtp.address`, byte for byte what the client said: they go out as they came in.
"""

from typing import Annotated

import msgspec

from relayd.smtp.address import Address

Priority = Annotated[int, msgspec.Meta(ge=-9, le=9)]
"""A message's transfer priority (RFC 6710 §5): 9 is the most urgent, 0 is usual."""


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One accepted message without its body.

    id: queue id. sender: reverse path, "" for the null sender. recipients: forward paths, distinct, in order.
    account: whose share of a destination it uses: "user:NAME", "net:NETWORK", or "" for relayd's own notifications.
    accepted_at: wall seconds. size: octets of the body. smtputf8: the client said SMTPUTF8 (RFC 6531).
    eightbit: the client said BODY=8BITMIME (RFC 6152). client: address of the peer, for the log and `queue show`.
    priority: what the client asked for; in a record older than the field it is 0.
    """

    id: str
    sender: Address
    recipients: tuple[Address, ...]
    account: str
    accepted_at: float
    size: int
    smtputf8: bool = False
    eightbit: bool = False
    client: str = ""
    priority: Priority = 0
