import json

import pytest

from relayd.auth import limiter
from relayd.auth.limiter import CAPACITY, LIMIT, WINDOW, Limiter, account_key, client_key


def test_five_a_minute_and_then_again():
    failures = Limiter()
    for n in range(LIMIT):
        assert not failures.limited("k", 100.0 + n)
        failures.record(["k"], 100.0 + n)
    assert failures.limited("k", 105.0)
    assert failures.limited("k", 100.0 + WINDOW - 0.1)
    assert not failures.limited("k", 100.0 + WINDOW)
    assert not failures.limited("other", 105.0)


def test_a_clock_set_back_locks_nobody_out():
    failures = Limiter()
    for _ in range(LIMIT):
        failures.record(["k"], 1_000_000.0)
    assert not failures.limited("k", 500_000.0)


def test_bounded():
    failures = Limiter()
    for n in range(CAPACITY + 10):
        failures.record([str(n)], 100.0)
    assert len(json.loads(failures.snapshot(100.0))) == CAPACITY
    assert json.loads(failures.snapshot(1000.0)) == {}


def test_keys():
    assert client_key("192.0.2.1") == "client:192.0.2.1"
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1") != client_key("2001:db8:0:1::1")
    assert len(account_key("x" * 10_000)) < 300


def test_saved_and_loaded(tmp_path):
    failures = Limiter()
    for _ in range(LIMIT):
        failures.record(["k"], 100.0)
    limiter.save(tmp_path / "failures", failures.snapshot(100.0))
    assert (tmp_path / "failures").stat().st_mode & 0o777 == 0o600
    assert limiter.load(tmp_path / "failures").limited("k", 101.0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"k": "x"}', b'{"k": [null]}', b"\xff", b'{"k": [1e999]}'])
def test_unreadable_counts_as_none(tmp_path, content):
    (tmp_path / "failures").write_bytes(content)
    assert not limiter.load(tmp_path / "failures").limited("k", 100.0)
    assert not limiter.load(tmp_path / "missing").limited("k", 100.0)
