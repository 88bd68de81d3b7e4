"""EAR, the EAT Attestation Result: typed values and their JSON claims, and back.

The vocabulary is AR4SI (draft-ietf-rats-ar4si-06), the claims draft-ietf-rats-ear-03.  Signing is
in ``appraise.ear``, verification in ``verify.ear``; a relying party needs only that and this.
"""

from undercroft.formats.ear.ar4si import Tier, TrustClaim, tier_of
from undercroft.formats.ear.claims import (
    EAR_03,
    PROFILES,
    VERAISON_2023,
    EarAppraisal,
    EarProfile,
    EarResult,
    VerifierId,
    from_claims,
    to_claims,
)

__all__ = [
    "EAR_03",
    "PROFILES",
    "VERAISON_2023",
    "EarAppraisal",
    "EarProfile",
    "EarResult",
    "Tier",
    "TrustClaim",
    "VerifierId",
    "from_claims",
    "tier_of",
    "to_claims",
]
