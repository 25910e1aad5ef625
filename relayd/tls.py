"""TLS contexts, made in one place: TLS 1.2 at least, no renegotiation, no compression.

Knows nothing of listeners or next hops; raises `TlsError`, which names the file, for whoever shows it to the operator.
Used by service (listeners), outbound (next hops) and `relayd check`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

Context = ssl.SSLContext


class TlsError(Exception):
    """A certificate or key cannot be used: `file` and `reason` say which and why."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


def listener_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """The context of the listeners, from PEM files; TlsError when they cannot be read or do not belong together."""
    _check_certificate(certificate)
    _check_private_key(private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1  # a client that resumes uses the newest; each costs 25 µs of a handshake
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise TlsError(private_key, f"is not the key of {certificate}") from None
        raise TlsError(certificate, f"cannot be loaded with {private_key}: {error}") from None
    return context


class NextHopContexts(msgspec.Struct, frozen=True):
    """The contexts towards next hops: one for any certificate, one for those of the system's authorities alone."""

    any_certificate: ssl.SSLContext
    verified: ssl.SSLContext


def next_hop_contexts() -> NextHopContexts:
    """Both, with the system's authorities as they are now."""
    return NextHopContexts(next_hop_context(), next_hop_context(verify=True))


def next_hop_context(*, verify: bool = False) -> ssl.SSLContext:
    """The context towards next hops. Opportunistic (RFC 7435) unless `verify`: any certificate is better than clear."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_certificate(file: Path) -> None:
    try:
        x509.load_pem_x509_certificates(_read(file))
    except ValueError:
        raise TlsError(file, "holds no PEM certificate that can be parsed") from None


def _check_private_key(file: Path) -> None:
    try:
        load_pem_private_key(_read(file), password=None)
    except TypeError:
        raise TlsError(file, "is encrypted; relayd needs a key without a passphrase") from None
    except ValueError:
        raise TlsError(file, "holds no PEM private key that can be parsed") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsError(file, f"cannot be read: {error.strerror}") from None
