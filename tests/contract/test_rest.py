"""The contract of `store.Rest` and `Store.seal`: what nobody needs in memory goes to rest, and comes back when it is due."""

from __future__ import annotations

import asyncio

import pytest

from relayd.smtp.address import Address
from relayd.spool.records import Accepted, Held, Result, State
from relayd.spool.store import Store
from tests.contract.engines import SHARD, bodies, due, resting
from tests.fakes import mail
from tests.fakes.mail import body, name, result


def message(number: int, *domains: str, account: str = "user:alice", octets: int = 100) -> Accepted:
    """Message `number` with a recipient in each domain, due since second `number`."""
    made = mail.accepted(number, shard=SHARD, octets=octets, recipients=len(domains) or 1)
    if not domains:
        return made
    recipients = tuple(Address(f"r@{domain}") for domain in domains)
    envelope = made.envelope
    return Accepted(
        type(envelope)(envelope.id, envelope.sender, recipients, account, envelope.accepted_at, octets), made.body
    )


def ids(*numbers: int) -> list[str]:
    return [name(number, SHARD) for number in numbers]


def settled(number: int, *results: Result, notification: Accepted | None = None):
    return mail.settled(number, *results, notification=notification, shard=SHARD)


def deferred(until: float, recipient: int = 0, attempts: int = 1) -> Result:
    made = result(recipient, State.DEFERRED, attempts)
    return Result(made.recipient, made.state, attempts, made.at, until, made.reply, made.host)


def final(recipient: int = 0) -> Result:
    return result(recipient)


async def at_rest(engine, *records) -> Store:
    """A store at whose rest is what these records add up to."""
    store = await engine.opened()
    for record in records:
        await store.commit([record])
    await store.seal()
    assert not store.messages
    return store


async def results(store: Store) -> dict[str, list[Result | None]]:
    live = [*store.messages.values(), *await resting(store)]
    return {one.envelope.id: one.results for one in live}


async def test_a_new_store_has_nothing_at_rest(engine):
    store = await engine.opened()
    await store.seal()
    assert (store.rest.count, store.rest.held, await look_back(store)) == (0, 0, None)
    assert await due(store) == await store.rest.of_domains(["example.net"], 10) == []
    assert await store.rest.page(0, 10) == (0, [])
    assert await store.rest.find(name(1, SHARD)) is await store.rest.take(name(1, SHARD)) is None
    await store.close()


async def test_only_what_nobody_holds_goes_to_rest(engine):
    store = await engine.opened()
    asked: list[str] = []
    needed = set(ids(2, 4))

    def idle(message: str) -> bool:
        asked.append(message)
        return message not in needed

    store.idle = idle
    await store.commit([message(number) for number in range(1, 6)])
    assert asked == []
    await store.seal()
    assert sorted(asked) == ids(1, 2, 3, 4, 5)
    assert list(store.messages) == ids(2, 4)
    assert [one.envelope.id for one in await resting(store)] == ids(1, 3, 5)
    needed.clear()
    # With its next change it is asked for again.
    await store.commit([settled(2, deferred(50.0)), settled(4, deferred(60.0))])
    await store.seal()
    assert (list(store.messages), store.rest.count) == ([], 5)
    await store.close()


async def test_what_is_done_does_not_go_to_rest(engine):
    store = await engine.opened()
    await store.commit([message(1), message(2), settled(1)])
    await store.seal()
    assert await due(store) == ids(2)
    await store.close()


async def test_the_first_due_comes_first_and_nothing_before_its_time(engine):
    store = await at_rest(
        engine, *(message(n) for n in (1, 2, 3)), *(settled(n, deferred(100.0 - n)) for n in (1, 2, 3))
    )
    assert await due(store, 96.0) == []
    assert await due(store, 97.0) == ids(3)
    assert await due(store, 100.0) == ids(2, 1)
    assert store.rest.count == 0
    await store.close()


async def test_at_most_so_many_lanes_the_first_due_first(engine):
    domains = ["a.example", "b.example", "c.example"]
    store = await at_rest(
        engine, *(message(10 * n + i, domain) for n, domain in enumerate(domains, 1) for i in (2, 1, 0))
    )
    assert await due(store, lanes=1, each=2) == ids(10, 11)
    assert sorted(await due(store, lanes=2, each=1)) == ids(12, 20)
    assert sorted(await due(store, lanes=2, each=2)) == ids(21, 22, 30, 31)
    assert await due(store, lanes=5, each=5) == ids(32)
    await store.close()


async def test_a_lane_is_a_domain_and_an_account(engine):
    store = await at_rest(
        engine,
        message(1, "a.example", account="user:ann"),
        message(2, "a.example", account="user:bob"),
        message(3, "b.example", account="user:bob"),
    )
    assert await due(store, lanes=1) == ids(1)
    assert await due(store, lanes=1) == ids(2)
    assert await due(store, lanes=1) == ids(3)
    await store.close()


async def test_full_lanes_are_passed_over(engine):
    store = await at_rest(
        engine, message(1, "a.example"), message(2, "b.example"), message(3, "c.example", account="user:bob")
    )
    asked = set()

    def full(domain: str, account: str) -> bool:
        asked.add((domain, account))
        return domain == "a.example"

    assert await due(store, lanes=1, full=full) == ids(2)
    assert await due(store, full=full) == ids(3)
    assert {("a.example", "user:alice"), ("b.example", "user:alice"), ("c.example", "user:bob")} == asked
    assert store.rest.count == 1
    assert await due(store) == ids(1)
    await store.close()


async def test_each_message_is_handed_out_once(engine):
    store = await at_rest(engine, *(message(n, "a.example", "b.example") for n in range(20)))
    one, other = await asyncio.gather(due(store, each=7), due(store, each=7))
    both = one + other + await due(store)
    assert sorted(both) == ids(*range(20))
    assert await due(store) == []
    assert (store.rest.count, len(store.messages)) == (0, 20)
    await store.close()


async def test_a_message_with_several_domains_is_due_with_the_first_of_them(engine):
    store = await at_rest(
        engine, message(1, "a.example", "b.example"), settled(1, deferred(90.0, 0), deferred(80.0, 1))
    )
    assert await due(store, 79.0) == []
    assert await due(store, 80.0, full=lambda domain, _account: domain == "b.example") == []
    assert await due(store, 90.0, full=lambda domain, _account: domain == "b.example") == ids(1)
    await store.close()


async def test_a_recipient_at_its_end_makes_nothing_due(engine):
    store = await at_rest(engine, message(1, "a.example", "b.example"), settled(1, final(0), deferred(80.0, 1)))
    assert await due(store, 79.0) == []
    assert await store.rest.of_domains(["a.example"], 10) == []
    assert [one.envelope.id for one in await store.rest.of_domains(["b.example"], 10)] == ids(1)
    await store.close()


async def test_domains_are_woken_due_or_not(engine):
    store = await at_rest(
        engine,
        *(message(n, "a.example") for n in (1, 2, 3)),
        message(4, "b.example"),
        settled(2, deferred(1e9)),
    )
    woken = await store.rest.of_domains(["a.example", "c.example"], 2)
    assert [one.envelope.id for one in woken] == ids(1, 3)
    assert list(store.messages.values()) == woken
    assert [one.envelope.id for one in await store.rest.of_domains(["a.example"], 10)] == ids(2)
    assert [one.envelope.id for one in await resting(store)] == ids(4)
    await store.close()


@pytest.mark.parametrize("between", ["", "s", "r", "sr", "rs", "srs", "rr"])
async def test_what_is_settled_after_it_came_back_never_comes_again(engine, between):
    store = await at_rest(engine, message(1), message(2))
    assert await due(store) == ids(1, 2)
    await store.commit([settled(1)])
    for step in between:
        if step == "s":
            await store.seal()
        else:
            store = await engine.reopened(store)
    assert await store.rest.find(name(1, SHARD)) is None
    await due(store)
    assert list(store.messages) == ids(2)
    assert store.rest.count == 0
    assert await bodies(store) == {name(2, SHARD): body(2)}
    store = await engine.reopened(store)
    assert list(await bodies(store)) == ids(2)
    await store.close()


@pytest.mark.parametrize("between", ["s", "sr", "rs", "srs"])
async def test_what_is_deferred_after_it_came_back_comes_again_as_it_was(engine, between):
    store = await at_rest(engine, message(1, "a.example", "b.example"))
    for attempt in (1, 2, 3):
        assert await due(store, 100.0 * attempt) == ids(1)
        await store.commit([settled(1, deferred(100.0 * attempt + 50.0, attempts=attempt))])
        if attempt == 2:
            await store.commit([settled(1, final(1))])
        for step in between:
            if step == "s":
                await store.seal()
            else:
                store = await engine.reopened(store)
        await store.seal()
        expected = [deferred(100.0 * attempt + 50.0, attempts=attempt), final(1) if attempt > 1 else None]
        assert await results(store) == {name(1, SHARD): expected}
        assert store.rest.count == 1
        store_due = 1.0 if attempt == 1 else 100.0 * attempt + 50.0
        assert await due(store, store_due - 0.5) == []
    assert await bodies(store) == {name(1, SHARD): body(1)}
    await store.close()


@pytest.mark.parametrize("reopen", [False, True])
async def test_an_outcome_beside_the_move_counts(engine, reopen):
    store = await engine.opened()
    working = set(ids(1, 2, 3))
    store.idle = lambda message: message not in working
    await store.commit([message(n, "a.example", "b.example") for n in (1, 2, 3, 4)])
    async with engine.moving(store):
        await store.commit([settled(1, final(0), final(1))])
        await store.commit([settled(2, final(0), deferred(70.0, 1))])
        assert list(store.messages) == ids(2, 3, 4)
        assert await asyncio.wait_for(store.commit([message(5)]), 5) is None
    working.clear()
    if reopen:
        store = await engine.reopened(store)
    expected = {
        name(2, SHARD): [final(0), deferred(70.0, 1)],
        name(3, SHARD): [None, None],
        name(4, SHARD): [None, None],
        name(5, SHARD): [None],
    }
    for _ in range(2):
        assert await results(store) == expected
        assert await bodies(store) == {name(n, SHARD): body(n) for n in (2, 3, 4, 5)}
        await store.seal()
    assert name(1, SHARD) not in await due(store)
    await store.close()


async def test_a_notification_beside_the_move_of_what_it_tells_of(engine):
    store = await engine.opened()
    store.idle = lambda _message: False
    await store.commit([message(1)])
    async with engine.moving(store):
        await store.commit([settled(1, result(state=State.FAILED), notification=message(2))])
    store.idle = lambda _message: True
    for _ in range(3):
        assert await bodies(store) == {name(2, SHARD): body(2)}
        await store.seal()
        assert (list(store.messages), store.rest.count) == ([], 1)
        store = await engine.reopened(store)
    await store.close()


async def test_pages_show_each_message_once_and_change_nothing(engine):
    store = await at_rest(engine, *(message(n) for n in range(25)))
    await store.commit([message(30)])
    assert await due(store, 3.0) == ids(0, 1, 2, 3)
    for limit in (1, 7, 100):
        page = await resting(store, limit)
        assert [one.envelope for one in page] == [message(n).envelope for n in range(4, 25)]
        assert all(one.body is None for one in page)
    assert (store.rest.count, len(store.messages)) == (21, 5)
    await store.close()


async def test_one_is_found_as_it_is_and_not_taken(engine):
    store = await at_rest(engine, message(1, "a.example", "b.example"), settled(1, final(1)), message(2))
    found = await store.rest.find(name(1, SHARD))
    assert found is not None
    assert (found.envelope, found.results, found.held) == (
        message(1, "a.example", "b.example").envelope,
        [None, final(1)],
        False,
    )
    assert not store.messages
    assert await store.rest.find(name(9, SHARD)) is await store.rest.find("nonsense") is None
    assert await due(store) == ids(1, 2)
    assert await store.rest.find(name(1, SHARD)) is None
    await store.close()


async def test_one_is_taken_once(engine):
    store = await at_rest(engine, message(1), message(2))
    taken = await store.rest.take(name(2, SHARD))
    assert store.messages == {name(2, SHARD): taken}
    assert await store.rest.take(name(2, SHARD)) is await store.rest.take("nonsense") is None
    assert (store.rest.count, await due(store)) == (1, ids(1))
    await store.close()


async def look_back(store: Store) -> float | None:
    await store.rest.look_back()
    return store.rest.oldest


async def test_the_oldest_at_rest(engine):
    store = await at_rest(engine, *(message(n) for n in (5, 6, 7)))
    assert await look_back(store) == 5.0
    await store.commit([message(2)])
    assert await look_back(store) == 5.0
    await due(store)
    await store.commit([settled(5), settled(6)])
    await store.seal()
    assert await look_back(store) in (2.0, 7.0)
    await store.close()


async def test_held_mail_rests_and_is_never_due(engine):
    store = await at_rest(engine, message(1), message(2), Held(name(1, SHARD), held=True))
    for _ in range(2):
        assert (store.rest.count + len(store.messages), store.rest.held) == (2, 1 - len(store.messages) // 2)
        store = await engine.reopened(store)
        await store.seal()
    assert (store.rest.count, store.rest.held) == (2, 1)
    assert await due(store) == ids(2)
    assert await store.rest.of_domains(["example.net"], 10) == []
    taken = await store.rest.take(name(1, SHARD))
    assert taken is not None and taken.held
    assert (store.rest.count, store.rest.held) == (0, 0)
    await store.commit([Held(name(1, SHARD), held=False), settled(2)])
    await store.seal()
    assert (store.rest.count, store.rest.held) == (1, 0)
    assert await due(store) == ids(1)
    assert not store.messages[name(1, SHARD)].held
    await store.close()


async def test_bodies_from_memory_journal_and_index(engine):
    """Large and small, byte for byte, wherever they are."""
    new = [message(1, octets=0), message(2, octets=1), message(3, octets=300_000)]
    expected = {one.envelope.id: one.body for one in new}
    store = await engine.opened()
    await store.commit(new)
    assert await bodies(store) == expected
    # Also one that memory has let go of.
    for one in store.messages.values():
        one.body = None
    assert await bodies(store) == expected
    store = await engine.reopened(store)
    assert await bodies(store) == expected
    await store.seal()
    assert store.rest.count == 3
    assert await bodies(store) == expected
    await due(store)
    assert all(one.body is None for one in store.messages.values())
    assert await bodies(store) == expected
    await store.commit([settled(n, deferred(50.0)) for n in (1, 2, 3)])
    assert await bodies(store) == expected
    await store.seal()
    store = await engine.reopened(store)
    assert await bodies(store) == expected
    await store.close()


@pytest.mark.parametrize("reopened_after", range(7))
async def test_reopened_at_any_stage(engine, reopened_after):
    """The same comes out wherever in the life of some mail the process ends."""
    store = await engine.opened()

    async def accept():
        await store.commit([message(n, "a.example", "b.example") for n in range(1, 7)])

    async def seal():
        await store.seal()

    async def come_back():
        await due(store)

    async def settle():
        # Only what is in memory is ever tried.
        await due(store)
        note = message(9)
        await store.commit([settled(1, final(0), final(1)), settled(2, final(0)), settled(3, deferred(50.0, 1))])
        await store.commit([settled(4, result(0, State.FAILED), result(1, State.FAILED), notification=note)])

    for number, step in enumerate((accept, seal, come_back, settle, seal, come_back, seal)):
        await step()
        if number == reopened_after:
            store = await engine.reopened(store)
    assert await results(store) == {
        name(2, SHARD): [final(0), None],
        name(3, SHARD): [None, deferred(50.0, 1)],
        name(5, SHARD): [None, None],
        name(6, SHARD): [None, None],
        name(9, SHARD): [None],
    }
    assert await bodies(store) == {name(n, SHARD): body(n) for n in (2, 3, 5, 6, 9)}
    assert store.rest.count + len(store.messages) == 5
    await store.close()
