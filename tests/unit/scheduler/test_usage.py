"""What accounts have used within the last hour."""

from hypothesis import given
from hypothesis import strategies as st

from relayd.scheduler.usage import SLOT, Usage, Used, slot

HOUR = 3600  # in whole seconds, for exact sums


def spend(usage: Usage, account: str, now: float, recipients: int = 1) -> None:
    usage.add([Used(account, slot(now), recipients)])


@given(st.lists(st.tuples(st.integers(0, 4 * HOUR), st.integers(1, 100)), max_size=50), st.integers(0, HOUR))
def test_an_hour_counts_and_nothing_older_by_more_than_a_slot(spent, later):
    """Asked for at any time, and in between, all that must count does, and all that must not does not."""
    usage = Usage()
    spent = sorted(spent)
    for at, recipients in spent:
        spend(usage, "user:a", at, recipients)
        usage.of("user:a", at)
    now = (spent[-1][0] if spent else 0) + later
    counted = usage.of("user:a", now)
    assert counted >= sum(recipients for at, recipients in spent if at > now - HOUR)
    assert counted <= sum(recipients for at, recipients in spent if at >= now - HOUR - SLOT)


def test_accounts_count_apart():
    usage = Usage()
    spend(usage, "user:a", 10.0, 5)
    spend(usage, "user:b", 10.0)
    assert (usage.of("user:a", 10.0), usage.of("user:b", 10.0), usage.of("user:c", 10.0)) == (5, 1, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * HOUR), st.integers(1, 9)), max_size=30))
def test_who_is_told_all_of_it_counts_the_same(spent):
    first, second = Usage(), Usage()
    for account, at, recipients in spent:
        spend(first, account, at, recipients)
    now = 3 * HOUR
    second.add(first.all(now))
    assert [second.of(account, now) for account in "abc"] == [first.of(account, now) for account in "abc"]
    assert second.all(now) == first.all(now)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_who_only_hears_remembers_no_more_than_counts(slots):
    """As the supervisor does, for months; in any order."""
    heard = Usage()
    for number in slots:
        heard.add([Used("user:a", number, 1)])
    assert len(heard._accounts["user:a"]) <= 13
    newest = max(slots)
    assert heard.of("user:a", newest * SLOT) == sum(newest - 12 <= number for number in slots)


def test_what_does_not_count_any_more_is_forgotten():
    usage = Usage()
    for number in range(1000):
        spend(usage, f"user:{number}", 0.0)
    assert len(usage) == 1000
    assert usage.all(2 * HOUR) == []
    assert len(usage) == 0
