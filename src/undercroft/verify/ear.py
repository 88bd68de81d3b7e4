"""Did the verifier that we trust sign this attestation result, and does it still hold?"""

from __future__ import annotations

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.base import FormatError
from undercroft.formats import strict_json
from undercroft.formats.ear import EarResult, from_claims
from undercroft.formats.ear.claims import from_b64url
from undercroft.verify.checks import Check

R1_ALGORITHM = Check("R1", "ear.algorithm", "the token is signed with ES256", "RFC 8725, 3.1")
R2_SIGNATURE = Check("R2", "ear.signature", "the verifier's key signed the token", "RFC 7515, 5.2")
R3_ISSUED = Check("R3", "ear.issued", "iat is not after now", "RFC 7519, 4.1.6")
R4_EXPIRED = Check("R4", "ear.expired", "exp is after now", "RFC 7519, 4.1.4; EAR draft 03, 3")
CHECKS = (R1_ALGORITHM, R2_SIGNATURE, R3_ISSUED, R4_EXPIRED)

ALGORITHM = "ES256"
MAX_SIZE = 16 << 20
"""Characters of the longest token that we take."""
MAX_SKEW_S = 60
"""How far the verifier's clock may run ahead of ours, in seconds."""

_NAME = "EAR JWT"


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing else is read, so nothing else may be there (``crit``, ``jwk``, ``jku``)."""

    alg: str
    kid: str = ""
    typ: str = ""


def _parts(token: str) -> tuple[bytes, bytes]:
    """Return header and payload of a compact JWS in its one canonical spelling."""
    pieces = token.split(".")
    if len(token) > MAX_SIZE or len(pieces) != 3:
        raise FormatError(_NAME, 0, "not a compact JWS", expected="header.payload.signature")
    try:
        header, payload, _ = map(from_b64url, pieces)
    except ValueError as error:
        raise FormatError(_NAME, 0, str(error)) from error
    return header, payload


def verify_ear(token: str, key: ec.EllipticCurvePublicKey, now: int) -> EarResult:
    """Return the result in ``token`` if ``key`` (P-256) signed it and it holds at ``now`` (Unix s).

    Raises FormatError, VerificationError with one of :data:`CHECKS`, or ValueError if ``key`` is
    on another curve: the caller's mistake.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"ES256 needs a P-256 key, not {key.curve.name}")
    header_bytes, payload = _parts(token)
    header = strict_json.parse(header_bytes, _Header, _NAME, limit=MAX_SIZE)
    if header.alg != ALGORITHM:
        raise R1_ALGORITHM.failed("another algorithm", expected=ALGORITHM, got=header.alg[:40])
    try:
        jwt.PyJWS().decode(token, key, algorithms=[ALGORITHM])
    except jwt.InvalidTokenError as error:
        raise R2_SIGNATURE.failed("the token is not the verifier's", got=error) from None
    result = from_claims(strict_json.parse(payload, dict, _NAME, limit=MAX_SIZE))
    if result.issued_at > now + MAX_SKEW_S:
        raise R3_ISSUED.failed(
            "the result is from the future", expected=f"at most {now}", got=result.issued_at
        )
    if result.expires_at is not None and result.expires_at <= now:
        raise R4_EXPIRED.failed(
            "the result does not hold any more",
            expected=f"after {now}",
            got=result.expires_at,
            remedy="ask the verifier for a new one",
        )
    return result
