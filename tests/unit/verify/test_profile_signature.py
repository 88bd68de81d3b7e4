"""Whoever vouches for a profile vouches for every byte; each way in which it says no."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from undercroft.base import FormatError, VerificationError
from undercroft.formats.dsse import DsseSignature, encode_envelope, parse_envelope
from undercroft.formats.kernel.profile import (
    KernelProfile,
    PackageIdentity,
    VmlinuzIdentity,
    encode_profile,
    parse_profile,
)
from undercroft.verify.profile_signature import (
    PAYLOAD_TYPE,
    key_id,
    load_private_key,
    load_public_key,
    sign_profile,
    verify_profile,
)

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PRIVATE = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


def profile(version: str = "1") -> KernelProfile:
    package = PackageIdentity("linux", version, "amd64", "ab" * 32)
    return parse_profile(encode_profile(package, VmlinuzIdentity("cd" * 32, "6.1", ""), b"elf", {}))


def refused(envelope: bytes, *keys: Ed25519PrivateKey) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_profile(profile(), envelope, [key.public_key() for key in keys or (KEY,)])
    return caught.value.check


def test_a_profile_that_is_vouched_for() -> None:
    envelope = sign_profile(profile(), KEY)
    keys = [OTHER.public_key(), KEY.public_key()]
    assert verify_profile(profile(), envelope, keys) == key_id(KEY.public_key())


def test_another_key() -> None:
    assert refused(sign_profile(profile(), OTHER)) == "profile.signature"


def test_another_profile() -> None:
    assert refused(sign_profile(profile("2"), KEY)) == "profile.payload"


def test_an_envelope_about_something_else() -> None:
    parsed = parse_envelope(sign_profile(profile(), KEY))
    other = encode_envelope("text/plain", parsed.payload, parsed.signatures)
    assert refused(other) == "profile.payload"


def test_a_signature_that_was_changed() -> None:
    parsed = parse_envelope(sign_profile(profile(), KEY))
    broken = bytes([parsed.signatures[0].signature[0] ^ 1]) + parsed.signatures[0].signature[1:]
    other = encode_envelope(PAYLOAD_TYPE, parsed.payload, [DsseSignature("", broken)])
    assert refused(other) == "profile.signature"


def test_keys_are_read_from_pem() -> None:
    assert key_id(load_public_key(KEY.public_key().public_bytes(*PUBLIC))) == key_id(
        KEY.public_key()
    )
    loaded = load_private_key(KEY.private_bytes(*PRIVATE))
    assert key_id(loaded.public_key()) == key_id(KEY.public_key())


def test_keys_of_another_kind_are_refused() -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    for data in (b"", curve.public_key().public_bytes(*PUBLIC)):
        with pytest.raises(FormatError):
            load_public_key(data)
    for data in (b"", curve.private_bytes(*PRIVATE)):
        with pytest.raises(FormatError):
            load_private_key(data)
