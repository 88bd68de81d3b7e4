"""Appended signatures: made by another library, refused by exactly one check each."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from undercroft.base import FormatError, VerificationError
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.formats.kernel.signed_data import parse_signed_data
from undercroft.verify.ima_modsig import CHECKS, verify_modsig
from undercroft.verify.ima_signature import ImaKeyring, load_key, load_keyring

CONTENT = b"#!/bin/sh\n"
DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
Options = pkcs7.PKCS7Options
PLAIN = (Options.DetachedSignature, Options.Binary, Options.NoAttributes, Options.NoCerts)
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def certificate(key: Key, serial: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "build")])
    day = dt.datetime(2024, 1, 1)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(day)
        .not_valid_after(day + dt.timedelta(days=9999))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


RSA_CERTIFICATE, EC_CERTIFICATE = certificate(RSA_KEY, 7), certificate(EC_KEY, 8)
OTHER_CERTIFICATE = certificate(OTHER_KEY, 9)
KEYRING = load_keyring(
    [("rsa", RSA_CERTIFICATE.public_bytes(DER)), ("ec", EC_CERTIFICATE.public_bytes(DER))]
)


def signed(
    certificate: x509.Certificate = RSA_CERTIFICATE,
    key: Key = RSA_KEY,
    options: tuple[pkcs7.PKCS7Options, ...] = PLAIN,
    algorithm: hashes.SHA256 | hashes.SHA512 | None = None,
) -> bytes:
    builder = pkcs7.PKCS7SignatureBuilder().set_data(CONTENT)
    return builder.add_signer(certificate, key, algorithm or hashes.SHA256()).sign(DER, options)


def digest_of(data: bytes) -> FileDigest:
    return FileDigest("ima", "sha256", LinuxHash.SHA256, hashlib.sha256(data).digest())


DIGEST = digest_of(CONTENT)
WITH_ATTRIBUTES = signed(options=(Options.DetachedSignature, Options.Binary))
ATTRIBUTES = digest_of(parse_signed_data(WITH_ATTRIBUTES).attributes)


def _der(tag: int, *parts: bytes) -> bytes:
    value = b"".join(parts)
    long = len(value).to_bytes(2, "big")
    size = bytes((len(value),)) if len(value) < 0x80 else b"\x82" + long
    return bytes((tag,)) + size + value


def by_key_identifier() -> bytes:
    """Return what `openssl cms -sign -keyid` writes: a version 3 SignerInfo (RFC 5652, 5.3)."""
    key_id = KEYRING.keys[0].certified
    assert key_id is not None
    sha256 = _der(0x30, _der(6, bytes.fromhex("608648016503040201")))
    info = _der(
        0x30,
        _der(2, b"\3"),
        _der(0x80, key_id[2]),
        sha256,
        _der(0x30, _der(6, bytes.fromhex("2a864886f70d010101"))),
        _der(4, RSA_KEY.sign(CONTENT, padding.PKCS1v15(), hashes.SHA256())),
    )
    data = _der(0x30, _der(6, bytes.fromhex("2a864886f70d010701")))
    message = _der(0x30, _der(2, b"\3"), _der(0x31, sha256), data, _der(0x31, info))
    return _der(0x30, _der(6, bytes.fromhex("2a864886f70d010702")), _der(0xA0, message))


@pytest.mark.parametrize(
    ("certificate", "key", "index"), [(RSA_CERTIFICATE, RSA_KEY, 0), (EC_CERTIFICATE, EC_KEY, 1)]
)
def test_the_named_certificate_signed_the_content(
    certificate: x509.Certificate, key: Key, index: int
) -> None:
    verified = verify_modsig(signed(certificate, key), DIGEST, KEYRING)
    assert verified.key is KEYRING.keys[index]
    assert (verified.algorithm, verified.content) == (LinuxHash.SHA256, DIGEST.value)


def test_signed_attributes_lead_to_the_content() -> None:
    verified = verify_modsig(WITH_ATTRIBUTES, ATTRIBUTES, KEYRING)
    assert verified.content == DIGEST.value


def test_a_signer_named_by_key_identifier() -> None:
    assert verify_modsig(by_key_identifier(), DIGEST, KEYRING).key is KEYRING.keys[0]


def test_a_bare_key_has_no_name_and_is_tried() -> None:
    bare = load_key(RSA_KEY.public_key().public_bytes(DER, SPKI), "bare")
    assert verify_modsig(signed(), DIGEST, ImaKeyring((bare,))).key is bare


def test_another_hash() -> None:
    value = hashlib.sha512(CONTENT).digest()
    digest = FileDigest("ima", "sha512", LinuxHash.SHA512, value)
    message = signed(algorithm=hashes.SHA512())
    assert verify_modsig(message, digest, KEYRING).algorithm is LinuxHash.SHA512


SHA1 = FileDigest("ima", "sha1", LinuxHash.SHA1, hashlib.sha1(CONTENT).digest())
OID_SHA256, OID_SHA1 = bytes.fromhex("608648016503040201"), bytes.fromhex("2b0e03021a")
REFUSED: dict[str, tuple[str, bytes, FileDigest]] = {
    "attached": ("ima.modsig-form", signed(options=PLAIN[1:]), DIGEST),
    "other-hash": ("ima.modsig-hash", signed(algorithm=hashes.SHA512()), DIGEST),
    "broken-hash": ("ima.modsig-hash", signed(), SHA1),
    "unknown-hash": ("ima.modsig-hash", signed(), replace(DIGEST, algorithm=None, name="x")),
    "violation": ("ima.modsig-hash", signed(), replace(DIGEST, value=bytes(20))),
    # The signature is over this digest, but other attributes stand in the message.
    "attributes": (
        "ima.modsig-attributes",
        WITH_ATTRIBUTES.replace(
            parse_signed_data(WITH_ATTRIBUTES).signature,
            RSA_KEY.sign(CONTENT, padding.PKCS1v15(), hashes.SHA256()),
        ),
        DIGEST,
    ),
    "key": ("ima.modsig-key", signed(OTHER_CERTIFICATE, OTHER_KEY), DIGEST),
    "content": ("ima.modsig", signed(), digest_of(b"other")),
    "named-key": ("ima.modsig", signed(RSA_CERTIFICATE, OTHER_KEY), DIGEST),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_check_says_no(case: str) -> None:
    check, message, digest = REFUSED[case]
    with pytest.raises(VerificationError) as refusal:
        verify_modsig(message, digest, KEYRING)
    assert refusal.value.check == check


def test_the_checks_are_numbered_and_each_says_no_above() -> None:
    assert [check.number for check in CHECKS] == [f"FM{n}" for n in range(1, 6)]
    assert {check.id for check in CHECKS} == {check for check, _, _ in REFUSED.values()}


def test_another_key_identifier_is_another_key() -> None:
    with pytest.raises(VerificationError) as refusal:
        verify_modsig(by_key_identifier(), DIGEST, ImaKeyring(KEYRING.keys[1:]))
    assert refusal.value.check == "ima.modsig-key"


def test_a_message_cut_short() -> None:
    with pytest.raises(FormatError):
        verify_modsig(signed()[:-1], DIGEST, KEYRING)
