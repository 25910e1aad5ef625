"""Logging in to the next hops of a route: what is said, when it is not said, and that nobody else ever reads it."""

import asyncio
import base64
import contextlib
import gc
import ssl
import sys

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from relayd.message.outcome import Scope, Verdict
from relayd.message.site import Host, Tls
from relayd.outbound.credentials import Credentials
from tests.fakes.smtp_peer import CAPABILITIES, DROP, RESET, SILENCE
from tests.integration.outbound.rig import CONTEXTS, IMPATIENT, QUICK, Carrier, site_of
from tests.unit.outbound.settings import settings

DELIVERED, DEFERRED = Verdict.DELIVERED, Verdict.DEFERRED

PASSWORD = "correct horse battery"
TOKEN = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29t"
ROUTE = {"name": "routes[0]"}

PLAIN = base64.b64encode(f"\0relay\0{PASSWORD}".encode()).decode()
XOAUTH2 = base64.b64encode(f"user=relay\x01auth=Bearer {TOKEN}\x01\x01".encode()).decode()


def b64(text):
    return base64.b64encode(text.encode()).decode()


def offering(*mechanisms):
    return (*CAPABILITIES, "AUTH " + " ".join(mechanisms))


@pytest.fixture
async def carrier():
    """`carrier(password=...)`: one that has credentials for routes[0]."""
    async with contextlib.AsyncExitStack() as stack:

        def made(timeouts=QUICK, **fields):
            carrier = Carrier(timeouts, credentials={"routes[0]": Credentials(settings(**fields))})
            stack.push_async_callback(carrier.close)
            return carrier

        yield made


async def logged_in(carrier, peer, **terms):
    assert (await carrier.carry(site_of(peer, **ROUTE, **terms)))[0].verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [terms.get("tls") is not Tls.NONE]
    lines = peer.sessions[-1].lines
    return lines[
        next(at for at, line in enumerate(lines) if line.startswith("AUTH")) : lines.index(peer.messages[0].mail)
    ]


async def refused(carrier, peer, *more, **terms):
    """The outcome of mail that did not go, whichever other hosts the site has."""
    outcome = (await carrier.carry(site_of(peer, *more, **ROUTE, **terms)))[0]
    assert (outcome.verdict, outcome.scope) == (DEFERRED, Scope.SITE)
    assert peer.messages == []
    assert not any("MAIL" in session.verbs() for session in peer.sessions)
    return outcome


async def ended(peer):
    """The peer's first session, when it is over."""
    async with asyncio.timeout(10):
        while not peer.sessions[0].closed:
            await asyncio.sleep(0.01)
    return peer.sessions[0]


# --- mechanisms --------------------------------------------------------------------------------------------------------


async def test_plain_in_one_line(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("LOGIN", "PLAIN", "XOAUTH2"))
    assert await logged_in(carrier(password=PASSWORD), peer) == [f"AUTH PLAIN {PLAIN}"]
    assert peer.sessions[0].verbs()[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


async def test_login_where_plain_is_not_offered(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("CRAM-MD5", "login"))
    assert await logged_in(carrier(password=PASSWORD), peer) == ["AUTH LOGIN", b64("relay"), b64(PASSWORD)]


async def test_the_mechanism_that_is_configured(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("PLAIN", "LOGIN"))
    assert (await logged_in(carrier(password=PASSWORD, mechanism="login"), peer))[0] == "AUTH LOGIN"


@pytest.mark.parametrize("order", [1, -1])
async def test_mechanisms_offered_in_the_old_style_too_are_those_of_both_lines(start, carrier, certificate, order):
    lines = ("AUTH PLAIN XOAUTH2", "AUTH=LOGIN")[::order]
    peer = await start(tls=certificate, capabilities=(*CAPABILITIES, *lines))
    relay = carrier(token_command=("echo", TOKEN))
    assert await logged_in(relay, peer) == [f"AUTH XOAUTH2 {XOAUTH2}"]


async def test_xoauth2_with_a_token(start, carrier, certificate, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    peer = await start(tls=certificate, capabilities=offering("PLAIN", "LOGIN", "XOAUTH2"))
    assert await logged_in(carrier(token_file=tmp_path / "token"), peer) == [f"AUTH XOAUTH2 {XOAUTH2}"]


@pytest.mark.parametrize(("length", "alone"), [(365, False), (366, True), (2000, True)])
async def test_what_is_too_long_for_one_line_waits_for_the_challenge(start, carrier, certificate, length, alone):
    # RFC 4954 §4: the command keeps to the 512 octets of RFC 5321 §4.5.3.1.4.
    peer = await start(tls=certificate, capabilities=offering("PLAIN"))
    lines = await logged_in(carrier(password="p" * length), peer)
    assert (lines[0] == "AUTH PLAIN") is alone
    assert len(lines[0]) <= 510
    assert b64("\0relay\0" + "p" * length) in lines[-1]


async def test_once_for_a_connection(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(password=PASSWORD)
    for _ in range(3):
        await relay.carry(site_of(peer, **ROUTE))
    assert (len(peer.messages), peer.sessions[0].verbs().count("AUTH"), len(peer.sessions)) == (3, 1, 1)


async def test_implicit_tls(start, carrier, certificate):
    peer = await start(tls=certificate, implicit_tls=True, capabilities=offering("PLAIN"))
    relay = carrier(password=PASSWORD)
    await relay.carry(site_of(Host("127.0.0.1", peer.port, implicit_tls=True), **ROUTE))
    assert peer.sessions[0].verbs()[:3] == ["EHLO", "AUTH", "MAIL"]


async def test_other_sites_get_no_credentials(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(password=PASSWORD)
    for name in ("", "routes[1]"):
        await relay.carry(site_of(peer, name=name))
    assert not any("AUTH" in session.verbs() for session in peer.sessions)


# --- never in clear ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [Tls.OPPORTUNISTIC, Tls.ENCRYPT, Tls.VERIFY])
async def test_attack_32_credentials_and_starttls_stripped(start, carrier, wanted):
    peer = await start(capabilities=offering("PLAIN"))
    assert (await refused(carrier(password=PASSWORD), peer, tls=wanted)).reply.enhanced == "4.7.4"
    assert (await ended(peer)).verbs() == ["EHLO", "QUIT"]


@pytest.mark.parametrize("wanted", [Tls.OPPORTUNISTIC, Tls.ENCRYPT, Tls.VERIFY])
@pytest.mark.parametrize("said", ["454 4.7.0 not now", DROP, RESET])
async def test_attack_32_credentials_and_a_broken_starttls(start, carrier, certificate, wanted, said):
    peer = await start({"STARTTLS": said}, tls=certificate, capabilities=offering("PLAIN"))
    await refused(carrier(password=PASSWORD), peer, tls=wanted)
    assert len(peer.sessions) == 1
    assert "AUTH" not in peer.sessions[0].verbs()


async def test_a_site_remembered_as_broken_gets_no_credentials_either(start, carrier, certificate):
    peer = await start({"STARTTLS": ["454 no"] * 2}, tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(password=PASSWORD)
    assert (await relay.carry(site_of(peer)))[0].verdict is DELIVERED
    peer.messages.clear()
    outcome = (await relay.carry(site_of(peer, **ROUTE)))[0]
    assert (outcome.verdict, peer.messages) == (DEFERRED, [])
    assert "AUTH" not in peer.sessions[-1].verbs()


async def test_attack_32_credentials_are_not_for_a_wrong_host(start, carrier):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.example").configure_cert(context)
    peer = await start(tls=context, capabilities=offering("PLAIN"))
    assert (await refused(carrier(password=PASSWORD), peer, tls=Tls.VERIFY)).reply.enhanced == "4.7.5"
    assert "AUTH" not in peer.sessions[0].verbs()


async def test_in_clear_where_the_operator_says_so(start, carrier):
    peer = await start(capabilities=offering("PLAIN"))
    assert await logged_in(carrier(password=PASSWORD), peer, tls=Tls.NONE) == [f"AUTH PLAIN {PLAIN}"]


async def test_attack_33_mechanisms_offered_in_clear_are_forgotten(start, carrier, certificate):
    def ehlo(session, line):
        return b"250-peer\r\n250 AUTH LOGIN\r\n" if session.tls else b"250-peer\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n"

    peer = await start({"EHLO": ehlo}, tls=certificate)
    assert (await logged_in(carrier(password=PASSWORD), peer))[0] == "AUTH LOGIN"


# --- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", ["454 4.7.0 not now", "535 5.7.8 bad credentials", "501 5.5.2 what", "504 5.5.4 no", "500 no"]
)
async def test_a_refusal_defers_and_no_other_host_is_asked(start, carrier, certificate, alerts, said):
    peer = await start({"AUTH": said}, tls=certificate, capabilities=offering("PLAIN"))
    other = await start(tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(password=PASSWORD)
    for _ in range(3):
        assert str((await refused(relay, peer, other)).reply) == said
    assert other.sessions == []
    assert [(alert["what"], alert["reply"]) for alert in alerts()] == [("login refused", said)]
    assert [session.verbs().count("AUTH") for session in peer.sessions] == [1, 1, 1]


@pytest.mark.parametrize(
    "said", ["421 4.3.2 busy", "250 odd", "354 odd", DROP, RESET, SILENCE, b"235\xff\n", b"235 a\r\n235 b\r\n"]
)
async def test_a_session_lost_at_auth_goes_on_with_the_next_host(start, carrier, certificate, alerts, said):
    peer = await start({"AUTH": said}, tls=certificate, capabilities=offering("PLAIN"))
    other = await start(tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(IMPATIENT if said is SILENCE else QUICK, password=PASSWORD)
    assert (await relay.carry(site_of(peer, other, **ROUTE)))[0].verdict is DELIVERED
    assert (len(peer.messages), len(other.messages), alerts()) == (0, 1, [])


@pytest.mark.parametrize(
    ("offered", "fields"),
    [
        ((), {"password": PASSWORD}),
        (("CRAM-MD5",), {"password": PASSWORD}),
        (("XOAUTH2",), {"password": PASSWORD}),
        (("LOGIN",), {"password": PASSWORD, "mechanism": "plain"}),
        (("PLAIN", "LOGIN"), {"token_command": ("echo", TOKEN)}),
        (("PLAINER", "X-LOGIN"), {"password": PASSWORD}),
    ],
)
async def test_no_mechanism_in_common_defers(start, carrier, certificate, alerts, offered, fields):
    peer = await start(tls=certificate, capabilities=offering(*offered) if offered else CAPABILITIES)
    assert (await refused(carrier(**fields), peer)).reply.enhanced == "4.7.4"
    assert "AUTH" not in peer.sessions[0].verbs()
    assert [alert["what"] for alert in alerts()] == ["login refused"]


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [("plain", [f"AUTH PLAIN {PLAIN}"]), ("login", ["AUTH LOGIN", b64("relay"), b64(PASSWORD)])],
)
async def test_challenges_without_end_are_cancelled(start, carrier, certificate, mechanism, said):
    # RFC 4954 §4
    peer = await start(
        {"AUTH": "334 ", "RESPONSE": "334 more"}, tls=certificate, capabilities=offering("PLAIN", "LOGIN")
    )
    await refused(carrier(password=PASSWORD, mechanism=mechanism), peer)
    assert (await ended(peer)).lines[3:] == [*said, "*", "QUIT"]


# --- tokens ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def printing(tmp_path):
    """A command that prints the next line of a file each time it runs: `printing("one", "two")`; and how often it ran."""

    def made(*tokens):
        for number, token in enumerate(tokens):
            (tmp_path / f"token-{number}").write_text(token)
        script = (
            "import pathlib, sys; here = pathlib.Path(sys.argv[1]); "
            "ran = here / 'ran'; n = len(ran.read_text()) if ran.exists() else 0; ran.write_text('x' * (n + 1)); "
            "print((here / f'token-{n}').read_text())"
        )
        return (sys.executable, "-c", script, str(tmp_path))

    made.times = lambda: len((tmp_path / "ran").read_text())
    return made


def bearer(token):
    return b64(f"user=relay\x01auth=Bearer {token}\x01\x01")


def wanting(token):
    """AUTH of a peer that takes one token, and answers others as Google does."""

    def auth(session, line):
        return "235 2.7.0 welcome" if line.endswith(bearer(token)) else "334 " + b64('{"status":"401"}')

    return {"AUTH": auth, "RESPONSE": lambda session, line: "501 odd" if line else "535-5.7.8 no\r\n535 5.7.8 bye"}


async def test_an_expired_token_is_fetched_anew_in_the_same_attempt(start, carrier, certificate, printing, alerts):
    peer = await start(wanting("fresh"), tls=certificate, capabilities=offering("XOAUTH2"))
    relay = carrier(token_command=printing("stale", "fresh"))
    assert (await relay.carry(site_of(peer, **ROUTE)))[0].verdict is DELIVERED
    assert (await ended(peer)).lines[-3:] == [f"AUTH XOAUTH2 {bearer('stale')}", "", "QUIT"]
    assert f"AUTH XOAUTH2 {bearer('fresh')}" in peer.sessions[1].lines
    assert (len(peer.sessions), printing.times(), alerts()) == (2, 2, [])


async def test_a_token_that_is_refused_again_defers(start, carrier, certificate, printing, alerts):
    peer = await start(wanting("other"), tls=certificate, capabilities=offering("XOAUTH2"))
    relay = carrier(token_command=printing("one", "two", "three"))
    outcome = await refused(relay, peer)
    assert str(outcome.reply) == "535 5.7.8 no bye"
    assert (len(peer.sessions), printing.times()) == (2, 2)
    await refused(relay, peer)
    assert (len(peer.sessions), printing.times()) == (3, 2), "no command for each message"
    assert [alert["what"] for alert in alerts()] == ["login refused"]


async def test_a_file_with_the_same_token_is_not_shown_twice(start, carrier, certificate, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    peer = await start(wanting("other"), tls=certificate, capabilities=offering("XOAUTH2"))
    await refused(carrier(token_file=tmp_path / "token"), peer)
    assert len(peer.sessions) == 1


async def test_a_reload_forgets_tokens(start, carrier, certificate, printing):
    peer = await start(tls=certificate, capabilities=offering("XOAUTH2"))
    relay = carrier(token_command=printing("one", "two"))
    for _ in range(2):
        await relay.carry(site_of(peer, **ROUTE))
        relay.pool.close()
        relay.connector.renew(CONTEXTS)
    assert [line for session in peer.sessions for line in session.lines if line.startswith("AUTH")] == [
        f"AUTH XOAUTH2 {bearer(token)}" for token in ("one", "two")
    ]


async def test_credentials_can_be_replaced(start, carrier, certificate):
    peer = await start(tls=certificate, capabilities=offering("PLAIN"))
    relay = carrier(password="old")
    relay.connector.renew(CONTEXTS, {"routes[0]": Credentials(settings(password=PASSWORD))})
    assert await logged_in(relay, peer) == [f"AUTH PLAIN {PLAIN}"]


async def test_without_its_secret_nobody_is_called(start, carrier, certificate, tmp_path, alerts):
    peer, other = await start(), await start()
    relay = carrier(password_file=tmp_path / "missing")
    for _ in range(2):
        outcome = await refused(relay, peer, other)
        assert str(outcome.reply).startswith("451 4.3.5")
        assert str(tmp_path) not in outcome.reply.text
    assert peer.sessions == other.sessions == []
    assert [(alert["what"], alert["error"]) for alert in alerts()] == [
        ("credentials unusable", f"password_file: {tmp_path}/missing cannot be read: No such file or directory")
    ]


# --- nobody else reads it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "echo",
    [
        lambda line: f"500 5.5.1 unknown command: {line}",
        lambda line: f"535 5.7.8 {line.upper()}",
        lambda line: "535 5.7.8 " + base64.b64decode(line.split(" ")[2]).decode().replace("\0", "/"),
        lambda line: f"421 4.7.0 {line}",
        lambda line: line,
        lambda line: f"535 5.7.8 {line[:40]}",
    ],
)
async def test_a_peer_that_repeats_the_command_is_not_quoted(start, carrier, certificate, log_file, echo):
    peer = await start({"AUTH": lambda session, line: echo(line)}, tls=certificate, capabilities=offering("PLAIN"))
    outcome = await refused(carrier(password=PASSWORD), peer)
    told = f"{outcome!r} {log_file.read_text()}".lower()
    for secret in (PASSWORD, PLAIN):
        for at in range(len(secret) - 7):
            assert secret[at : at + 8].lower() not in told


async def test_what_operators_need_to_read_stays(start, carrier, certificate):
    said = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant."
    peer = await start({"AUTH": said}, tls=certificate, capabilities=offering("PLAIN"))
    assert str((await refused(carrier(password=PASSWORD), peer)).reply) == said


# --- somebody else's server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["plain", "login"])
@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
async def test_aiosmtpd(carrier, certificate, mechanism, password):
    taken = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            taken.append(session.authenticated)
            return "250 2.0.0 taken"

    def authenticator(server, session, envelope, mechanism, given):
        assert isinstance(given, LoginPassword)
        return AuthResult(success=given == LoginPassword(b"relay", PASSWORD.encode()), handled=False)

    def served():
        return SMTP(Handler(), tls_context=certificate, authenticator=authenticator, auth_required=True)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(served, "127.0.0.1", 0)
    async with server:
        site = site_of(("127.0.0.1", server.sockets[0].getsockname()[1]), **ROUTE)
        relay = carrier(password=password, mechanism=mechanism)
        outcome = (await relay.carry(site))[0]
        assert outcome.verdict is (DELIVERED if password == PASSWORD else DEFERRED)
        assert taken == ([True] if password == PASSWORD else [])
        await relay.close()
    gc.collect()
