"""An EAR as a signed JWT: each check alone says no, and the spelling is the only one."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, VerificationError
from undercroft.formats.ear import EarAppraisal, EarResult, Tier, TrustClaim, VerifierId, to_claims
from undercroft.formats.ear.claims import b64url
from undercroft.verify.ear import CHECKS, verify_ear

KEY = ec.derive_private_key(11, ec.SECP256R1())
PUBLIC = KEY.public_key()
NOW = 1_000
RESULT = EarResult(
    NOW,
    VerifierId("https://undercroft.example", "0.1"),
    {"demo": EarAppraisal(Tier.AFFIRMING, {TrustClaim.EXECUTABLES: 2})},
    NOW + 300,
)


def token(
    result: EarResult = RESULT,
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    payload: bytes | None = None,
    **headers: Any,
) -> str:
    body = payload if payload is not None else json.dumps(to_claims(result)).encode()
    return jwt.PyJWS().encode(body, key, algorithm="ES256", headers=headers)


def spelled(header: bytes, payload: bytes, signature: bytes = bytes(64)) -> str:
    return ".".join(map(b64url, (header, payload, signature)))


def test_a_signed_result_is_returned() -> None:
    assert verify_ear(token(), PUBLIC, NOW) == RESULT
    assert verify_ear(token(kid="verifier", typ="eat+jwt"), PUBLIC, NOW) == RESULT
    forever = EarResult(NOW, RESULT.verifier, RESULT.submods)
    assert verify_ear(token(forever), PUBLIC, 1 << 40) == forever


def failed_check(text: str, now: int = NOW) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_ear(text, PUBLIC, now)
    return caught.value.check


def test_each_check_alone_says_no() -> None:
    payload = json.dumps(to_claims(RESULT)).encode()
    stranger = ec.derive_private_key(12, ec.SECP256R1())
    seen = [
        failed_check(spelled(b'{"alg":"none"}', payload, b"")),
        failed_check(token(key=stranger)),
        failed_check(token(), NOW - 61),
        failed_check(token(), NOW + 300),
    ]
    assert seen == [check.id for check in CHECKS]
    assert verify_ear(token(), PUBLIC, NOW - 60)
    assert verify_ear(token(), PUBLIC, NOW + 299)


def test_another_algorithm_is_refused_before_the_key_is_used() -> None:
    hmac = jwt.PyJWS().encode(b"{}", "secret" * 8, algorithm="HS256")
    assert failed_check(hmac) == "ear.algorithm"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "compact JWS"),
        ("a.b", "compact JWS"),
        ("a.b.c.d", "compact JWS"),
        ("." * (17 << 20), "compact JWS"),
        ("a=.b.c", "base64url"),
        ("\N{SNOWMAN}.b.c", "base64url"),
        (spelled(b"[]", b"{}"), "object"),
        (spelled(b'{"alg":"ES256","alg":"none"}', b"{}"), "twice"),
        (spelled(b'{"alg":"ES256","crit":["b64"]}', b"{}"), "unknown field"),
        (spelled(b'{"alg":' + b"[" * 5000, b"{}"), "deeply"),
        (token(payload=b"[]"), "object"),
        (token(payload=b'{"iat":1,"iat":2}'), "twice"),
        (token(payload=b"{}"), "eat_profile"),
    ],
    ids=range(13),  # a signature is another one every time, and would name the case
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        verify_ear(text, PUBLIC, NOW)


def test_a_key_on_another_curve_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="P-256"):
        verify_ear(token(), ec.derive_private_key(1, ec.SECP384R1()).public_key(), NOW)


@given(st.integers(min_value=0), st.characters(codec="ascii"))
def test_any_changed_character_is_refused(place: int, character: str) -> None:
    good = TOKEN
    at = place % len(good)
    bad = good[:at] + character + good[at + 1 :]
    if bad == good:
        return
    with pytest.raises((FormatError, VerificationError)):
        verify_ear(bad, PUBLIC, NOW)


TOKEN = token()
