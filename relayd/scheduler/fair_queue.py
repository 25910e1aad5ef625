"""A queue that is fair to accounts: each in turn gives its oldest entry, however many it has waiting.

Owns the order among entries of one site, or of one domain that has no site yet. Knows nothing of slots, time or states;
the scheduler calls it.
"""

from __future__ import annotations

from collections import OrderedDict

from relayd.scheduler.entry import Entry


class FairQueue:
    """Round robin over accounts, first in first out within one.

    Invariants: an account is kept exactly while it has an entry; between two entries of one account every other account
    that was waiting gives one. push, pop, restore and remove are O(1), absorb O(entries of accounts in both).
    """

    __slots__ = ("_accounts",)

    def __init__(self) -> None:
        # The account in front is next, and so is its entry in front. Not dicts: finding the first key of one means
        # scanning the holes that pops left.
        self._accounts: OrderedDict[str, OrderedDict[Entry, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._accounts)

    def push(self, entry: Entry) -> None:
        """Add at the end of its account's entries; a new account joins at the end of the round."""
        entries = self._accounts.get(entry.message.account)
        if entries is None:
            entries = self._accounts[entry.message.account] = OrderedDict()
        entries[entry] = None

    def restore(self, entry: Entry) -> None:
        """Put one that was popped back in front of its account's, and its account in front of the round."""
        account = entry.message.account
        entries = self._accounts.get(account)
        if entries is None:
            entries = self._accounts[account] = OrderedDict()
        entries[entry] = None
        entries.move_to_end(entry, last=False)
        self._accounts.move_to_end(account, last=False)

    def pop(self) -> Entry:
        """Take the next entry; its account goes to the end of the round. KeyError when empty."""
        account, entries = self._accounts.popitem(last=False)
        entry, _ = entries.popitem(last=False)
        if entries:
            self._accounts[account] = entries
        return entry

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._accounts.get(entry.message.account, ())

    def remove(self, entry: Entry) -> None:
        """Take an entry out of the middle. KeyError when it is not here."""
        entries = self._accounts[entry.message.account]
        del entries[entry]
        if not entries:
            del self._accounts[entry.message.account]

    def absorb(self, other: FairQueue) -> None:
        """Take all entries of `other`, which is empty afterwards."""
        for account, entries in other._accounts.items():
            mine = self._accounts.setdefault(account, entries)
            if mine is not entries:
                mine.update(entries)
        other._accounts.clear()
