"""A self-signed certificate for `relayd init` and the demonstration: enough for STARTTLS until a real one is there."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAYS = 825
"""The longest validity that Apple's clients accept of a certificate their user trusts (support.apple.com/103769)."""


def self_signed(hostname: str) -> tuple[bytes, bytes]:
    """Certificate and private key (EC P-256), both PEM, for the host name, localhost, 127.0.0.1 and ::1."""
    key = ec.generate_private_key(ec.SECP256R1())
    # X.520 allows 64 characters in a common name; the names that count are the alternative ones.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(_alternative_names(hostname), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _alternative_names(hostname: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            *map(x509.DNSName, dict.fromkeys((hostname, "localhost"))),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
    )
