"""TLS as the terms of a site say: where it is offered, always, with a certificate for the name, or from the first octet.

Opportunistic TLS is used where it works, and mail goes in clear in the same attempt where it does not.
"""

import asyncio
import datetime
import ssl
import warnings

import pytest
import trustme

from relayd import tls
from relayd.message.outcome import Scope, Verdict
from relayd.message.site import Host, Tls
from relayd.outbound.connection import Connection, Timeouts
from relayd.outbound.connector import BROKEN_SECONDS
from relayd.outbound.protocol import PipeliningProtocol
from tests.fakes.dns_server import DnsServer
from tests.fakes.smtp_peer import BROKEN_TLS, CAPABILITIES, DROP, RESET, SILENCE
from tests.integration.outbound.rig import CONTEXTS, IMPATIENT, QUICK, Carrier, site_of

DELIVERED, DEFERRED = Verdict.DELIVERED, Verdict.DEFERRED
SITE = Scope.SITE
REQUIRED = [Tls.ENCRYPT, Tls.VERIFY]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def contexts(authority):
    """Those of a relay that knows `authority` alone."""
    verified = tls.next_hop_context(verify=True)
    authority.configure_trust(verified)
    return tls.NextHopContexts(CONTEXTS.any_certificate, verified)


@pytest.fixture
async def knowing(contexts):
    carrier = Carrier(contexts=contexts)
    yield carrier
    await carrier.close()


def served(authority, *names, **fields):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **fields).configure_cert(context)
    return context


async def none_is_left(carrier):
    """Every connection is closed and known to be."""
    async with asyncio.timeout(10):
        while carrier.connector._live:
            await asyncio.sleep(0.01)


async def refused_in_clear(carrier, peer, tls=Tls.ENCRYPT, **host):
    """The outcome of mail that must not go, after looking that nothing of it went."""
    outcome = (await carrier.carry(site_of(Host("127.0.0.1", peer.port, **host), tls=tls, name="routes[0]")))[0]
    assert (outcome.verdict, outcome.scope) == (DEFERRED, SITE)
    assert peer.messages == []
    assert not any("MAIL" in session.verbs() for session in peer.sessions)
    await none_is_left(carrier)
    return outcome.reply


async def test_tls_is_used_where_offered(start, carrier, certificate):
    peer = await start(tls=certificate)
    for _ in range(3):
        assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [True] * 3
    assert len(peer.sessions) == 1
    assert peer.sessions[0].verbs()[:3] == ["EHLO", "STARTTLS", "EHLO"]


async def test_large_bodies_go_through_tls_unharmed(start, carrier, certificate):
    peer = await start(tls=certificate)
    body = b"Subject: x\r\n\r\n" + b".0123456789abcdef\r\n" * 200_000
    assert (await carrier.carry(peer, body=body))[0].verdict is DELIVERED
    assert peer.messages[0].body == body


@pytest.mark.parametrize(
    "answer",
    [
        "454 4.7.0 not now",
        "502 5.5.1 what?",
        "421 4.3.2 no",
        "250 odd",
        DROP,
        RESET,
        SILENCE,
        BROKEN_TLS,
        b"220\xff\n5\n",
    ],
)
async def test_broken_starttls_falls_back_to_clear(start, certificate, answer):
    carrier = Carrier(IMPATIENT if answer is SILENCE else QUICK)
    peer = await start({"STARTTLS": answer}, tls=certificate)
    outcome = (await carrier.carry(peer))[0]
    assert outcome.verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [False]
    assert "STARTTLS" not in peer.sessions[-1].verbs()
    await carrier.close()


@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"2", b"250-a\r\n"])
async def test_bytes_behind_the_220_are_never_taken_for_tls_answers(start, carrier, certificate, injected):
    # RFC 3207 §4.2, GHSA-vxj7-4xrp-5vr4
    peer = await start(tls=certificate, ahead_of_tls=injected)
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [session.tls for session in peer.sessions] == [False, False]


async def test_a_handshake_nobody_can_agree_on_falls_back_to_clear(start, carrier):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # with an ECDSA certificate: no shared cipher
    trustme.CA().issue_cert("peer.example").configure_cert(context)
    peer = await start(tls=context)
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [False]


async def test_any_certificate_will_do(start, carrier):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.invalid").configure_cert(context)
    peer = await start(tls=context)
    await carrier.carry(peer)
    assert [message.tls for message in peer.messages] == [True]


async def test_capabilities_are_those_told_under_tls(start, carrier, certificate):
    def ehlo(session, line):
        return "250 peer.example" if session.tls else b"250-peer.example\r\n250-PIPELINING\r\n250 STARTTLS\r\n"

    peer = await start({"EHLO": ehlo}, tls=certificate)
    await carrier.carry(peer)
    assert peer.sessions[0].ahead == 0


async def test_ehlo_refused_under_tls_falls_back_to_clear(start, carrier, certificate):
    def ehlo(session, line):
        return "421 4.3.0 no" if session.tls else b"250-peer.example\r\n250 STARTTLS\r\n"

    peer = await start({"EHLO": ehlo}, tls=certificate)
    assert (await carrier.carry(peer))[0].verdict is DELIVERED


# --- where TLS is broken, and may be -----------------------------------------------------------------------------------


async def test_broken_starttls_is_remembered_for_an_hour(start, certificate):
    now = [0.0]
    carrier = Carrier(now=lambda: now[0])
    peer = await start({"STARTTLS": ["454 4.7.0 not now"] * 2}, tls=certificate)

    async def verbs_of_next_sessions():
        known = len(peer.sessions)
        carrier.pool.close()
        assert (await carrier.carry(peer))[0].verdict is DELIVERED
        return [session.verbs()[:2] for session in peer.sessions[known:]]

    assert await verbs_of_next_sessions() == [["EHLO", "STARTTLS"], ["EHLO", "MAIL"]]
    now[0] = BROKEN_SECONDS - 1
    assert await verbs_of_next_sessions() == [["EHLO", "MAIL"]]
    now[0] = BROKEN_SECONDS
    assert await verbs_of_next_sessions() == [["EHLO", "STARTTLS"], ["EHLO", "MAIL"]]
    carrier.connector.renew(CONTEXTS)
    assert await verbs_of_next_sessions() == [["EHLO", "STARTTLS"]]
    await carrier.close()


async def test_attack_32_a_name_that_a_host_refuses_is_remembered_of_that_name_alone(start, authority):
    """Whoever owns a domain says what its hosts are called; others' mail to the same address keeps its TLS."""

    def called(_socket, name, _context):
        return None if name == "peer.example" else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = served(authority, "peer.example")
    context.sni_callback = called
    peer = await start(tls=context)
    async with DnsServer() as dns:
        carrier = Carrier(nameserver=dns.address, networks=["127.0.0.0/8"])
        for name in ("evil.example", "peer.example"):
            dns.add(name, "A", "127.0.0.1")
            assert (await carrier.carry(site_of((name, peer.port), trusted=False)))[0].verdict is DELIVERED
        await carrier.close()
    assert [message.tls for message in peer.messages] == [False, True]


async def test_a_host_that_is_down_is_not_remembered_as_one_without_tls(start, carrier, certificate):
    peer = await start({"STARTTLS": [DROP], "GREETING": ["220 hello", "421 4.3.2 no"]}, tls=certificate)
    assert (await carrier.carry(peer))[0].verdict is DEFERRED
    assert (await carrier.carry(peer))[0].verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [True]


@pytest.mark.parametrize("required", REQUIRED)
async def test_what_opportunistic_mail_learnt_is_nothing_to_mail_that_needs_tls(start, knowing, authority, required):
    peer = await start({"STARTTLS": ["454 4.7.0 not now"]}, tls=served(authority, "127.0.0.1"))
    await knowing.carry(peer)
    await knowing.carry(site_of(peer, tls=required))
    assert [message.tls for message in peer.messages] == [False, True]


async def test_none_means_no_starttls(start, carrier, certificate):
    peer = await start(tls=certificate)
    assert (await carrier.carry(site_of(peer, tls=Tls.NONE)))[0].verdict is DELIVERED
    assert peer.sessions[0].verbs() == ["EHLO", "MAIL", "RCPT", "DATA"]


# --- where TLS is required ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", REQUIRED)
async def test_attack_32_starttls_stripped(start, knowing, required):
    peer = await start()
    answer = await refused_in_clear(knowing, peer, required)
    assert str(answer).startswith("451 4.7.4 127.0.0.1[")
    assert "not offered" in answer.text


@pytest.mark.parametrize("required", REQUIRED)
async def test_attack_32_ehlo_refused_so_that_nothing_is_offered(start, knowing, required):
    peer = await start({"EHLO": "502 5.5.1 what?"})
    assert (await refused_in_clear(knowing, peer, required)).enhanced == "4.7.4"


@pytest.mark.parametrize("required", REQUIRED)
@pytest.mark.parametrize("said", ["454 4.7.0 not now", "502 5.5.1 what?", "250 odd", "354 odd", "421 4.3.2 busy"])
async def test_attack_32_starttls_refused(start, knowing, certificate, required, said):
    peer = await start({"STARTTLS": said}, tls=certificate)
    answer = await refused_in_clear(knowing, peer, required)
    assert str(answer).startswith("451 4.7.4")
    assert said in answer.text
    assert len(peer.sessions) == 1


@pytest.mark.parametrize("required", REQUIRED)
@pytest.mark.parametrize("said", [DROP, RESET, SILENCE, b"220\xff\n5\n"])
async def test_attack_32_the_connection_is_lost_at_starttls(start, contexts, certificate, required, said):
    carrier = Carrier(IMPATIENT if said is SILENCE else QUICK, contexts=contexts)
    peer = await start({"STARTTLS": said}, tls=certificate)
    assert "STARTTLS" in (await refused_in_clear(carrier, peer, required)).text
    await carrier.close()


@pytest.mark.parametrize("required", REQUIRED)
async def test_attack_32_handshake_fails(start, knowing, certificate, required):
    peer = await start({"STARTTLS": BROKEN_TLS}, tls=certificate)
    answer = await refused_in_clear(knowing, peer, required)
    assert str(answer).startswith("451 4.7.5")
    assert len(peer.sessions) == 1


async def test_attack_32_handshake_without_end(certificate):
    """The peer takes the hello, says an octet now and then, and never comes to an end: the deadline does not move."""
    carrier = Carrier(Timeouts(starttls=0.5))

    async def drip(reader, writer):
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-slow\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go\r\n")
        try:
            for octet in b"\x16\x03\x03\x40\x00" + bytes(1000):
                writer.write(bytes([octet]))
                await asyncio.sleep(0.05)
        except OSError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = (await carrier.carry(site_of(("127.0.0.1", port), tls=Tls.ENCRYPT)))[0]
        assert (outcome.verdict, outcome.reply.enhanced) == (DEFERRED, "4.7.5")
        await none_is_left(carrier)
    await carrier.close()


@pytest.mark.parametrize("required", REQUIRED)
@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"2", b"250-a\r\n"])
async def test_attack_32_plaintext_behind_the_220(start, knowing, authority, required, injected):
    peer = await start(tls=served(authority, "127.0.0.1"), ahead_of_tls=injected)
    answer = await refused_in_clear(knowing, peer, required)
    assert str(answer).startswith("451 4.7.5")
    assert not any(session.tls for session in peer.sessions)


@pytest.mark.parametrize(
    ("names", "called", "trusted"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["mx.peer.example"], "mx.peer.example", True),
        (["*.peer.example"], "mx.peer.example", True),
        (["mx.peer.example"], "MX.Peer.Example", True),
        (["elsewhere.example"], "mx.peer.example", False),
        (["*.peer.example"], "a.mx.peer.example", False),
        (["mx.peer.example"], "127.0.0.1", False),
        (["127.0.0.2"], "127.0.0.1", False),
    ],
)
async def test_attack_32_wrong_host(start, knowing, authority, names, called, trusted):
    peer = await start(tls=served(authority, *names))
    host = Host(called, peer.port)
    opened = await knowing.connector.open(host, "127.0.0.1", site_of(host, tls=Tls.VERIFY), lambda address: True)
    if trusted:
        assert isinstance(opened, Connection)
        opened.close()
    else:
        assert (opened.verdict, opened.scope, opened.reply.enhanced) == (DEFERRED, SITE, "4.7.5")
        assert "mismatch" in opened.reply.text
        assert peer.sessions[0].verbs() == ["EHLO", "STARTTLS"]
        await none_is_left(knowing)


async def test_attack_32_expired(start, knowing, authority):
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    peer = await start(tls=served(authority, "127.0.0.1", not_after=yesterday))
    assert "expired" in (await refused_in_clear(knowing, peer, Tls.VERIFY)).text


async def test_attack_32_unknown_authority(start, knowing):
    peer = await start(tls=served(trustme.CA(), "127.0.0.1"))
    assert "issuer" in (await refused_in_clear(knowing, peer, Tls.VERIFY)).text


async def test_attack_32_old_tls(start, knowing, authority):
    context = served(authority, "127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    peer = await start(tls=context)
    assert (await refused_in_clear(knowing, peer)).enhanced == "4.7.5"


@pytest.mark.parametrize("required", REQUIRED)
async def test_a_host_without_the_tls_that_is_required_is_as_good_as_before_for_others(start, knowing, authority, required):
    """One domain's policy does not send another one's mail to the hosts behind."""
    first, second = await start(), await start(tls=served(authority, "127.0.0.1"))
    for terms in ({"tls": required}, {}, {"tls": required}):
        assert (await knowing.carry(site_of(first, second, **terms)))[0].verdict is DELIVERED
        knowing.pool.renew()
    assert (len(first.messages), len(second.messages)) == (1, 2)
    assert [session.verbs()[1:2] for session in first.sessions] == [["QUIT"], ["MAIL"]], "avoided where it did not serve"


async def test_encryption_alone_takes_any_certificate(start, carrier):
    peer = await start(tls=served(trustme.CA(), "elsewhere.invalid"))
    assert (await carrier.carry(site_of(peer, tls=Tls.ENCRYPT)))[0].verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [True]


async def test_the_next_host_may_have_the_tls_that_is_required(start, knowing, authority):
    stripped, whole = await start(), await start(tls=served(authority, "127.0.0.1"))
    assert (await knowing.carry(site_of(stripped, whole, tls=Tls.VERIFY)))[0].verdict is DELIVERED
    assert (len(stripped.messages), len(whole.messages)) == (0, 1)


@pytest.mark.parametrize("called", ["mx.peer.example", "127.0.0.1"])
async def test_names_are_told_in_the_handshake_and_addresses_are_not(start, carrier, authority, called):
    told = []
    context = served(authority, "mx.peer.example")
    context.sni_callback = lambda connection, name, context: told.append(name)
    peer = await start(tls=context)
    host = Host(called, peer.port)
    opened = await carrier.connector.open(host, "127.0.0.1", site_of(host), lambda address: True)
    assert isinstance(opened, Connection)
    opened.close()
    assert told == [None if called == "127.0.0.1" else called]


@pytest.mark.parametrize("called", [".peer.example", "a" * 64 + ".example", "\xe4" * 64])
async def test_a_name_that_no_handshake_can_carry_is_no_bug(start, carrier, certificate, called):
    peer = await start(tls=certificate)
    host = Host(called, peer.port)
    opened = await carrier.connector.open(host, "127.0.0.1", site_of(host, tls=Tls.ENCRYPT), lambda address: True)
    assert (opened.verdict, opened.scope, opened.reply.enhanced) == (DEFERRED, SITE, "4.7.5")
    await none_is_left(carrier)


async def test_operators_are_told_once_not_for_each_message(start, carrier, alerts):
    peer, other = await start(), await start()
    for _ in range(3):
        await refused_in_clear(carrier, peer)
    await refused_in_clear(carrier, other)
    told = alerts()
    assert [alert["host"] for alert in told] == [f"127.0.0.1[127.0.0.1]:{each.port}" for each in (peer, other)]
    assert told[0]["terms"] == "routes[0]"
    assert told[0]["reply"].startswith("451 4.7.4")


async def test_cut_off_in_the_handshake_the_connection_is_gone(start, carrier, certificate):
    peer = await start({"STARTTLS": b"220 go\r\n"}, tls=certificate)
    peer.tls = None
    reached = asyncio.Event()

    async def never(session, line):
        reached.set()
        return "220 go"

    peer.script["STARTTLS"] = never
    task = asyncio.create_task(carrier.carry(site_of(peer, tls=Tls.ENCRYPT)))
    await reached.wait()
    task.cancel()
    assert (await task)[0].verdict is DEFERRED
    await none_is_left(carrier)


# --- capabilities ------------------------------------------------------------------------------------------------------


async def test_attack_33_what_was_offered_in_clear_is_forgotten(start, carrier, certificate):
    """SIZE smaller, 8BITMIME and SMTPUTF8 gone, under TLS."""
    offered = b"250-peer.example\r\n250-SIZE 99999999\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 STARTTLS\r\n"

    def ehlo(session, line):
        return b"250-peer.example\r\n250 SIZE 30\r\n" if session.tls else offered

    peer = await start({"EHLO": ehlo}, tls=certificate)
    sent = [
        (await carrier.carry(peer, body=b"x" * 29 + b"\r\n"))[0],
        (await carrier.carry(peer, "\xe4@peer.example", body=b"A: b\r\n", smtputf8=True))[0],
    ]
    assert [outcome.reply.enhanced for outcome in sent] == ["5.3.4", "5.6.7"]
    assert (await carrier.carry(peer, body=b"A: b\r\n\r\n\xe4\r\n", eightbit=True))[0].verdict is DELIVERED
    assert "BODY" not in peer.messages[0].mail


async def test_attack_33_helo_alone_under_tls_offers_nothing(start, carrier, certificate):
    def ehlo(session, line):
        return "500 what?" if session.tls else b"250-peer.example\r\n250-PIPELINING\r\n250 STARTTLS\r\n"

    peer = await start({"EHLO": ehlo}, tls=certificate)
    assert (await carrier.carry(site_of(peer, tls=Tls.ENCRYPT)))[0].verdict is DELIVERED
    assert peer.sessions[0].verbs()[:5] == ["EHLO", "STARTTLS", "EHLO", "HELO", "MAIL"]
    assert peer.sessions[0].ahead == 0


# --- TLS from the first octet ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [Tls.OPPORTUNISTIC, *REQUIRED])
async def test_implicit_tls(start, knowing, authority, tls):
    peer = await start(tls=served(authority, "127.0.0.1"), implicit_tls=True, capabilities=CAPABILITIES)
    outcome = (await knowing.carry(site_of(Host("127.0.0.1", peer.port, implicit_tls=True), tls=tls)))[0]
    assert outcome.verdict is DELIVERED
    assert [message.tls for message in peer.messages] == [True]
    assert peer.sessions[0].verbs()[:2] == ["EHLO", "MAIL"]


@pytest.mark.parametrize("tls", [Tls.OPPORTUNISTIC, Tls.ENCRYPT])
async def test_implicit_tls_takes_any_certificate_unless_it_is_to_be_verified(start, knowing, tls):
    peer = await start(tls=served(trustme.CA(), "elsewhere.invalid"), implicit_tls=True)
    site = site_of(Host("127.0.0.1", peer.port, implicit_tls=True), tls=tls)
    assert (await knowing.carry(site))[0].verdict is DELIVERED


async def test_attack_32_implicit_tls_with_a_wrong_certificate(start, knowing, authority):
    peer = await start(tls=served(authority, "elsewhere.example"), implicit_tls=True)
    assert (await refused_in_clear(knowing, peer, Tls.VERIFY, implicit_tls=True)).enhanced == "4.7.5"


@pytest.mark.parametrize("tls", [Tls.OPPORTUNISTIC, *REQUIRED])
async def test_attack_32_a_host_in_clear_where_tls_comes_first(start, knowing, tls):
    peer = await start()
    assert (await refused_in_clear(knowing, peer, tls, implicit_tls=True)).enhanced == "4.7.5"
    assert b"EHLO" not in peer.sessions[0].raw


@pytest.mark.parametrize("said", [b"220 injected\r\n", b"220-", b"2"])
async def test_attack_32_plaintext_ahead_of_implicit_tls(start, said):
    """Read before the handshake begins, it would be taken for the greeting, and each answer for that to the next command."""
    peer = await start({"GREETING": said})
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: PipeliningProtocol(loop, lambda _: None), "127.0.0.1", peer.port)
    async with asyncio.timeout(10):
        while not (protocol._replies or protocol._parser.pending):
            await asyncio.sleep(0.01)
    assert await protocol.upgrade(CONTEXTS.any_certificate, "peer.example", 1) == "spoke in clear before TLS"
    assert peer.sessions[0].raw == b""


async def test_implicit_tls_has_a_deadline(start):
    carrier = Carrier(IMPATIENT)
    peer = await start({"GREETING": SILENCE})
    assert (await refused_in_clear(carrier, peer, Tls.OPPORTUNISTIC, implicit_tls=True)).enhanced == "4.7.5"
    await carrier.close()
