"""ESMTP parameters keep their case and refuse what RFC 5321 §4.1.2 does not allow."""

import pytest

from relayd.smtp.parameters import ParameterError, parse, xtext


def test_keywords_are_folded_and_values_kept() -> None:
    assert parse(b"size=100  Body=8BitMime SMTPUTF8 AUTH=aB+2B") == {
        "SIZE": "100",
        "BODY": "8BitMime",
        "SMTPUTF8": None,
        "AUTH": "aB+2B",
    }
    assert parse(b"") == {}


@pytest.mark.parametrize("text", [b"=1", b"SIZE=", b"SI ZE=\x01", b"A_B=1", b"A=b=c", b"A=1 a=2", b"A=\xff", b"-A=1", b"A\t=1"])
def test_refused(text: bytes) -> None:
    with pytest.raises(ParameterError):
        parse(text)


def test_xtext() -> None:
    assert xtext("a+2Bb+3Dc") == "a+b=c"


@pytest.mark.parametrize("value", ["a+0Ab", "a+0D", "+00", "a b", "a=b", "+2b", "+2", "+FF", "é"])
def test_xtext_never_hides_controls(value: str) -> None:
    with pytest.raises(ParameterError):
        xtext(value)
