"""The table of replies, written a second time as its cells: what the code says must be this."""

import pytest

from relayd.message.outcome import Scope, Verdict
from relayd.outbound.classify import EXCEPTIONS, TABLE, Ruling, Stage, Step, goes_on, ruling
from relayd.smtp.reply import Reply

DEFERRED, FAILED = Verdict.DEFERRED, Verdict.FAILED

BEFORE_MAIL = (Stage.GREETING, Stage.EHLO, Stage.STARTTLS)

CELLS = {
    **{
        (stage, kind): (DEFERRED, Scope.SITE, Step.NEXT_HOST)
        for stage in BEFORE_MAIL
        for kind in ("4xx", "5xx", "lost")
    },
    (Stage.LOGIN, "4xx"): (DEFERRED, Scope.SITE, Step.SETTLE),
    (Stage.LOGIN, "5xx"): (DEFERRED, Scope.SITE, Step.SETTLE),
    (Stage.LOGIN, "lost"): (DEFERRED, Scope.SITE, Step.NEXT_HOST),
    (Stage.MAIL, "4xx"): (DEFERRED, Scope.MESSAGE, Step.SETTLE),
    (Stage.MAIL, "5xx"): (FAILED, Scope.MESSAGE, Step.SETTLE),
    (Stage.MAIL, "lost"): (DEFERRED, Scope.SESSION, Step.NEXT_HOST),
    (Stage.RCPT, "4xx"): (DEFERRED, Scope.RECIPIENT, Step.SETTLE),
    (Stage.RCPT, "5xx"): (FAILED, Scope.RECIPIENT, Step.SETTLE),
    (Stage.RCPT, "lost"): (DEFERRED, Scope.SESSION, Step.NEXT_HOST),
    (Stage.DATA, "4xx"): (DEFERRED, Scope.MESSAGE, Step.SETTLE),
    (Stage.DATA, "5xx"): (FAILED, Scope.MESSAGE, Step.SETTLE),
    (Stage.DATA, "lost"): (DEFERRED, Scope.SESSION, Step.NEXT_HOST),
    (Stage.DOT, "4xx"): (DEFERRED, Scope.MESSAGE, Step.SETTLE),
    (Stage.DOT, "5xx"): (FAILED, Scope.MESSAGE, Step.SETTLE),
    (Stage.DOT, "lost"): (DEFERRED, Scope.SESSION, Step.SETTLE),
}


def reply(code):
    return Reply(code, "", "text")


def answers(kind):
    match kind:
        case "4xx":
            return [reply(code) for code in range(400, 500) if code != 421]
        case "5xx":
            return [reply(code) for code in range(500, 600)]
    return [None, reply(421)]


@pytest.mark.parametrize(("stage", "kind"), CELLS, ids=lambda value: getattr(value, "name", value))
def test_each_cell(stage, kind):
    for answer in answers(kind):
        if answer is not None and (stage, answer.code) in EXCEPTIONS:
            continue
        found = ruling(stage, answer)
        assert (found.verdict, found.scope, found.step) == CELLS[stage, kind]
        assert found.uncertain is (stage is Stage.DOT and kind == "lost")


def test_every_stage_is_in_the_table():
    assert set(TABLE) == set(Stage)
    assert {stage for stage, _ in CELLS} == set(Stage)


@pytest.mark.parametrize("code", [452, 552])
def test_too_many_recipients(code):
    assert ruling(Stage.RCPT, reply(code)) == Ruling(DEFERRED, Scope.RECIPIENT, Step.NEW_TRANSACTION)


@pytest.mark.parametrize("code", [530, 535, 538])
def test_wanting_credentials_is_our_fault(code):
    assert ruling(Stage.MAIL, reply(code)) == Ruling(DEFERRED, Scope.SITE, Step.SETTLE)


def test_no_other_exceptions():
    assert set(EXCEPTIONS) == {(Stage.RCPT, 452), (Stage.RCPT, 552), *((Stage.MAIL, code) for code in (530, 535, 538))}


@pytest.mark.parametrize("stage", Stage, ids=lambda stage: stage.name)
def test_only_the_hoped_for_codes_go_on_and_other_2xx_and_3xx_are_protocol_errors(stage):
    hoped = {Stage.GREETING: {220}, Stage.STARTTLS: {220}, Stage.LOGIN: {235}, Stage.DATA: {354}}.get(
        stage, set(range(250, 260))
    )
    lost = ruling(stage, None)
    for code in range(200, 600):
        assert goes_on(stage, reply(code)) is (code in hoped)
        if code < 400:
            assert ruling(stage, reply(code)) == lost
    assert not goes_on(stage, None)


def test_nothing_ever_fails_but_by_a_5xx():
    for stage in Stage:
        for answer in [None, *(reply(code) for code in range(200, 500))]:
            assert ruling(stage, answer).verdict is DEFERRED
