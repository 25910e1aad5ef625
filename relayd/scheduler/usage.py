"""What accounts have used of their quotas: recipients within an hour, counted in slots of five minutes.

Pure arithmetic, with monotonic seconds; knows no quotas and no sessions. Each worker has one, and the supervisor one
that outlives them; what they tell each other is `Used`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

HOUR, SLOT = 3600.0, 300.0
"""Seconds."""

_SLOTS = int(HOUR / SLOT)
"""Of an hour."""

AT_ONCE = 10_000
"""Of `Used`, told together at most, as what carries them bounds the size of a frame."""


class Used(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Recipients of an account in one slot, which begins `slot` * SLOT (monotonic, the same in all processes)."""

    account: str
    slot: int
    recipients: int


class Usage:
    """Recipients by account and slot.

    Invariants: whatever was counted in the last hour counts, and nothing does that is older by more than a slot; of an
    account no more than 13 slots are remembered, until `of` or `all` finds that none counts. of is O(13), add O(used),
    all O(accounts).
    """

    def __init__(self) -> None:
        self._accounts: dict[str, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, account: str, now: float) -> int:
        """Recipients of an account within the last hour, and within the slot that began before that."""
        slots = self._accounts.get(account)
        if slots is None:
            return 0
        first = slot(now) - _SLOTS
        if min(slots) < first:
            slots = {number: recipients for number, recipients in slots.items() if number >= first}
            if not slots:
                del self._accounts[account]
                return 0
            self._accounts[account] = slots
        return sum(slots.values())

    def add(self, used: Iterable[Used]) -> None:
        """So many more."""
        for one in used:
            slots = self._accounts.setdefault(one.account, {})
            slots[one.slot] = slots.get(one.slot, 0) + one.recipients
            if len(slots) > _SLOTS + 1:
                del slots[min(slots)]  # over an hour older than the newest one

    def all(self, now: float) -> list[Used]:
        """What counts now, of all accounts; whatever does not is forgotten."""
        for account in [*self._accounts]:
            self.of(account, now)
        return [Used(name, number, count) for name, slots in self._accounts.items() for number, count in slots.items()]


def slot(now: float) -> int:
    """The slot that a time is in."""
    return int(now // SLOT)
