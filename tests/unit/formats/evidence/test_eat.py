"""The EAT envelope: encoding, strictness, and each check of verify.eat."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from undercroft.base import FormatError, HashAlgorithm, Nonce, PcrBank, VerificationError
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue, Tagged
from undercroft.formats.evidence.collection import Evidence, QuoteItem
from undercroft.formats.evidence.eat import (
    CoseAlgorithm,
    EatClaims,
    UnverifiedEat,
    encode_eat,
    parse_eat,
)
from undercroft.verify.eat import CHECKS, verify_eat

NONCE = Nonce(bytes(range(32)))
NOW = 1_700_000_000
EVIDENCE = Evidence(
    QuoteItem(b"a", b"s", b"p", (PcrBank(HashAlgorithm.SHA256, {0: bytes(32)}),)), b"log"
)
CLAIMS = EatClaims(NONCE, NOW, EVIDENCE)
P256 = ec.derive_private_key(7, ec.SECP256R1())
P384 = ec.derive_private_key(7, ec.SECP384R1())


def signer(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    size = (key.curve.key_size + 7) // 8
    digest = SHA256() if size == 32 else SHA384()

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def signed(
    key: ec.EllipticCurvePrivateKey = P256,
    algorithm: CoseAlgorithm = CoseAlgorithm.ES256,
    claims: EatClaims = CLAIMS,
) -> bytes:
    return encode_eat(claims, algorithm, b"collector", signer(key))


@pytest.mark.parametrize(
    ("key", "algorithm"), [(P256, CoseAlgorithm.ES256), (P384, CoseAlgorithm.ES384)]
)
def test_what_is_signed_verifies(key: ec.EllipticCurvePrivateKey, algorithm: CoseAlgorithm) -> None:
    data = signed(key, algorithm)
    eat = parse_eat(data)
    assert eat.key_id == b"collector"
    assert verify_eat(eat, key.public_key(), NONCE, NOW) == CLAIMS
    assert encode_eat(eat.claims, eat.algorithm, eat.key_id, lambda _: eat.signature) == data


def failed_check(eat: UnverifiedEat, nonce: Nonce = NONCE, now: int = NOW) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_eat(eat, P256.public_key(), nonce, now)
    return caught.value.check


def test_each_check_alone_says_no() -> None:
    other = ec.derive_private_key(8, ec.SECP256R1())
    seen = [
        failed_check(parse_eat(signed(P384, CoseAlgorithm.ES384))),
        failed_check(parse_eat(signed(other))),
        failed_check(parse_eat(signed()), nonce=Nonce(bytes(32))),
        failed_check(parse_eat(signed()), now=NOW - 61),
    ]
    assert seen == [check.id for check in CHECKS]
    assert verify_eat(parse_eat(signed()), P256.public_key(), NONCE, NOW - 60) == CLAIMS


@pytest.mark.parametrize("place", [40, 90, -1])
def test_a_flipped_bit_does_not_verify(place: int) -> None:
    data = bytearray(signed())
    data[place] ^= 1
    with pytest.raises((FormatError, VerificationError)):
        verify_eat(parse_eat(bytes(data)), P256.public_key(), NONCE, NOW)


def test_times_out_of_range_cannot_be_stated() -> None:
    for time in (-1, 1 << 53):
        with pytest.raises(ValueError, match="iat"):
            EatClaims(NONCE, time, EVIDENCE)


def parts() -> tuple[bytes, bytes, bytes]:
    decoded = cbor.decode(signed(), "eat", tags=frozenset({61, 18}))
    protected, _, payload, signature = decoded.value.value
    return protected, payload, signature


def envelope(**changes: CborValue) -> bytes:
    protected, payload, signature = parts()
    values = {"protected": protected, "unprotected": {}, "payload": payload, "signature": signature}
    return cbor.encode(Tagged(61, Tagged(18, [*{**values, **changes}.values()])))


def claims(changes: dict[int, CborValue]) -> bytes:
    value = {**cbor.decode(parts()[1], "claims"), **changes}
    return envelope(payload=cbor.encode({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (cbor.encode(Tagged(18, [b"", {}, b"", b""])), "not a CWT"),
        (envelope(unprotected={4: b""}), "unprotected"),
        (envelope(payload=None), "not a CWT"),
        (envelope(signature=bytes(63)), "another length"),
        (envelope(protected=cbor.encode({1: -7})), "protected header"),
        (envelope(protected=cbor.encode({1: -7.0, 4: b""})), "protected header"),
        (envelope(protected=cbor.encode({1: -8, 4: b""})), "protected header"),
        (envelope(protected=cbor.encode({1: -7, 2: [], 4: b""})), "protected header"),
        (envelope(payload=cbor.encode([])), "not all there"),
        (claims({6: None}), "not all there"),
        (claims({6: True}), "does not have"),
        (claims({6: -1}), "iat"),
        (claims({1: "issuer"}), "does not have"),
        (claims({10: bytes(8)}), "nonce"),
        (claims({265: "tag:example.com,2026:x"}), "profile"),
        (claims({299: 5}), "not an evidence"),
        (claims({299: ["text/plain", b""]}), "not an evidence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_eat(data)
