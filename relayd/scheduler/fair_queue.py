"""A queue that is fair to accounts: each in turn gives its oldest entry, however many it has waiting.

Owns the order among entries of one site, or of one domain that has no site yet. Knows nothing of slots, time or states;
the scheduler calls it.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from relayd.scheduler.entry import Entry


class FairQueue:
    """Round robin over accounts, first in first out within one.

    Invariants: an account is kept exactly while it has an entry; between two entries of one account every other account
    that was waiting gives one. push and pop are O(1), absorb O(accounts) plus a copy in C of accounts in both.
    """

    __slots__ = ("_accounts",)

    def __init__(self) -> None:
        # The account in front is next. Not a dict: finding its first key means scanning the holes that pops left.
        self._accounts: OrderedDict[str, deque[Entry]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._accounts)

    def push(self, entry: Entry) -> None:
        """Add at the end of its account's entries; a new account joins at the end of the round."""
        entries = self._accounts.get(entry.message.account)
        if entries is None:
            self._accounts[entry.message.account] = deque((entry,))
        else:
            entries.append(entry)

    def pop(self) -> Entry:
        """Take the next entry; its account goes to the end of the round. KeyError when empty."""
        account, entries = self._accounts.popitem(last=False)
        entry = entries.popleft()
        if entries:
            self._accounts[account] = entries
        return entry

    def absorb(self, other: FairQueue) -> None:
        """Take all entries of `other`, which is empty afterwards."""
        for account, entries in other._accounts.items():
            mine = self._accounts.setdefault(account, entries)
            if mine is not entries:
                mine.extend(entries)
        other._accounts.clear()
