"""STARTTLS, opportunistic: used where it works, and mail goes in clear in the same attempt where it does not."""

import ssl

import pytest
import trustme

from relayd.message.outcome import Verdict
from tests.fakes.smtp_peer import BROKEN_TLS, DROP, RESET, SILENCE
from tests.integration.outbound.rig import IMPATIENT, QUICK, Carrier

DELIVERED = Verdict.DELIVERED


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
