"""From MX records to hosts in order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.message.outcome import Outcome, Scope, Verdict
from relayd.resolver import mx

OWN = "relay.example.net"


def _failed(result: mx.Groups | Outcome) -> str:
    assert isinstance(result, Outcome)
    assert (result.verdict, result.scope, result.host) == (Verdict.FAILED, Scope.SITE, "")
    return f"{result.reply.code} {result.reply.enhanced}"


@pytest.mark.parametrize(
    ("records", "groups"),
    [
        ([(10, "a.example")], (("a.example",),)),
        ([(20, "b.example"), (10, "a.example")], (("a.example",), ("b.example",))),
        ([(10, "c.example"), (5, "b.example"), (10, "a.example")], (("b.example",), ("a.example", "c.example"))),
        ([(10, "A.Example."), (20, "a.example")], (("a.example",),)),
        (
            [(0, "under_score.example"), (0, "xn--bcher-kva.example")],
            (("under_score.example", "xn--bcher-kva.example"),),
        ),
        ([(65535, "single")], (("single",),)),
    ],
)
def test_preferences_make_groups_best_first_and_sorted(records: list[tuple[int, str]], groups: mx.Groups) -> None:
    assert mx.order(records, OWN) == groups


@pytest.mark.parametrize("records", [[(0, "")], [(0, ".")], [(10, ".")], [(0, "."), (5, "")]])
def test_null_mx_refuses_all_mail(records: list[tuple[int, str]]) -> None:
    assert _failed(mx.order(records, OWN)) == "550 5.1.10"


def test_null_mx_beside_others_is_ignored() -> None:
    assert mx.order([(0, "."), (10, "a.example")], OWN) == (("a.example",),)
    assert _failed(mx.order([(0, "."), (10, "192.0.2.1")], OWN)) == "550 5.4.4"


@pytest.mark.parametrize("own", ["relay.example.net", "Relay.Example.Net", "relay.example.net."])
def test_own_host_cuts_its_preference_and_all_worse(own: str) -> None:
    records = [(10, "a.example"), (20, "b.example"), (20, own), (30, "c.example")]
    assert mx.order(records, OWN) == (("a.example",),)


def test_own_host_as_the_best_loops_back() -> None:
    assert _failed(mx.order([(10, OWN), (10, "a.example"), (20, "b.example")], OWN)) == "550 5.4.6"


def test_own_host_counts_at_its_better_preference() -> None:
    assert mx.order([(5, "a.example"), (10, OWN), (15, "b.example"), (20, OWN)], OWN) == (("a.example",),)


@pytest.mark.parametrize(
    "exchange",
    [
        "192.0.2.1",
        "192.0.2.1.",
        "127.1",
        "2001:db8::1",
        "[192.0.2.1]",
        "a b.example",
        "a\\000b.example",
        "a\\010b.example",
        "a\x00b.example",
        "a\nb.example",
        "a.example\n",
        "a..example",
        ".example",
        "-" * 64 + ".example",
        ".".join(["a" * 63] * 4) + ".example",
        "bücher.example",
        "a/b.example",
    ],
)
def test_what_is_no_host_name_is_left_out(exchange: str) -> None:
    assert mx.order([(5, exchange), (10, "a.example")], OWN) == (("a.example",),)
    assert _failed(mx.order([(5, exchange)], OWN)) == "550 5.4.4"


def test_an_invalid_name_does_not_save_from_the_loop() -> None:
    assert _failed(mx.order([(5, "192.0.2.1"), (10, OWN)], OWN)) == "550 5.4.6"


def test_of_thousands_the_best_are_kept_whatever_their_order() -> None:
    records = [(number % 100, f"mx{number}.example") for number in range(5000)]
    groups = mx.order(records, OWN)
    assert not isinstance(groups, Outcome)
    assert sum(map(len, groups)) == mx.MAX_HOSTS
    assert set(groups[0]) <= {f"mx{number}.example" for number in range(0, 5000, 100)}
    random.Random(1).shuffle(records)
    assert mx.order(records, OWN) == groups


def test_own_host_is_seen_beyond_the_limit() -> None:
    records = [(1, f"mx{number:03}.example") for number in range(100)] + [(1, "zz." + OWN)]
    assert _failed(mx.order(records, "zz." + OWN)) == "550 5.4.6"


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=12) | st.sampled_from(["a.b", "A.b.", OWN, ".", "1.2"]))))
def test_any_records_give_valid_distinct_hosts_or_a_refusal(records: list[tuple[int, str]]) -> None:
    groups = mx.order(records, OWN)
    if isinstance(groups, Outcome):
        assert groups.verdict is Verdict.FAILED
        return
    names = [name for group in groups for name in group]
    assert names
    assert len(set(names)) == len(names)
    assert OWN not in names
    assert all(mx.is_host_name(name) and list(group) == sorted(group) for group in groups for name in group)
