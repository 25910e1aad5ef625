"""How many recipients an account may send to within an hour, and whether it has.

Owns what was used here and has not been told to the other processes yet. Knows neither sessions nor channels: `session`
asks for each recipient, `listener` has it told every second, and whoever leads the process passes on what others say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from relayd import clock, log
from relayd.config.schema import Quota
from relayd.scheduler.usage import HOUR, Usage, Used, slot


class Quotas:
    """The quotas of one configuration, and what was used of them. All is O(1) but `tell`, O(accounts that sent).

    Invariant: no account has more recipients within an hour than its quota, as far as is known here: of other processes
    that is what they had used a second ago.
    """

    def __init__(self, quotas: Sequence[Quota]) -> None:
        self.told: Callable[[list[Used]], None] = _tell_nobody
        """Told of what was used here. For processes that count as one."""
        self._named = {account: one.recipients_per_hour for one in quotas for account in one.accounts}
        self._usual = next((one.recipients_per_hour for one in quotas if not one.accounts), None)
        self._usage = Usage()
        self._untold = Usage()
        self._alerted: dict[str, float] = {}

    def take(self, account: str) -> bool:
        """Count one more recipient, if the account's quota allows."""
        most = self._most(account)
        if most is None:
            return True
        now = clock.monotonic()
        if self._usage.of(account, now) >= most:
            self._alert(account, most, now)
            return False
        used = [Used(account, slot(now), 1)]
        self._usage.add(used)
        self._untold.add(used)
        return True

    def heard(self, used: Iterable[Used]) -> None:
        """Count what other processes took."""
        self._usage.add(used)

    def tell(self) -> None:
        """Tell the others what was taken here since they were told last."""
        if self._untold:
            untold, self._untold = self._untold, Usage()
            self.told(untold.all(clock.monotonic()))

    def _most(self, account: str) -> int | None:
        """Networks have a quota only where they are named: their hosts are many."""
        return self._named.get(account, self._usual if account.startswith("user:") else None)

    def _alert(self, account: str, most: int, now: float) -> None:
        """Once an hour: its password may be in other hands."""
        if now - self._alerted.get(account, -HOUR) >= HOUR:
            self._alerted[account] = now
            log.alert("quota used up", account=account, recipients_per_hour=most)


def _tell_nobody(_used: list[Used]) -> None:
    pass
