import asyncio

import pytest

from relayd.auth import authenticator
from relayd.auth.authenticator import Authenticator, Verdict
from relayd.auth.users import HASHER
from tests.fakes.inbound import ALICE


@pytest.fixture
def hashes(monkeypatch):
    """How many hashes were computed."""
    computed = []
    genuine = authenticator._matches
    monkeypatch.setattr(authenticator, "_matches", lambda *args: computed.append(args[0]) or genuine(*args))
    return computed


@pytest.fixture
def proof(tmp_path):
    (tmp_path / "users").write_text(ALICE)
    made = Authenticator(tmp_path / "users", tmp_path / "failures")
    yield made
    made.close()


async def test_positive_answers_are_cached_for_the_client(proof, hashes):
    for _ in range(3):
        assert await proof.check("alice", b"wonderland", "192.0.2.1") is Verdict.ACCEPTED
    assert len(hashes) == 1
    assert await proof.check("alice", b"wonderland", "192.0.2.2") is Verdict.ACCEPTED
    assert len(hashes) == 2
    assert await proof.check("alice", b"guess", "192.0.2.1") is Verdict.REFUSED
    assert len(hashes) == 3


async def test_cache_ends_with_its_time_and_with_the_users_file(proof, hashes, monkeypatch, tmp_path):
    await proof.check("alice", b"wonderland", "192.0.2.1")
    now = authenticator.clock.monotonic()
    monkeypatch.setattr(authenticator.clock, "monotonic", lambda: now + authenticator.CACHE_SECONDS + 1)
    await proof.check("alice", b"wonderland", "192.0.2.1")
    assert len(hashes) == 2
    (tmp_path / "users").write_text(f"alice:{HASHER.hash('other')}\n")
    assert await proof.check("alice", b"wonderland", "192.0.2.1") is Verdict.REFUSED


async def test_cache_is_bounded(proof, monkeypatch):
    monkeypatch.setattr(authenticator, "CACHE_SIZE", 3)
    monkeypatch.setattr(authenticator, "_matches", lambda *_: True)
    for n in range(10):
        await proof.check("alice", b"wonderland", f"192.0.2.{n}")
    assert len(proof._cache) == 3


async def test_unknown_users_cost_a_hash_of_the_same_parameters(proof, hashes):
    assert await proof.check("nobody", b"guess", "192.0.2.1") is Verdict.REFUSED
    assert await proof.check("alice", b"guess", "192.0.2.2") is Verdict.REFUSED
    assert len({stored.split("$")[3] for stored in hashes}) == 1
    assert len(hashes) == 2


async def test_limits_cost_no_hash(proof, hashes):
    for n in range(5):
        await proof.check(f"user{n}", b"guess", "192.0.2.1")
    for n in range(5):
        await proof.check("bob", b"guess", f"198.51.100.{n}")
    del hashes[:]
    assert await proof.check("alice", b"wonderland", "192.0.2.1") is Verdict.LIMITED_CLIENT
    assert await proof.check("bob", b"guess", "203.0.113.1") is Verdict.LIMITED_ACCOUNT
    assert not hashes


async def test_the_cache_is_no_oracle_for_a_limited_account(proof):
    """Guesses at a limited account count against the client: five of them, and it hears nothing more."""
    for n in range(5):
        await proof.check("alice", b"guess", f"198.51.100.{n}")
    verdicts = [await proof.check("alice", b"guess", "192.0.2.1") for _ in range(7)]
    assert verdicts == [Verdict.LIMITED_ACCOUNT] * 5 + [Verdict.LIMITED_CLIENT] * 2


async def test_the_waiting_line_is_bounded(proof, monkeypatch):
    monkeypatch.setattr(authenticator, "WAITING", 3)
    verdicts = await asyncio.gather(*(proof.check("alice", b"wonderland", f"192.0.2.{n}") for n in range(6)))
    assert verdicts.count(Verdict.BUSY) == 3
    assert verdicts.count(Verdict.ACCEPTED) == 3
    assert await proof.check("alice", b"wonderland", "192.0.2.99") is Verdict.ACCEPTED


async def test_an_unwritable_failures_file_is_an_alert_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "users").write_text(ALICE)
    alerts = []
    monkeypatch.setattr(authenticator.log, "alert", lambda what, **facts: alerts.append(what))
    proof = Authenticator(tmp_path / "users", tmp_path / "missing" / "failures")
    for n in range(3):
        assert await proof.check("alice", b"guess", f"192.0.2.{n}") is Verdict.REFUSED
    assert len(alerts) == 1
    proof.close()


async def test_processes_that_tell_each_other_of_failures_count_as_one(tmp_path):
    (tmp_path / "users").write_text(ALICE)
    proofs = [Authenticator(tmp_path / "users", tmp_path / "failures") for _ in range(2)]
    for one, other in (proofs, reversed(proofs)):
        one.failed = other.heard
    for n in range(5):
        assert await proofs[n % 2].check("alice", b"guess", f"192.0.2.{n}") is Verdict.REFUSED
    for proof in proofs:
        assert await proof.check("alice", b"wonderland", "198.51.100.1") is Verdict.LIMITED_ACCOUNT
    for _ in range(3):
        await proofs[0].check("alice", b"guess", "198.51.100.1")
    assert [await proof.check("bob", b"guess", "198.51.100.1") for proof in proofs] == [Verdict.LIMITED_CLIENT] * 2
    later = Authenticator(tmp_path / "users", tmp_path / "failures")
    assert await later.check("alice", b"wonderland", "203.0.113.1") is Verdict.LIMITED_ACCOUNT
    for proof in (*proofs, later):
        proof.close()
