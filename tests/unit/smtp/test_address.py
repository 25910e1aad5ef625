"""The envelope parser takes what RFC 5321 §4.1.2 allows, byte for byte, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.smtp.address import AddressError, domain_of, forward_path, literal_address, parse, reverse_path, route_key

ACCEPTED = [
    b"a@b",
    b"user.name+tag@example.com",
    b"!#$%&'*+-/=?^_`{|}~@example.com",
    b"percent%hack@example.com",
    b"bang!path@example.com",
    b'"quoted string"@example.com',
    b'"a\\"b"@example.com',
    b'""@example.com',
    b"a@[192.0.2.1]",
    b"a@[IPv6:2001:db8::1]",
    b"=?utf-8?q?a=3e=00=0d=0aRCPT?=@b.c",
    b"a@xn--bcher-kva.example",
    b"x" * 255 + b"@example.com",
]
REFUSED = [
    b"",
    b"a",
    b"@b",
    b"a@",
    b"a@b@c",
    b".a@b",
    b"a.@b",
    b"a..b@c",
    b"a b@c",
    b"a@b c",
    b"a@-b",
    b"a@b-",
    b"a@b..c",
    b"a@.b",
    b"a@b_c",
    b"a(comment)@b",
    b"a@b(comment)",
    b"a,b@c",
    b"a:b@c",
    b"@hop:a@b",
    b"@hop1,@hop2:a@b",
    b'"a@b"',
    b'"a"b@c',
    b'"a\rb"@c',
    b'"a\nb"@c',
    b"a\0@b",
    b"a@b\0",
    b"a@b\r",
    b"a\t@b",
    b"a@[300.0.0.1]",
    b"a@[]",
    b"a@[IPv6:xyz]",
    b"a@[127.0.0.1",
    b"\xff@b",
    "é@b".encode(),
    b"x" * 256 + b"@example.com",
    b"a@" + b"b" * 64,
    b"a@" + b".".join([b"b" * 50] * 6),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted_paths_keep_their_bytes(text: bytes) -> None:
    for path in (reverse_path, forward_path):
        address, rest = path(b"<" + text + b">", utf8=False)
        assert (address.encode(), rest) == (text, b"")


@pytest.mark.parametrize("text", REFUSED)
def test_refused_paths(text: bytes) -> None:
    with pytest.raises(AddressError):
        forward_path(b"<" + text + b">", utf8=False)


@pytest.mark.parametrize("path", [b"a@b", b"<a@b", b"a@b>", b" <a@b>", b"<a@b>x", b"<a@b><c@d>", b"<", b">", b"<<a@b>>"])
def test_paths_need_their_brackets_and_nothing_behind_them(path: bytes) -> None:
    with pytest.raises(AddressError):
        reverse_path(path, utf8=True)


def test_the_null_sender_is_only_a_sender() -> None:
    assert reverse_path(b"<> SIZE=1", utf8=False) == ("", b"SIZE=1")
    with pytest.raises(AddressError):
        forward_path(b"<>", utf8=False)


def test_postmaster_alone_is_only_a_recipient() -> None:
    assert forward_path(b"<PostMaster> X=1", utf8=False) == ("PostMaster", b"X=1")
    with pytest.raises(AddressError):
        reverse_path(b"<postmaster>", utf8=False)


def test_parameters_are_left_as_they_are() -> None:
    assert reverse_path(b"<a@b> BODY=8BITMIME AUTH=Abc", utf8=False) == ("a@b", b"BODY=8BITMIME AUTH=Abc")


@pytest.mark.parametrize("text", ["é@example.com", "用户@例え.jp", '"ü ü"@b.c', "a@bücher.example"])
def test_internationalised_paths_need_smtputf8(text: str) -> None:
    path = f"<{text}>".encode()
    assert forward_path(path, utf8=True)[0] == text
    with pytest.raises(AddressError, match="SMTPUTF8"):
        forward_path(path, utf8=False)


@pytest.mark.parametrize("text", ["a\u0085@b", "a\u2028@b", "a\u00a0@b", "a\u200e@b", "a@\u2028b", "a@b\u202e.c", "\ud7ff\ue000@b"])
def test_invisible_characters_are_refused(text: str) -> None:
    with pytest.raises(AddressError):
        forward_path(f"<{text}>".encode(), utf8=True)


def test_route_keys_are_lower_case_a_labels() -> None:
    assert route_key(parse("A@EXAMPLE.Com")) == "example.com"
    assert route_key(parse("a@BÜCHER.example")) == "xn--bcher-kva.example"
    assert route_key(parse("a@[192.0.2.1]")) == "[192.0.2.1]"
    assert domain_of(parse('"x@y"@EXAMPLE.Com')) == "EXAMPLE.Com"


def test_literals_hold_addresses() -> None:
    assert literal_address("[192.0.2.1]") == "192.0.2.1"
    assert literal_address("[IPv6:2001:DB8:0::1]") == "2001:db8::1"


@given(st.binary(max_size=80), st.booleans())
def test_whatever_is_accepted_is_what_was_said(data: bytes, utf8: bool) -> None:
    path = b"<" + data + b">"
    try:
        address, rest = forward_path(path, utf8=utf8)
    except AddressError:
        return
    said = b"<" + address.encode() + b">"
    assert path.startswith(said)
    assert path[len(said) :].strip(b" ") == rest
    assert not any(byte < 0x20 or byte == 0x7F for byte in said)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_route_keys_never_fail_on_accepted_addresses(text: str) -> None:
    try:
        address, _ = forward_path(f"<a@{text}>".encode(), utf8=True)
    except AddressError:
        return
    assert route_key(address).isascii()
