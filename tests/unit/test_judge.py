"""The judge of the drills: each thing that must not happen is seen, and nothing else is."""

import time

from tests.fakes.judge import Arrival, Judge, delivery, message
from tests.fakes.sink import Received

ONE = delivery("n1@sink.test")
TRACE = b"Received: from client\r\n\tby relay; now\r\n"


def sent(*answers: bytes) -> Judge:
    """Of message 1, with these answers."""
    judge = Judge()
    for answer in answers:
        judge.sending([ONE])
        judge.answered([ONE], answer)
    return judge


def arrived(judge: Judge, content: bytes) -> None:
    judge.take(Received(b"<a@ledger.test>", (b"<n1@sink.test>",), content))


def test_what_arrives_once_and_whole_is_in_order() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    arrived(judge, TRACE + message(1))
    verdict = judge.verdict(7)
    assert verdict.faults() == {}
    assert str(verdict) == "seed=7 cuts=0 acknowledged=1 lost=0 duplicate=0 altered=0"


def test_lost() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    assert judge.verdict().faults() == {"lost": [ONE]}
    judge.queued = {ONE}
    assert judge.verdict().faults() == {}


def test_what_was_not_answered_may_be_lost_and_may_arrive() -> None:
    judge = sent(b"451 4.3.0 Not now\r\n")
    assert judge.verdict().faults() == {}
    judge = Judge()
    judge.sending([ONE])
    arrived(judge, TRACE + message(1))
    assert judge.verdict().faults() == {}


def test_ghost() -> None:
    judge = Judge()
    arrived(judge, TRACE + message(1))
    assert judge.verdict().faults() == {"ghost": [ONE]}


def test_altered() -> None:
    for content in (TRACE + message(1)[:-2], message(2), TRACE + TRACE + message(1), b""):
        judge = sent(b"250 2.0.0 Ok\r\n")
        arrived(judge, content)
        assert judge.verdict().faults() == {"altered": [ONE]}


def test_a_duplicate_needs_a_cut_between_the_two() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    judge.arrivals[ONE] = [Arrival(1), Arrival(5)]
    assert judge.verdict().faults() == {"unexplained": [ONE]}
    judge.cut(0.1, 0.9)
    judge.cut(5.1, 5.2)
    assert judge.verdict().faults() == {"unexplained": [ONE]}
    judge.cuts.insert(1, (judge.cuts[0]._replace(at=0.9, until=1.1)))
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert verdict.duplicate == {ONE}
    assert verdict.doubled == (0, 1, 0)


def test_a_third_arrival_needs_a_second_cut() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    judge.arrivals[ONE] = [Arrival(1), Arrival(3), Arrival(4)]
    judge.cut(2, 2)
    assert judge.verdict().faults() == {"unexplained": [ONE]}


def test_a_lost_answer_explains_one_duplicate() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    taken = Received(b"<a@ledger.test>", (b"<n1@sink.test>",), TRACE + message(1))
    judge.take(taken, answered=False)
    assert judge.verdict().faults() == {}
    judge.take(taken)
    verdict = judge.verdict()
    assert verdict.faults() == {}
    assert verdict.duplicate == {ONE}
    judge.take(taken)
    assert judge.verdict().faults() == {"unexplained": [ONE]}


def test_what_bounced_was_refused_and_did_not_arrive() -> None:
    judge = sent(b"250 2.0.0 Ok\r\n")
    text = b"Subject: no\r\n\r\nFinal-Recipient: rfc822; n1@sink.test\r\nAction: failed\r\n"
    judge.take(Received(b"<>", (b"<ledger@ledger.test>",), text))
    assert judge.verdict().faults() == {"premature": [ONE]}
    judge.refused.add(ONE)
    assert judge.verdict().faults() == {}
    judge.arrivals[ONE].append(Arrival(time.monotonic()))
    assert judge.verdict().faults() == {"unexplained": [ONE]}


def test_what_was_turned_away_before_a_cut_and_sent_again_may_arrive_twice() -> None:
    judge = sent(b"451 4.3.0 Not now\r\n")
    now = time.monotonic()
    judge.cut(now, now)
    judge.sending([ONE])
    judge.answered([ONE], b"250 2.0.0 Ok\r\n")
    for _ in range(2):
        arrived(judge, TRACE + message(1))
    assert judge.verdict().faults() == {}
    arrived(judge, TRACE + message(1))
    assert judge.verdict().faults() == {"unexplained": [ONE]}


def test_what_was_turned_away_and_sent_again_without_a_cut_arrives_once() -> None:
    judge = sent(b"451 4.3.0 Not now\r\n", b"250 2.0.0 Ok\r\n")
    for _ in range(2):
        arrived(judge, TRACE + message(1))
    assert judge.verdict().faults() == {"unexplained": [ONE]}
