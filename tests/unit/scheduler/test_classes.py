"""Order among classes: who goes first, and how long the others wait at most."""

from __future__ import annotations

import collections
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from relayd.scheduler.classes import INTERACTIVE, LOW, NORMAL, ClassQueue, PriorityClass, class_of, reserve
from relayd.scheduler.entry import Entry
from relayd.scheduler.fair_queue import FairQueue
from tests.unit.scheduler.entries import entry

INTERACTIVE_ACCOUNTS = frozenset({"user:otp"})
PRIORITIES = {INTERACTIVE: 9, NORMAL: 0, LOW: -9}
RANKS = (INTERACTIVE, NORMAL, LOW)
LONGEST_WAIT = {1: 10, 2: 20}
"""Entries of other classes before the next of one that waits, by how many others have mail."""


def _queue(*counts: tuple[PriorityClass, int]) -> ClassQueue:
    queue = ClassQueue(INTERACTIVE_ACCOUNTS)
    for kind, count in counts:
        for number in range(count):
            queue.push(entry(f"{kind.value}{number}", priority=PRIORITIES[kind]))
    return queue


def _kind(taken: Entry) -> PriorityClass:
    return class_of(taken.message, INTERACTIVE_ACCOUNTS)


def _kinds(queue: ClassQueue, count: int) -> list[PriorityClass]:
    return [_kind(queue.pop()) for _ in range(count)]


# --- what is what -----------------------------------------------------------------------------------------------------


@given(st.integers(-9, 9), st.sampled_from(["user:ann", "user:otp", ""]))
def test_the_class_is_the_sign_of_the_priority_or_the_accounts(priority: int, account: str) -> None:
    message = entry(account=account, priority=priority).message
    expected = LOW if priority < 0 else INTERACTIVE if priority else NORMAL
    assert class_of(message, INTERACTIVE_ACCOUNTS) is (INTERACTIVE if account == "user:otp" else expected)
    assert class_of(message, ()) is expected


@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_a_reserve_leaves_something_to_both(window: int, share: float) -> None:
    kept = reserve(window, share)
    if window < 2 or not share:
        assert kept == 0
    else:
        assert 1 <= kept < window
        assert kept <= max(1, window * share)


@pytest.mark.parametrize(
    ("window", "share", "kept"),
    [(1, 0.9, 0), (2, 0.2, 1), (2, 0.9, 1), (5, 0.2, 1), (9, 0.2, 1), (10, 0.2, 2), (20, 0.2, 4), (20, 0.9, 18)],
)
def test_a_reserve_is_its_share_rounded_down(window: int, share: float, kept: int) -> None:
    assert reserve(window, share) == kept


# --- the order --------------------------------------------------------------------------------------------------------


def test_what_is_urgent_goes_before_what_came_earlier() -> None:
    queue = _queue((LOW, 1), (NORMAL, 1), (INTERACTIVE, 1))
    assert _kinds(queue, 3) == [INTERACTIVE, NORMAL, LOW]
    assert not queue


def test_all_mail_of_an_interactive_account_is_urgent() -> None:
    queue = _queue((NORMAL, 1))
    code = entry("code", account="user:otp")
    queue.push(code)
    assert queue.interactive_waits
    assert queue.pop() is code


def test_one_class_alone_keeps_its_order_and_costs_no_turns() -> None:
    queue = _queue((NORMAL, 95))
    assert [queue.pop().message.id for _ in range(95)] == [f"normal{number}" for number in range(95)]
    queue = _queue((LOW, 95))
    _kinds(queue, 85)
    queue.push(entry(priority=1))
    assert _kinds(queue, 2) == [INTERACTIVE, LOW]


@pytest.mark.parametrize(("higher", "lower"), [(INTERACTIVE, NORMAL), (INTERACTIVE, LOW), (NORMAL, LOW)])
def test_of_two_classes_the_lower_has_a_tenth(higher: PriorityClass, lower: PriorityClass) -> None:
    assert _kinds(_queue((higher, 100), (lower, 100)), 100) == ([higher] * 9 + [lower]) * 10


def test_of_three_classes_the_lower_two_share_a_tenth() -> None:
    expected = ([INTERACTIVE] * 9 + [LOW] + [INTERACTIVE] * 9 + [NORMAL]) * 5
    assert _kinds(_queue((INTERACTIVE, 100), (NORMAL, 100), (LOW, 100)), 100) == expected


def test_the_middle_does_not_wait_for_ever_between_two_that_are_never_empty() -> None:
    """An interactive entry is there exactly when nothing else can be chosen, the worst there is for normal mail."""
    queue = _queue((NORMAL, 1), (LOW, 100))
    taken = []
    for number in range(1, 25):
        if number % 10:
            queue.push(entry(priority=1))
        taken.append(_kind(queue.pop()))
    assert taken.index(NORMAL) < 20


def test_the_longest_wait_is_reached() -> None:
    queue = _queue((NORMAL, 100), (LOW, 9))
    _kinds(queue, 10)  # the tenth was low
    _kinds(queue, 9)
    for _ in range(50):
        queue.push(entry(priority=1))
    # Interactive mail comes just in time for the tenth turn, which is its own since it had none yet.
    assert _kinds(queue, 22) == [INTERACTIVE] * 10 + [LOW] + [INTERACTIVE] * 9 + [NORMAL] + [INTERACTIVE]


def test_interactive_entries_can_be_taken_alone_and_cost_no_turn() -> None:
    queue = _queue((INTERACTIVE, 100), (NORMAL, 2))
    _kinds(queue, 9)
    for number in range(9, 50):
        assert queue.interactive_waits
        assert queue.pop_interactive().message.id == f"interactive{number}"
    assert _kinds(queue, 2) == [NORMAL, INTERACTIVE]


@pytest.mark.parametrize("counts", [(), ((NORMAL, 1),), ((LOW, 1),)])
def test_nothing_else_is_taken_for_interactive(counts: tuple[tuple[PriorityClass, int], ...]) -> None:
    queue = _queue(*counts)
    assert not queue.interactive_waits
    with pytest.raises(KeyError):
        queue.pop_interactive()
    assert bool(queue) == bool(counts)


@pytest.mark.parametrize("counts", [(), ((NORMAL, 1),), ((LOW, 1),), ((INTERACTIVE, 1), (LOW, 1))])
def test_an_empty_queue_is_false_and_cannot_be_popped(counts: tuple[tuple[PriorityClass, int], ...]) -> None:
    queue = _queue(*counts)
    while queue:
        queue.pop()
    with pytest.raises(KeyError):
        queue.pop()
    with pytest.raises(KeyError):
        queue.remove(entry(priority=-1))


def test_normal_mail_alone_costs_little_more_than_a_fair_queue() -> None:
    def octets(make: Callable[[], object]) -> float:
        tracemalloc.start()
        kept = [make() for _ in range(100)]
        traced = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return traced / len(kept)

    assert octets(lambda: ClassQueue(INTERACTIVE_ACCOUNTS)) - octets(FairQueue) < 100


# --- any sequence of calls --------------------------------------------------------------------------------------------


class _Model:
    """One class, naively: a list for each account, in the order of their turns."""

    def __init__(self) -> None:
        self.round: list[list[Entry]] = []

    def push(self, pushed: Entry) -> None:
        for entries in self.round:
            if entries[0].message.account == pushed.message.account:
                entries.append(pushed)
                return
        self.round.append([pushed])

    def pop(self) -> Entry:
        entries = self.round.pop(0)
        taken = entries.pop(0)
        if entries:
            self.round.append(entries)
        return taken

    def remove(self, removed: Entry) -> None:
        for entries in self.round:
            if removed in entries:
                entries.remove(removed)
        self.round = [entries for entries in self.round if entries]


class ClassQueueMachine(RuleBasedStateMachine):
    """Each class gives what its model gives; how long the others wait is counted beside it, not computed."""

    @initialize()
    def start(self) -> None:
        self.queue = ClassQueue(INTERACTIVE_ACCOUNTS)
        self.models = {kind: _Model() for kind in RANKS}
        self.passed: collections.Counter[PriorityClass] = collections.Counter()
        self.rivals: dict[PriorityClass, set[PriorityClass]] = {kind: set() for kind in RANKS}
        self.as_highest: collections.Counter[PriorityClass] = collections.Counter()
        self.since_yielded = 9
        self.pushed = 0

    def waiting(self) -> list[PriorityClass]:
        return [kind for kind in RANKS if self.models[kind].round]

    def make(self, account: str, priority: int) -> Entry:
        self.pushed += 1
        return entry(f"m{self.pushed}", account=account, priority=priority)

    def settled(self) -> None:
        for kind in RANKS:
            if not self.models[kind].round:
                self.had_its_turn(kind)

    def had_its_turn(self, kind: PriorityClass) -> None:
        self.passed[kind] = self.as_highest[kind] = 0
        self.rivals[kind].clear()

    ACCOUNTS = st.sampled_from(["user:ann", "user:bob", "user:otp", ""])

    @rule(account=ACCOUNTS, priority=st.sampled_from([-9, -1, 0, 0, 1, 9]), count=st.integers(1, 12))
    def push(self, account: str, priority: int, count: int) -> None:
        for _ in range(count):
            pushed = self.make(account, priority)
            self.queue.push(pushed)
            self.models[_kind(pushed)].push(pushed)

    @precondition(lambda self: self.queue)
    @rule(count=st.integers(1, 25))
    def pop(self, count: int) -> None:
        for _ in range(count):
            if self.waiting():
                self.pop_one()

    def pop_one(self) -> None:
        waiting = self.waiting()
        taken = self.queue.pop()
        chosen = _kind(taken)
        assert taken is self.models[chosen].pop(), "accounts take turns, and each gives its oldest"
        if len(waiting) > 1:
            self.since_yielded += 1
            if chosen is not waiting[0]:
                assert self.since_yielded >= 10, "nine in ten belong to the highest"
                self.since_yielded = 0
        for kind in waiting:
            if kind is chosen:
                self.had_its_turn(kind)
                continue
            self.passed[kind] += 1
            self.rivals[kind] |= {*waiting} - {kind}
            self.as_highest[kind] = self.as_highest[kind] + 1 if kind is waiting[0] else 0
            assert self.passed[kind] <= LONGEST_WAIT[len(self.rivals[kind])]
            assert self.as_highest[kind] <= 1
        self.settled()

    @precondition(lambda self: self.models[INTERACTIVE].round)
    @rule()
    def pop_interactive(self) -> None:
        assert self.queue.pop_interactive() is self.models[INTERACTIVE].pop()
        self.settled()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        removed = data.draw(st.sampled_from([e for m in self.models.values() for es in m.round for e in es]))
        assert removed in self.queue
        self.queue.remove(removed)
        assert removed not in self.queue
        self.models[_kind(removed)].remove(removed)
        self.settled()

    @rule(made=st.lists(st.tuples(ACCOUNTS, st.sampled_from([-1, 0, 1])), max_size=6))
    def absorb(self, made: list[tuple[str, int]]) -> None:
        other = ClassQueue(INTERACTIVE_ACCOUNTS)
        models = {kind: _Model() for kind in RANKS}
        for account, priority in made:
            pushed = self.make(account, priority)
            other.push(pushed)
            models[_kind(pushed)].push(pushed)
        self.queue.absorb(other)
        assert not other
        for kind, model in models.items():
            for absorbed in (e for entries in model.round for e in entries):
                self.models[kind].push(absorbed)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            assert bool(self.queue) == bool(self.waiting())
            assert self.queue.interactive_waits == bool(self.models[INTERACTIVE].round)
            while self.waiting():
                self.pop_one()
            assert not self.queue, "what was put in came out, once"


TestClassQueue = ClassQueueMachine.TestCase
TestClassQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
