"""LIMITS (RFC 9422): what is well-formed holds, anything else says nothing."""

import time

import pytest

from relayd.smtp.limits import Limits, parse


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("MAILMAX=20 RCPTMAX=100 RCPTDOMAINMAX=1", Limits(20, 100)),
        ("mailmax=1", Limits(mails=1)),
        ("RCPTMAX=999999", Limits(recipients=999_999)),
        ("FUTURE=7 RCPTMAX=3 OTHER", Limits(recipients=3)),
        ("RCPTMAX=9 RCPTMAX=4 RCPTMAX=12", Limits(recipients=4)),
        ("  RCPTMAX=3  ", Limits(recipients=3)),
    ],
)
def test_limits_are_read(text, limits):
    assert parse(text) == limits


@pytest.mark.parametrize("value", ["", "0", "00", "07", "-1", "+1", "1.0", "1e3", "0x10", "1_0", "1000000", "٣", "²", "3;", "=3", "3\t"])
def test_what_is_malformed_says_nothing(value):
    assert parse(f"MAILMAX={value}") == Limits()
    assert parse(f"MAILMAX={value} RCPTMAX=5") == Limits(recipients=5)


def test_a_long_text_takes_no_time():
    begun = time.perf_counter()
    assert parse("MAILMAX=" * 4000 + " RCPTMAX=2" * 3000) == Limits(recipients=2)
    assert time.perf_counter() - begun < 1
