"""Attacks on authentication and relay policy: each test carries the number and the name of its row."""

import base64
import time

import pytest

from relayd.auth import users
from tests.fakes.inbound import PLAIN, Inbound

OUTSIDE = {"relay": {"trusted_networks": ["192.0.2.0/24"]}}


def plain(user: str | bytes, password: str | bytes) -> str:
    octets = b"\0".join(
        (
            b"",
            user.encode() if isinstance(user, str) else user,
            password.encode() if isinstance(password, str) else password,
        )
    )
    return "AUTH PLAIN " + base64.b64encode(octets).decode()


@pytest.fixture
async def inbound(tmp_path, certificate):
    async with Inbound(tmp_path, certificate) as started:
        yield started


async def unproven(inbound):
    client = await inbound.dial("submissions")
    await client.reply()
    await client.expect(250, "EHLO client.test")
    return client


# --- 18: brute force --------------------------------------------------------------------------------------------------


async def test_attack_18_one_address_many_users(inbound):
    client = await unproven(inbound)
    for n in range(5):
        assert (await client.ask(plain(f"user{n}", "guess"))).startswith("535 5.7.8")
    assert (await client.ask(plain("alice", "wonderland"))).startswith("421 4.7.0")
    assert await client.ended()
    client = await unproven(inbound)
    assert (await client.ask(plain("alice", "wonderland"))).startswith("421 4.7.0")


async def test_attack_18_many_addresses_one_user(inbound):
    """The account is limited whatever the address; who proved itself within the minute from its own is not locked out."""
    check = inbound.authenticator.check
    assert (await check("alice", b"wonderland", "198.51.100.7")).value == "accepted"
    for n in range(5):
        assert (await check("alice", b"guess", f"192.0.2.{n}")).value == "refused"
    client = await unproven(inbound)
    assert (await client.ask(plain("alice", "wonderland"))).startswith("454 4.7.0")
    assert (await check("alice", b"wonderland", "198.51.100.7")).value == "accepted"
    assert (await check("alice", b"wonderland", "192.0.2.77")).value == "limited account"


async def test_attack_18_rotation_within_a_64(inbound):
    check = inbound.authenticator.check
    for n in range(5):
        assert (await check(f"user{n}", b"guess", f"2001:db8::{n:x}")).value == "refused"
    assert (await check("alice", b"wonderland", "2001:db8::ffff")).value == "limited client"
    assert (await check("alice", b"wonderland", "2001:db8:0:1::1")).value == "accepted"


async def test_attack_18_lockout_survives_a_restart(inbound, tmp_path, certificate):
    client = await unproven(inbound)
    for n in range(5):
        await client.expect(535, plain(f"user{n}", "guess"))
    async with Inbound(tmp_path, certificate) as again:
        client = await unproven(again)
        assert (await client.ask(plain("alice", "wonderland"))).startswith("421 4.7.0")


async def test_attack_18_a_hundred_connections_get_no_more_tries(inbound):
    clients = [await unproven(inbound) for _ in range(20)]
    for n, client in enumerate(clients):
        await client.send(plain(f"user{n}", "guess") + "\r\n")
    codes = [await client.code() for client in clients]
    assert sorted(codes) == [421] * 15 + [535] * 5


# --- 19: oracles ------------------------------------------------------------------------------------------------------


async def test_attack_19_unknown_user_and_wrong_password_look_alike(inbound):
    client = await unproven(inbound)
    unknown = await client.ask(plain("nobody", "guess"))
    wrong = await client.ask(plain("alice", "guess"))
    assert unknown == wrong == "535 5.7.8 Authentication credentials invalid"


async def test_attack_19_they_cost_the_same(inbound):
    """By CPU time, the least of a few: noise only adds. Half or double would be a hash less or more."""
    check = inbound.authenticator.check

    async def cost(user: str, subnet: int) -> float:
        costs = []
        for n in range(4):
            started = time.process_time()
            await check(user, b"guess", f"192.0.{subnet}.{n}")
            costs.append(time.process_time() - started)
        return min(costs)

    known, unknown = await cost("alice", 2), await cost("nobody", 3)
    assert 0.5 < known / unknown < 2


# --- 20: AUTH out of place or malformed (the transcripts of tests/dialogs have most) ----------------------------------


async def test_attack_20_credentials_in_clear_are_refused_and_not_logged(inbound, capfd):
    client = await inbound.dial("submission")
    await client.reply()
    assert "AUTH" not in await client.expect(250, "EHLO client.test")
    assert (await client.ask(f"AUTH PLAIN {PLAIN}")).startswith("538 5.7.11")
    assert (await client.ask("AUTH LOGIN")).startswith("538 5.7.11")
    # What a client that does not read its replies goes on with.
    assert (await client.ask("d29uZGVybGFuZA==")).startswith("500")
    said = "".join(capfd.readouterr())
    assert PLAIN not in said
    assert "d29uZ" not in said.lower()


@pytest.mark.parametrize(
    ("response", "codes"),
    [
        ("", ("501",)),
        ("=", ("501",)),
        (base64.b64encode(b"\0" * 1000).decode(), ("501",)),
        (base64.b64encode(b"\0alice\0wonder\0land").decode(), ("501",)),
        (base64.b64encode(b"\0\xff\xfe\0wonderland").decode(), ("501",)),
        (base64.b64encode(b"\0alice\0\xff\xfe").decode(), ("535",)),
        (base64.b64encode(b"\0\0").decode(), ("535",)),
        (base64.b64encode(b"\0alice\0").decode(), ("535",)),
        (base64.b64encode(b"bob\0alice\0wonderland").decode(), ("535",)),
        (base64.b64encode(b"alice\0alice\0wonderland").decode(), ("235",)),
        (base64.b64encode(b"\0alice\0" + b"x" * 9000).decode(), ("535",)),
        ("QUJD\x7f", ("501",)),
        ("YWxpY2U==", ("501",)),
    ],
)
async def test_attack_20_responses(inbound, response, codes):
    client = await unproven(inbound)
    await client.expect(334, "AUTH PLAIN")
    assert (await client.ask(response)).startswith(codes)
    await client.expect(250, "NOOP")


async def test_attack_20_too_long_a_line_of_clients(inbound):
    client = await unproven(inbound)
    assert (await client.ask("AUTH PLAIN " + "A" * 13_000)).startswith("500 5.5.2")


# --- 21: open relay ---------------------------------------------------------------------------------------------------

FORMS = [
    "victim@example.test", "victim%example.test@relay.test", "victim%example.test@[127.0.0.1]",
    '"victim@example.test"', '"victim%example.test"', "victim@example.test@[127.0.0.1]",
    '"victim@example.test"@[127.0.0.1]', "victim@example.test@relay.test", '"victim@example.test"@relay.test',
    "@relay.test:victim@example.test", "@[127.0.0.1]:victim@example.test", "example.test!victim",
    "example.test!victim@[127.0.0.1]", "example.test!victim@relay.test", "victim@[127.0.0.1]", "",
]  # fmt: skip


@pytest.mark.parametrize("sender", ["", "antispam@relay.test", "antispam@[127.0.0.1]"])
async def test_attack_21_open_relay_from_outside(tmp_path, certificate, sender):
    async with Inbound(tmp_path, certificate, settings=OUTSIDE) as inbound:
        for form in FORMS:
            client = await inbound.connect("relay")
            await client.expect(250, f"MAIL FROM:<{sender}>")
            assert (await client.ask(f"RCPT TO:<{form}>")).startswith(("550", "553"))
            await client.expect(554, "DATA")


async def test_attack_21_open_relay_without_authentication(inbound):
    for form in FORMS:
        client = await unproven(inbound)
        await client.expect(530, "MAIL FROM:<antispam@relay.test>")
        await client.expect(530, f"RCPT TO:<{form}>")
        await client.expect(530, "DATA")


async def test_attack_21_plain_text_stays_plain_text(inbound):
    """With AUTH only `local@domain`; what is taken goes to the domain behind the last @, unchanged."""
    client = await inbound.connect("submissions")
    for form, code in {
        "u%d.test@us.test": 250,
        "d.test!u@us.test": 250,
        '"u@d.test"@us.test': 250,
        "u@[127.0.0.1]": 250,
        "u@[IPv6:2001:db8::1]": 250,
        "@us.test:u@d.test": 553,
        '"u@d.test"': 553,
        "u@d.test@us.test": 553,
        "u@[127.0.0.1": 553,
        "u@[300.0.0.1]": 553,
        "u": 553,
        "": 553,
        "d.test!u": 553,
    }.items():
        await client.expect(250, "MAIL FROM:<a@sender.test>")
        await client.expect(code, f"RCPT TO:<{form}>")
        if code == 250:
            await client.expect(354, "DATA")
            await client.expect(250, "\r\n.")
            assert inbound.messages[-1].envelope.recipients == (form,)
        else:
            await client.expect(250, "RSET")


# --- 22: encoded words, overflows, comments in the envelope -----------------------------------------------------------


PATHS = {
    "<=?utf-8?b?YQ0KWA==?=@d.test>": 250,
    "<=?utf-8?q?a=0d=0ax=20=3cceo=40victim.test=3e?=@d.test>": 250,
    "<u@=?utf-8?q?evil=2ecom?=>": 553,
    "<a(comment)@d.test>": 553,
    "<a@d.test(comment)>": 553,
    "<a@d.test": 553,
    "a@d.test": 553,
    "<a@d.test>>": 553,
    "<a@d.test> <b@d.test>": 501,
    "Name <a@d.test>": 553,
    "<a b@d.test>": 553,
    '<"a b"@d.test>': 250,
    "<a@d.test,b@d.test>": 553,
    "<.a@d.test>": 553,
    "<a..b@d.test>": 553,
    "<a@-d.test>": 553,
    "<\u0161\u0100@d.test>": 553,
    "<a@d\u3002test>": 553,
}


async def test_attack_22_envelope_is_carried_or_refused_never_decoded(tmp_path, certificate):
    async with Inbound(tmp_path, certificate, settings={"limits": {"errors_per_session": 100}}) as inbound:
        client = await inbound.connect("submissions")
        for path, code in PATHS.items():
            await client.expect(code, f"MAIL FROM:{path}")
            if code != 250:
                continue
            await client.expect(250, f"RCPT TO:{path}")
            await client.expect(354, "DATA")
            await client.expect(250, "\r\n.")
            envelope = inbound.messages[-1].envelope
            assert envelope.sender == path[1:-1]
            assert envelope.recipients == (path[1:-1],)


# --- users file under the running server ------------------------------------------------------------------------------


async def test_users_file_is_followed(inbound):
    client = await unproven(inbound)
    assert (await client.ask(plain("bob", "builder"))).startswith("535")
    users.add(inbound.users_file, "bob", "builder")
    await client.expect(235, plain("bob", "builder"))
    users.passwd(inbound.users_file, "bob", "other")
    client = await unproven(inbound)
    assert (await client.ask(plain("bob", "builder"))).startswith("535"), "the cache forgets when the file changes"
    await client.expect(235, plain("bob", "other"))
