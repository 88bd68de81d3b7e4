from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import NameOID

from undercroft.base import FormatError, VerificationError
from undercroft.formats.ima import FileDigest, ImaSignature, LinuxHash, SignatureType
from undercroft.verify.ima_signature import (
    CHECKS,
    ImaKeyring,
    load_key,
    load_keyring,
    verify_ima_signature,
)

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
SPKI, DER, PEM = (
    serialization.PublicFormat.SubjectPublicKeyInfo,
    serialization.Encoding.DER,
    serialization.Encoding.PEM,
)
RSA_PUBLIC = RSA_KEY.public_key().public_bytes(DER, SPKI)
EC_PUBLIC = EC_KEY.public_key().public_bytes(PEM, SPKI)
KEYRING = load_keyring([("rsa", RSA_PUBLIC), ("ec", EC_PUBLIC)])
DIGEST = FileDigest("ima", "sha256", LinuxHash.SHA256, hashlib.sha256(b"content").digest())
VERITY = replace(DIGEST, kind="verity")
PREHASHED = Prehashed(hashes.SHA256())


def by_rsa(hashed: bytes) -> bytes:
    return RSA_KEY.sign(hashed, padding.PKCS1v15(), PREHASHED)


def by_ec(hashed: bytes) -> bytes:
    return EC_KEY.sign(hashed, ec.ECDSA(PREHASHED))


def version_2(sign: Callable[[bytes], bytes] = by_rsa, key: int = 0) -> ImaSignature:
    return ImaSignature(
        SignatureType.EVM_IMA_XATTR_DIGSIG,
        2,
        LinuxHash.SHA256,
        KEYRING.keys[key].key_id,
        sign(DIGEST.value),
    )


def version_3(sign: Callable[[bytes], bytes] = by_rsa, key: int = 0) -> ImaSignature:
    file_id = hashlib.sha256(bytes([6, 4]) + VERITY.value).digest()
    return ImaSignature(
        SignatureType.IMA_VERITY_DIGSIG,
        3,
        LinuxHash.SHA256,
        KEYRING.keys[key].key_id,
        sign(file_id),
    )


@pytest.mark.parametrize(("sign", "key"), [(by_rsa, 0), (by_ec, 1)], ids=["rsa", "ecdsa"])
def test_signatures_over_the_files_digest(sign: Callable[[bytes], bytes], key: int) -> None:
    verified = verify_ima_signature(version_2(sign, key), DIGEST, KEYRING)
    assert verified.key is KEYRING.keys[key]
    assert (verified.digest, verified.version) == (DIGEST, 2)


@pytest.mark.parametrize(("sign", "key"), [(by_rsa, 0), (by_ec, 1)], ids=["rsa", "ecdsa"])
def test_signatures_over_a_file_id(sign: Callable[[bytes], bytes], key: int) -> None:
    verified = verify_ima_signature(version_3(sign, key), VERITY, KEYRING)
    assert verified.version == 3


@pytest.mark.parametrize("hash_name", ["sha224", "sha384", "sha512"])
def test_other_hashes(hash_name: str) -> None:
    algorithm = LinuxHash.from_name(hash_name.encode())
    assert algorithm is not None
    digest = FileDigest("ima", hash_name, algorithm, hashlib.new(hash_name, b"x").digest())
    made = {"sha224": hashes.SHA224(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
    signed = RSA_KEY.sign(b"x", padding.PKCS1v15(), made[hash_name])
    signature = replace(version_2(), hash_algorithm=algorithm, signature=signed)
    assert verify_ima_signature(signature, digest, KEYRING).key is KEYRING.keys[0]


def test_two_keys_with_one_id_are_both_tried() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    wrong = replace(KEYRING.keys[0], public_key=other)
    verified = verify_ima_signature(version_2(), DIGEST, ImaKeyring((wrong, KEYRING.keys[0])))
    assert verified.key is KEYRING.keys[0]


SHA1 = FileDigest("ima", "sha1", LinuxHash.SHA1, hashlib.sha1(b"content").digest())
REFUSED: dict[str, tuple[str, ImaSignature, FileDigest]] = {
    "other-content": (
        "ima.signature",
        version_2(),
        replace(DIGEST, value=hashlib.sha256(b"other").digest()),
    ),
    "flipped": ("ima.signature", replace(version_2(), signature=bytes(256)), DIGEST),
    "empty": ("ima.signature", replace(version_2(), signature=b""), DIGEST),
    "other-key": (
        "ima.signature",
        replace(version_2(), claimed_key_id=KEYRING.keys[1].key_id),
        DIGEST,
    ),
    "unknown-key": ("ima.signature-key", replace(version_2(), claimed_key_id=b"none"), DIGEST),
    "evm": (
        "ima.signature-type",
        replace(version_2(), type=SignatureType.EVM_XATTR_PORTABLE_DIGSIG),
        DIGEST,
    ),
    "verity-digest-version-2": ("ima.signature-kind", version_2(), VERITY),
    "plain-digest-version-3": ("ima.signature-kind", version_3(), DIGEST),
    "plain-type-version-3": ("ima.signature-kind", replace(version_2(), version=3), DIGEST),
    "verity-type-version-2": ("ima.signature-kind", replace(version_3(), version=2), VERITY),
    "sha1": ("ima.signature-hash", replace(version_2(), hash_algorithm=LinuxHash.SHA1), SHA1),
    "hash-of-digest": (
        "ima.signature-hash",
        replace(version_2(), hash_algorithm=LinuxHash.SHA512),
        DIGEST,
    ),
    "violation": ("ima.signature-hash", version_2(), replace(DIGEST, value=bytes(20))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_check_says_no(case: str) -> None:
    check, signature, digest = REFUSED[case]
    with pytest.raises(VerificationError) as refusal:
        verify_ima_signature(signature, digest, KEYRING)
    assert refusal.value.check == check


def test_the_checks_are_numbered_and_each_says_no_above() -> None:
    assert [check.number for check in CHECKS] == [f"F{n}" for n in range(1, 6)]
    assert {check.id for check in CHECKS} == {check for check, _, _ in REFUSED.values()}


def test_a_version_3_signature_binds_the_type() -> None:
    # Signed as a plain digest's hash, without the file id.
    plain = replace(version_3(), signature=by_rsa(VERITY.value))
    with pytest.raises(VerificationError) as refusal:
        verify_ima_signature(plain, VERITY, KEYRING)
    assert refusal.value.check == "ima.signature"


# --- keys ------------------------------------------------------------------------------------

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "IMA key")])


def certificate(identifier: bytes | None) -> x509.Certificate:
    day = datetime.datetime(2024, 1, 1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(EC_KEY.public_key())
        .serial_number(7)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=9999))
    )
    if identifier is not None:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
    return builder.sign(EC_KEY, hashes.SHA256())


@pytest.mark.parametrize("encoding", [DER, PEM], ids=["der", "pem"])
def test_a_certificates_own_identifier_counts(encoding: serialization.Encoding) -> None:
    key = load_key(certificate(b"0123456789").public_bytes(encoding))
    assert (key.key_id, key.label) == (b"6789", "CN=IMA key")


def test_without_an_identifier_it_is_the_keys_hash() -> None:
    bits = x509.SubjectKeyIdentifier.from_public_key(EC_KEY.public_key()).digest
    key = load_key(certificate(None).public_bytes(DER), "build key")
    assert (key.key_id, key.label) == (bits[-4:], "build key")
    assert load_key(EC_PUBLIC).key_id == bits[-4:]
    assert load_key(EC_PUBLIC).label == bits.hex()
    assert load_key(EC_PUBLIC).encoded.startswith(bits[-4:])


def _twice() -> bytes:
    """A certificate whose extension stands in it twice (both identifiers have one length)."""
    day = datetime.datetime(2024, 1, 1)
    first = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x04\x02ab")
    second = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.98"), b"\x04\x02ab")
    der = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(EC_KEY.public_key())
        .serial_number(7)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=9999))
        .add_extension(first, critical=False)
        .add_extension(second, critical=False)
        .sign(EC_KEY, hashes.SHA256())
        .public_bytes(DER)
    )
    return der.replace(b"\x55\x1d\x62", b"\x55\x1d\x63")


NOT_KEYS = {
    "nothing": b"",
    "text": b"hello",
    "pem-damaged": EC_PUBLIC[:60],
    "pem-certificate-damaged": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "edwards": ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(DER, SPKI),
    "extension-twice": _twice(),
}


@pytest.mark.parametrize("case", NOT_KEYS)
def test_anything_else_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        load_key(NOT_KEYS[case])
