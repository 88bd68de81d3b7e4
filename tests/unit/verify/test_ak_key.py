"""Keys are loaded strictly, and a signature of another kind than the key is never right."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from undercroft.base import HashAlgorithm, VerificationError
from undercroft.formats.tpm import (
    EccPublic,
    KeyedHashPublic,
    RsaPublic,
    Signature,
    TpmAlg,
    TpmEccCurve,
)
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.verify.ak import verify_ak
from undercroft.verify.ak_key import UnusableKeyError, load_public_key, verify_signature
from undercroft.verify.checks import Check

CHECK = Check("X1", "x.signature", "says", "source")
RSA, ECC = SimulatedAttester(AkKind.RSASSA), SimulatedAttester(AkKind.ECDSA_P256)


def rsa_area() -> RsaPublic:
    key = RSA.public.key
    assert isinstance(key, RsaPublic)
    return key


def ecc_area() -> EccPublic:
    key = ECC.public.key
    assert isinstance(key, EccPublic)
    return key


def test_an_exponent_of_zero_is_65537() -> None:
    explicit = load_public_key(replace(RSA.public, key=replace(rsa_area(), exponent=65537)))
    assert explicit == load_public_key(RSA.public)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (replace(rsa_area(), key_bits=1024), "too short"),
        (replace(rsa_area(), key_bits=3072), "the modulus has 2048 bits"),
        (replace(rsa_area(), exponent=4), "e must be"),
        (replace(ecc_area(), curve=TpmEccCurve.BN_P256), "not supported"),
        (replace(ecc_area(), y=bytes(32)), "not on the curve|curve"),
        (KeyedHashPublic(None, bytes(32)), "no public key"),
    ],
)
def test_an_unusable_key_is_refused(key: RsaPublic | EccPublic | KeyedHashPublic, why: str) -> None:
    with pytest.raises(UnusableKeyError, match=why):
        load_public_key(replace(RSA.public, key=key))


def test_p521_is_supported() -> None:
    area = replace(ecc_area(), curve=TpmEccCurve.NIST_P521, x=b"\1", y=b"\1")
    with pytest.raises(UnusableKeyError, match="curve"):
        load_public_key(replace(ECC.public, key=area))


ECDSA, RSASSA = ECC.sign(b"message"), RSA.sign(b"message")


@pytest.mark.parametrize(
    ("attester", "signature"),
    [
        (RSA, ECDSA),
        (ECC, RSASSA),
        (ECC, replace(ECDSA, scheme=TpmAlg.ECSCHNORR)),
        (ECC, replace(ECDSA, hash_alg=HashAlgorithm.SM3_256)),
    ],
)
def test_a_signature_that_does_not_fit_the_key_is_refused(
    attester: SimulatedAttester, signature: Signature
) -> None:
    with pytest.raises(VerificationError, match="does not fit") as caught:
        verify_signature(verify_ak(attester.public).key, signature, b"message", CHECK)
    assert caught.value.check == CHECK.id


@pytest.mark.parametrize("kind", AkKind)
def test_every_scheme_verifies_and_refuses_another_message(kind: AkKind) -> None:
    attester = SimulatedAttester(kind)
    key = load_public_key(attester.public)
    signature = attester.sign(b"message")
    verify_signature(key, signature, b"message", CHECK)
    with pytest.raises(VerificationError):
        verify_signature(key, signature, b"massage", CHECK)
