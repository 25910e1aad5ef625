import ssl

import pytest
import trustme

from relayd import tls


@pytest.fixture
def pems(tmp_path):
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("relay.test")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.cert"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    (tmp_path / "garbage").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty").touch()
    return tmp_path


def test_listener_context(pems):
    context = tls.listener_context(pems / "one.cert", pems / "one.key")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize(
    ("certificate", "key", "file", "reason"),
    [
        ("one.cert", "two.key", "two.key", "is not the key of"),
        ("missing", "one.key", "missing", "cannot be read: No such file"),
        ("one.cert", "missing", "missing", "cannot be read: No such file"),
        ("garbage", "one.key", "garbage", "no PEM certificate"),
        ("empty", "one.key", "empty", "no PEM certificate"),
        ("one.cert", "garbage", "garbage", "no PEM private key"),
        ("one.key", "one.key", "one.key", "no PEM certificate"),
    ],
)
def test_errors_name_the_file_and_the_reason(pems, certificate, key, file, reason):
    with pytest.raises(tls.TlsError) as raised:
        tls.listener_context(pems / certificate, pems / key)
    assert raised.value.file == pems / file
    assert reason in raised.value.reason
    assert str(raised.value) == f"{raised.value.file}: {raised.value.reason}"


def test_encrypted_key_is_an_error_and_asks_nobody(pems):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((pems / "one.key").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (pems / "locked").write_bytes(locked)
    with pytest.raises(tls.TlsError, match="passphrase"):
        tls.listener_context(pems / "one.cert", pems / "locked")


def test_next_hop_context():
    assert tls.next_hop_context().verify_mode is ssl.CERT_NONE
    assert tls.next_hop_context(verify=True).check_hostname
    assert tls.next_hop_context().minimum_version is ssl.TLSVersion.TLSv1_2
