import pytest

from relayd.auth import mechanisms
from relayd.auth.mechanisms import Credentials, MechanismError, decoded, decoded_initial, encoded, login, plain


def finished(exchange, *responses):
    next(exchange)
    with pytest.raises(StopIteration) as done:
        for response in responses:
            exchange.send(response)
    return done.value.value


def test_plain():
    assert finished(plain(), b"\0alice\0wonder:land ") == Credentials("alice", b"wonder:land ")
    assert finished(plain(), b"bob\0alice\0x") == Credentials("alice", b"x", identity="bob")


def test_login_asks_twice():
    exchange = login()
    assert next(exchange) == b"Username:"
    assert exchange.send(b"alice") == b"Password:"
    assert finished(login(), b"alice", b"x") == Credentials("alice", b"x")


def test_names_are_nfc():
    assert finished(plain(), "\0mu\u0308ller\0x".encode()).user == "m\u00fcller"


@pytest.mark.parametrize("response", [b"", b"alice", b"\0alice", b"\0a\0b\0c", b"\0\xff\0x", b"\xff\0a\0x"])
def test_plain_malformed(response):
    exchange = plain()
    next(exchange)
    with pytest.raises(MechanismError):
        exchange.send(response)


@pytest.mark.parametrize(("user", "password"), [(b"a\0", b"x"), (b"a", b"x\0"), (b"\xff", b"x")])
def test_login_malformed(user, password):
    exchange = login()
    next(exchange)
    exchange.send(user)
    with pytest.raises(MechanismError):
        exchange.send(password)


def test_base64():
    assert decoded(b"YQ==") == b"a"
    assert decoded(b"") == b""
    assert decoded_initial(b"=") == b""
    assert encoded(b"Username:") == "VXNlcm5hbWU6"
    for bad in (b"YQ=", b"Y Q==", b"Y\xff==", b"*"):
        with pytest.raises(MechanismError):
            decoded(bad)


def test_passwords_do_not_show():
    assert "secret" not in repr(Credentials("alice", b"secret"))
    assert set(mechanisms.MECHANISMS) == {b"PLAIN", b"LOGIN"}
