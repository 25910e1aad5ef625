"""The contract of `store.Store`, kept by the journal and by the tests' fake alike."""

from __future__ import annotations

import asyncio

import pytest

from relayd import clock
from relayd.spool.records import Accepted, State
from relayd.spool.store import StoreError, StoreLockedError
from tests.contract.engines import SHARD, bodies
from tests.fakes.mail import accepted, body, name, result, settled


def message(number: int, **kwargs: int) -> Accepted:
    return accepted(number, shard=SHARD, **kwargs)


async def test_a_new_store_is_empty(engine):
    store = engine.make()
    recovered = await store.open()
    assert (recovered.messages, recovered.quarantined, recovered.torn) == ([], 0, 0)
    assert not store.messages
    assert store.load == 0
    await store.close()


async def test_what_was_committed_is_found_again_oldest_first_byte_for_byte(engine):
    store = await engine.opened()
    for number in (3, 1, 2):
        await store.commit([message(number, octets=5000 + number)])
    await store.close()
    store = engine.make()
    recovered = await store.open()
    assert [m.envelope.id for m in recovered.messages] == [name(n, SHARD) for n in (1, 2, 3)]
    assert list((await bodies(store)).values()) == [body(n, 5000 + n) for n in (1, 2, 3)]
    assert recovered.messages[0].envelope == message(1, octets=5001).envelope
    assert list(store.messages.values()) == recovered.messages
    await store.close()


async def test_messages_are_up_to_date_when_the_commit_ends(engine):
    store = await engine.opened()
    done = store.commit([message(1)])
    assert name(1, SHARD) not in store.messages
    assert store.load == 1
    await done
    assert store.load == store.behind == 0
    assert store.messages[name(1, SHARD)].body == body(1)
    await store.commit([settled(1, shard=SHARD)])
    assert not store.messages
    await store.close()


async def test_how_long_the_oldest_batch_waits(engine, monkeypatch):
    store = await engine.opened()
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    first = store.commit([message(1)])
    now += 7
    second = store.commit([message(2)])
    assert store.behind == 7
    await asyncio.gather(first, second)
    assert store.behind == 0
    await store.close()


async def test_results_survive(engine):
    store = await engine.opened()
    await store.commit([message(1, recipients=3)])
    deferred = result(1, State.DEFERRED, attempts=2)
    await store.commit([settled(1, result(0), deferred, shard=SHARD)])
    store = await engine.reopened(store)
    assert store.messages[name(1, SHARD)].results == [result(0), deferred, None]
    await store.close()


async def test_a_settled_message_is_gone(engine):
    store = await engine.opened()
    await store.commit([message(1), message(2)])
    await store.commit([settled(1, shard=SHARD)])
    store = await engine.reopened(store)
    assert list(store.messages) == [name(2, SHARD)]
    await store.close()


async def test_a_record_and_its_outcome_in_one_batch(engine):
    store = await engine.opened()
    await store.commit([message(1), settled(1, shard=SHARD)])
    assert not store.messages
    await store.close()


async def test_a_notification_takes_the_place_of_its_message(engine):
    store = await engine.opened()
    await store.commit([message(1)])
    await store.commit([settled(1, result(state=State.FAILED), notification=message(2), shard=SHARD)])
    assert list(store.messages) == [name(2, SHARD)]
    # Twice: the record of the message it tells of may be gone by the second time.
    for _ in range(2):
        store = await engine.reopened(store)
        assert await bodies(store) == {name(2, SHARD): body(2)}
    await store.close()


async def test_a_repeated_acceptance_changes_nothing(engine):
    store = await engine.opened()
    await store.commit([message(1)])
    await store.commit([settled(1, result(state=State.DEFERRED), shard=SHARD)])
    await store.commit([message(1)])
    await store.commit([Accepted(message(1).envelope, b"another body")])
    for _ in range(2):
        (live,) = store.messages.values()
        assert live.results == [result(state=State.DEFERRED)]
        assert await bodies(store) == {name(1, SHARD): body(1)}
        store = await engine.reopened(store)
    await store.close()


async def test_a_final_result_is_never_replaced(engine):
    store = await engine.opened()
    await store.commit([message(1, recipients=2)])
    await store.commit([settled(1, result(0), shard=SHARD)])
    await store.commit([settled(1, result(0, State.DEFERRED), shard=SHARD), settled(1, result(0), shard=SHARD)])
    assert store.messages[name(1, SHARD)].results == [result(0), None]
    await store.close()


async def test_an_outcome_nobody_waits_for_is_ignored(engine):
    store = await engine.opened()
    await store.commit([settled(7, shard=SHARD)])
    await store.commit([message(1), settled(1, result(5), shard=SHARD)])
    store = await engine.reopened(store)
    assert store.messages[name(1, SHARD)].results == [None]
    await store.close()


async def test_many_at_once(engine):
    store = await engine.opened()
    await asyncio.gather(*(store.commit([message(n)]) for n in range(100)))
    assert store.load == 0
    store = await engine.reopened(store)
    assert await bodies(store) == {name(n, SHARD): body(n) for n in range(100)}
    await store.close()


async def test_an_empty_batch_is_a_probe(engine):
    store = await engine.opened()
    await store.commit([])
    with engine.broken(store), pytest.raises(StoreError):
        await store.commit([])
    await store.close()


async def test_a_failed_commit_leaves_nothing_and_the_next_succeeds(engine):
    store = await engine.opened()
    await store.commit([message(1)])
    with engine.broken(store):
        for number in (2, 3):
            with pytest.raises(StoreError):
                await store.commit([message(number)])
        assert list(store.messages) == [name(1, SHARD)]
    await store.commit([settled(1, shard=SHARD), message(4)])
    assert list(store.messages) == [name(4, SHARD)]
    store = await engine.reopened(store)
    assert list(store.messages) == [name(4, SHARD)]
    await store.close()


async def test_what_cannot_be_encoded_fails_alone(engine):
    store = await engine.opened()
    bad = message(1)
    bad = Accepted(type(bad.envelope)("\ud800", "", ("a@b",), "", 0.0, 1), b"x")
    good = store.commit([message(2)])
    with pytest.raises(UnicodeEncodeError):
        store.commit([bad])
    await good
    await store.close()


async def test_closing_finishes_what_was_handed_over(engine):
    store = await engine.opened()
    commits = [store.commit([message(n)]) for n in range(10)]
    await store.close()
    await asyncio.gather(*commits)
    with pytest.raises(StoreError):
        await store.commit([message(11)])
    store = await engine.opened()
    assert len(store.messages) == 10
    await store.close()
    await store.close()


async def test_one_owner_and_an_epoch_that_grows(engine):
    store = await engine.opened()
    with pytest.raises(StoreLockedError):
        await engine.make().open()
    first = store.epoch
    store = await engine.reopened(store)
    assert store.epoch > first
    await store.close()
