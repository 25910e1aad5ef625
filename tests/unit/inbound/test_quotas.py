"""Who may still send, by the quotas of a configuration."""

import pytest

from relayd import clock
from relayd.config.schema import Quota
from relayd.inbound import quotas
from relayd.inbound.quotas import Quotas
from relayd.scheduler.usage import Used, slot

QUOTAS = [
    Quota(recipients_per_hour=3),
    Quota(recipients_per_hour=5, accounts=("user:news", "net:10.0.0.0/8")),
]


@pytest.fixture
def now(monkeypatch):
    now = [100_000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    return now


def taken(kept: Quotas, account: str, most: int = 20) -> int:
    """How many the account gets, trying so often."""
    return sum(kept.take(account) for _ in range(most))


@pytest.mark.parametrize(
    ("account", "gets"),
    [("user:ada", 3), ("user:news", 5), ("net:10.0.0.0/8", 5), ("net:10.1.0.0/16", 20)],
)
def test_an_account_has_its_own_quota_or_the_usual_one(now, account, gets):
    kept = Quotas(QUOTAS)
    assert taken(kept, account) == gets
    assert kept.take("user:grace")


def test_without_quotas_everybody_may(now):
    assert taken(Quotas([]), "user:ada") == 20
    named = Quotas(QUOTAS[1:])
    assert (taken(named, "user:ada"), taken(named, "user:news")) == (20, 5)


def test_after_an_hour_it_is_free_again(now):
    kept = Quotas(QUOTAS)
    assert taken(kept, "user:ada") == 3
    now[0] += 3599.0
    assert not kept.take("user:ada")
    now[0] += 301.0
    assert taken(kept, "user:ada") == 3


def test_what_others_took_counts_and_each_is_told_once(now):
    """Two processes of one relay."""
    first, second = Quotas(QUOTAS), Quotas(QUOTAS)
    first.told, second.told = second.heard, first.heard
    assert taken(first, "user:ada", 2) == 2
    first.tell()
    first.tell()
    assert taken(second, "user:ada") == 1
    second.tell()
    assert not first.take("user:ada")


def test_nobody_is_told_of_nothing(now):
    kept = Quotas(QUOTAS)
    told: list[list[Used]] = []
    kept.told = told.append
    kept.tell()
    assert taken(kept, "net:10.1.0.0/16") == 20  # no quota, nothing to tell
    kept.heard([Used("user:ada", slot(now[0]), 2)])
    kept.tell()
    assert told == []
    assert taken(kept, "user:ada") == 1
    kept.tell()
    assert told == [[Used("user:ada", slot(now[0]), 1)]]


def test_the_operator_hears_of_it_once_an_hour(now, monkeypatch):
    alerts = []
    monkeypatch.setattr(quotas.log, "alert", lambda what, **facts: alerts.append((what, facts)))
    kept = Quotas(QUOTAS)
    assert taken(kept, "user:ada") == 3
    assert alerts == [("quota used up", {"account": "user:ada", "recipients_per_hour": 3})]
    now[0] += 3901.0
    assert taken(kept, "user:ada") == 3
    assert len(alerts) == 2
