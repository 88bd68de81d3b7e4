"""Attestation results out: an Appraisal as EAR claims, signed as a JWT."""

from __future__ import annotations

import json

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.appraise.model import Appraisal
from undercroft.base import JsonValue
from undercroft.formats.ear import (
    EAR_03,
    EarAppraisal,
    EarProfile,
    EarResult,
    VerifierId,
    to_claims,
)
from undercroft.verify.ear import ALGORITHM, verify_ear

__all__ = ["FINDINGS", "REFERENCES", "ear_claims", "ear_result", "sign_ear", "verify_ear"]

FINDINGS = "undercroft_findings"
"""Extension claim of a submod: every judgement, as JSON."""
REFERENCES = "undercroft_references"
"""Extension claim of a submod: the name of the reference set."""

TYPE = "eat+jwt"
"""JWS ``typ``: the media type application/eat+jwt (EAR draft 03, section 5)."""


def ear_result(
    appraisal: Appraisal, verifier: VerifierId, *, profile: EarProfile = EAR_03
) -> EarResult:
    """Return ``appraisal`` as an EAR with one submod, named after the guest."""
    submod = EarAppraisal(
        appraisal.verdict,
        appraisal.trust_vector,
        (appraisal.policy_id,),
        appraisal.nonce,
        {
            FINDINGS: [judgement.as_json() for judgement in appraisal.judgements],
            REFERENCES: appraisal.references,
        },
    )
    return EarResult(
        appraisal.appraised_at,
        verifier,
        {appraisal.guest: submod},
        appraisal.expires_at,
        appraisal.verdict,
        profile,
    )


def ear_claims(
    appraisal: Appraisal, verifier: VerifierId, *, profile: EarProfile = EAR_03
) -> dict[str, JsonValue]:
    """Return the EAR claims set of ``appraisal`` as a JSON object."""
    return to_claims(ear_result(appraisal, verifier, profile=profile))


def sign_ear(claims: dict[str, JsonValue], key: ec.EllipticCurvePrivateKey, key_id: str) -> str:
    """Sign ``claims`` as a JWT with ES256.  Raises ValueError if ``key`` is not on P-256."""
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"ES256 needs a P-256 key, not {key.curve.name}")
    payload = json.dumps(claims, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    headers = {"typ": TYPE, "kid": key_id}
    return jwt.PyJWS().encode(payload.encode(), key, algorithm=ALGORITHM, headers=headers)
