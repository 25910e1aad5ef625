"""Entries and sites for the scheduler's tests."""

from relayd.message.envelope import Envelope
from relayd.message.site import Host, Site, Terms, Way
from relayd.scheduler.entry import Entry
from relayd.smtp.address import Address


def entry(
    message: str = "m1",
    domain: str = "a.example",
    account: str = "user:ann",
    due: float = 0.0,
    priority: int = 0,
    accepted_at: float = 0.0,
) -> Entry:
    """An entry of one recipient."""
    envelope = Envelope(message, Address(""), (Address(f"u@{domain}"),), account, accepted_at, 1, priority=priority)
    return Entry(envelope, Way(domain), (0,), due=due)


def site(name: str, connections: int = 20, rate: float = 0.0) -> Site:
    """A site of one host."""
    return Site(((Host(name, 25),),), Terms(connections=connections, messages_per_second=rate))
