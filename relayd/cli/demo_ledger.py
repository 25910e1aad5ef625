"""The demo's judge: is every recipient accounted for, exactly once, with the bytes that were sent?

Pure: compares what was submitted with what destinations and senders received. Called by `demo`.
"""

from __future__ import annotations

import email
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from relayd.cli.demo_mail import Mail

_TRACE = re.compile(rb"\AReceived:.*\r\n(?:[ \t].*\r\n)*")


class Tally(msgspec.Struct):
    """What became of one destination's recipients."""

    recipients: int = 0
    delivered: int = 0
    bounced: int = 0
    missing: int = 0
    altered: int = 0
    repeated: int = 0

    @property
    def sound(self) -> bool:
        """Whether each recipient was delivered once and unaltered, or bounced, and not both."""
        return self.delivered + self.bounced == self.recipients and not (self.missing or self.altered or self.repeated)


class Ledger:
    """What was accepted, recipient by recipient. O(recipients) memory; each recipient stands in one message only."""

    def __init__(self) -> None:
        self._sent: dict[str, Mail] = {}

    def accepted(self, mail: Mail) -> None:
        """The relay answered 250."""
        for recipient in mail.recipients:
            self._sent[recipient] = mail

    def judge(
        self, deliveries: Iterable[tuple[str, bytes]], notifications: Iterable[tuple[str, bytes]]
    ) -> dict[str, Tally]:
        """A tally for each domain, from what destinations received and what was returned to senders."""
        seen: Counter[str] = Counter()
        altered: set[str] = set()
        for recipient, content in deliveries:
            seen[recipient] += 1
            if recipient not in self._sent or behind_trace(content) != self._sent[recipient].content:
                altered.add(recipient)
        bounced = Counter(recipient for recipient in self._named(notifications))
        tallies: dict[str, Tally] = {}
        for recipient in self._sent.keys() | seen.keys():
            tally = tallies.setdefault(recipient.rpartition("@")[2], Tally())
            tally.recipients += recipient in self._sent
            tally.altered += recipient in altered
            tally.delivered += seen[recipient] > 0
            tally.bounced += bounced[recipient] > 0
            tally.missing += not seen[recipient] and not bounced[recipient]
            tally.repeated += seen[recipient] + bounced[recipient] > 1
        return tallies

    def _named(self, notifications: Iterable[tuple[str, bytes]]) -> Iterator[str]:
        """The failed recipients that notifications name, where they reached the sender of that very message."""
        for sender, content in notifications:
            for recipient in failed_recipients(content):
                if recipient in self._sent and self._sent[recipient].sender == sender:
                    yield recipient


def behind_trace(content: bytes) -> bytes:
    """The message without the one trace header field that the relay put before it."""
    return _TRACE.sub(b"", content, count=1)


def failed_recipients(notification: bytes) -> list[str]:
    """The recipients a delivery status notification calls failed (RFC 3464 §2.3)."""
    return [
        str(fields["Final-Recipient"]).partition(";")[2].strip()
        for part in email.message_from_bytes(notification).walk()
        if part.get_content_type() == "message/delivery-status"
        for fields in part.get_payload()
        if not isinstance(fields, str) and fields.get("Action", "").lower() == "failed"
    ]
