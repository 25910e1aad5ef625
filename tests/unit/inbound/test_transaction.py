import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.schema import Limits
from relayd.inbound.transaction import Transaction, mail, rcpt
from relayd.smtp import reply
from relayd.smtp.address import Address
from relayd.smtp.reply import Reply

LIMITS = Limits(message_size=1000, recipients=2)


def begun(argument: bytes, *, extended: bool = True) -> Transaction | Reply:
    return mail(argument, extended=extended, limits=LIMITS)


def test_mail():
    transaction = begun(b"FROM:<a@b.test> SIZE=1000 BODY=8BITMIME SMTPUTF8 MT-PRIORITY=-9")
    assert (transaction.sender, transaction.size, transaction.eightbit, transaction.smtputf8) == (
        "a@b.test",
        1000,
        True,
        True,
    )
    assert transaction.priority == -9
    assert begun(b"from:<>").sender == ""
    assert begun(b"FROM: <a@b.test>").sender == "a@b.test"
    assert begun(b"FROM:<a@b.test>", extended=False).sender == "a@b.test"


@pytest.mark.parametrize(
    ("argument", "refusal"),
    [
        (b"FROM:  <a@b.test>", reply.BAD_SENDER),
        (b"FROM:", reply.BAD_SENDER),
        (b"FROM:<a@b.test> SIZE=1001", reply.MESSAGE_TOO_LARGE),
        (b"FROM:<a@b.test> SIZE", reply.BAD_PARAMETER),
        (b"FROM:<a@b.test> SIZE=\xd9\xa1", reply.BAD_PARAMETER),
        (b"FROM:<a@b.test> MT-PRIORITY=\xd9\xa3", reply.BAD_PARAMETER),
        (b"FROM:<a@b.test> =", reply.BAD_PARAMETER),
        (b"FROM:<a@b.test> X", reply.UNKNOWN_PARAMETER),
        ("FROM:<ü@b.test>".encode(), reply.NEEDS_SMTPUTF8),
        (b"FROM:<\xff@b.test>", reply.BAD_OCTET),
    ],
)
def test_mail_refused(argument, refusal):
    assert begun(argument) == refusal


@given(st.text(st.characters(min_codepoint=0x21, exclude_categories=["Cs"]), max_size=4))
def test_a_priority_is_one_of_nineteen_words_or_refused(word):
    said = begun(f"FROM:<a@b.test> MT-PRIORITY={word} SMTPUTF8".encode())
    expected = {str(number): number for number in range(-9, 10)}.get(word)
    assert said == reply.BAD_PARAMETER if expected is None else said.priority == expected


def test_recipients_are_distinct_and_bounded():
    transaction = Transaction(Address(""))
    for said in (b"TO:<a@b.test>", b"TO:<a@b.test>"):
        assert transaction.room(LIMITS)
        transaction.add(rcpt(said, transaction))
    assert not transaction.room(LIMITS)
    assert list(transaction.recipients) == ["a@b.test"]


def test_case_matters_for_being_the_same():
    transaction = Transaction(Address(""))
    transaction.add(Address("a@b.test"))
    transaction.add(Address("A@b.test"))
    assert len(transaction.recipients) == 2


@given(st.binary(max_size=80))
def test_any_octets_are_a_value(argument):
    assert isinstance(begun(b"FROM:<" + argument), Transaction | Reply)
    assert isinstance(rcpt(b"TO:<" + argument, Transaction(Address(""))), str | Reply)
