"""One sender's mail to one domain leaves from one address, and a changed pool moves no more than it must."""

import subprocess
import sys
from collections import Counter

from relayd.config.schema import SourceAddress
from relayd.message.site import Source
from relayd.outbound.sources import Pool, _fraction

PAIRS = [(f"user{number}@sender.example", f"domain{number % 97}.example") for number in range(20_000)]


def address(number: int, weight: int = 1, hostname: str | None = None) -> SourceAddress:
    return SourceAddress(ipv4=f"192.0.2.{number}", weight=weight, hostname=hostname)


def chosen(*addresses: SourceAddress) -> list[str]:
    pool = Pool(addresses)
    return [pool.choose(*pair).ipv4 for pair in PAIRS]


def test_what_is_chosen_has_all_that_was_configured():
    only = SourceAddress(ipv4="192.0.2.1", ipv6="2001:db8::1", hostname="out.example", weight=7)
    assert Pool([only]).choose("", "x.example") == Source("out.example", "192.0.2.1", "2001:db8::1")
    assert Pool([only, address(2, 10**6)]).choose("", "x.example") == Source("", "192.0.2.2")
    assert Pool([SourceAddress(ipv6="2001:db8::1")]).choose("", "x.example") == Source("", "", "2001:db8::1")


def test_it_is_the_same_after_a_restart():
    """Python's own hash differs from process to process."""
    code = (
        "from relayd.config.schema import SourceAddress; from relayd.outbound.sources import Pool\n"
        "pool = Pool([SourceAddress(ipv4=f'192.0.2.{n}') for n in (1, 2, 3)])\n"
        "print(*(pool.choose(f'user{n}@sender.example', f'domain{n % 97}.example').ipv4 for n in range(100)))"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert other.stdout.split() == chosen(address(1), address(2), address(3))[:100]


def test_it_is_the_same_in_the_next_version():
    """A change of the hash would move everybody's mail on an upgrade."""
    assert "".join(text[-1] for text in chosen(address(1), address(2), address(3))[:24]) == "332111212132223113123232"


def test_the_order_of_the_file_means_nothing():
    assert chosen(address(1), address(2), address(3)) == chosen(address(3), address(1), address(2))


def test_a_hostname_moves_nothing():
    assert chosen(address(1), address(2)) == chosen(address(1), address(2, hostname="out.example"))


def test_both_the_sender_and_the_domain_count():
    pool = Pool([address(number) for number in range(1, 9)])
    assert len({pool.choose("a@sender.example", f"{number}.example") for number in range(200)}) == 8
    assert len({pool.choose(f"{number}@sender.example", "a.example") for number in range(200)}) == 8


def test_shares_are_those_of_the_weights():
    counts = Counter(chosen(address(1, 1), address(2, 2), address(3, 5)))
    for number, share in ((1, 1 / 8), (2, 2 / 8), (3, 5 / 8)):
        expected = share * len(PAIRS)
        # Four standard deviations of a binomial distribution; the inputs are fixed.
        assert abs(counts[f"192.0.2.{number}"] - expected) < 4 * (expected * (1 - share)) ** 0.5


def test_a_new_address_takes_its_share_and_nothing_else_moves():
    before, after = chosen(address(1), address(2, 2)), chosen(address(1), address(2, 2), address(3))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"192.0.2.3"}
    assert 0.23 < len(moved) / len(PAIRS) < 0.27


def test_an_address_that_goes_leaves_the_others_mail_alone():
    before, after = chosen(address(1), address(2), address(3)), chosen(address(1), address(3))
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {"192.0.2.2"}
    assert Counter(new for old, new in zip(before, after, strict=True) if old != new).keys() == {
        "192.0.2.1",
        "192.0.2.3",
    }


def test_a_greater_weight_only_draws_mail():
    before, after = chosen(address(1), address(2)), chosen(address(1), address(2, 2))
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"192.0.2.2"}


def test_names_do_not_run_into_each_other():
    pool = Pool([address(number) for number in range(1, 200)])
    assert pool.choose("ab", "c.example") != pool.choose("a", "bc.example")


def test_no_hash_is_certain_or_impossible():
    assert 0 < _fraction(bytes(8)) < _fraction(b"\xff" * 8) < 1
