"""Who collected this evidence?  The signature and freshness of an EAT envelope.

The quote inside is verified by itself; the envelope's signature does not replace the quote's.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm

from undercroft.base import Nonce
from undercroft.formats.evidence.eat import CoseAlgorithm, EatClaims, UnverifiedEat
from undercroft.verify.checks import Check

T1_KEY = Check(
    "T1",
    "eat.algorithm",
    "the algorithm is the one of the collector's key: ES256 on P-256, ES384 on P-384",
    "RFC 9053, 2.1",
)
T2_SIGNATURE = Check(
    "T2", "eat.signature", "the collector's key signed the claims", "RFC 9052, 4.4"
)
T3_NONCE = Check("T3", "eat.nonce", "eat_nonce is the challenge's", "RFC 9711, 4.1")
T4_TIME = Check("T4", "eat.time", "iat is not after now", "RFC 9711, 4.3.1")
CHECKS = (T1_KEY, T2_SIGNATURE, T3_NONCE, T4_TIME)

MAX_SKEW_S = 60
"""How far a collector's clock may run ahead of ours, in seconds."""

_CURVES: dict[CoseAlgorithm, tuple[type[ec.EllipticCurve], HashAlgorithm]] = {
    CoseAlgorithm.ES256: (ec.SECP256R1, SHA256()),
    CoseAlgorithm.ES384: (ec.SECP384R1, SHA384()),
}


def verify_eat(
    eat: UnverifiedEat, key: ec.EllipticCurvePublicKey, nonce: Nonce, now: int
) -> EatClaims:
    """Return the claims of ``eat`` if ``key`` signed them for ``nonce`` (``now`` in Unix s).

    Raises VerificationError with one of :data:`CHECKS`.
    """
    curve, digest = _CURVES[eat.algorithm]
    if not isinstance(key.curve, curve):
        raise T1_KEY.failed(
            "the envelope's algorithm is not the key's", expected=key.curve.name, got=curve.name
        )
    half = eat.algorithm.signature_size // 2
    r, s = (int.from_bytes(part, "big") for part in (eat.signature[:half], eat.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), eat.signed_bytes, ec.ECDSA(digest))
    except InvalidSignature:
        raise T2_SIGNATURE.failed("the signature is not the collector's") from None
    if not nonce.matches(eat.claims.nonce.value):
        raise T3_NONCE.failed(
            "the envelope answers another challenge", expected=nonce, got=eat.claims.nonce
        )
    if eat.claims.issued_at > now + MAX_SKEW_S:
        raise T4_TIME.failed(
            "the envelope is from the future", expected=f"at most {now}", got=eat.claims.issued_at
        )
    return eat.claims
