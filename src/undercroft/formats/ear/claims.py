"""The EAR claims set (draft-ietf-rats-ear-03, section 3) as values and as JSON claims.

Draft 03 renamed every claim (``ear.status`` became ``ear_status``) and made the policy id a list;
deployed readers still take the older names.  Both are rows of a table, :data:`PROFILES`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from undercroft.base import FormatError, JsonValue, Nonce
from undercroft.formats.ear.ar4si import Tier, TrustClaim, tier_of

FORMAT = "EAR"
MAX_TIME = 1 << 53
_B64URL = re.compile(r"[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class EarProfile:
    """One spelling of the claims, named by its ``eat_profile``."""

    uri: str
    status: str
    vector: str
    policy: str
    verifier: str
    policy_is_list: bool


EAR_03 = EarProfile(
    "tag:ietf.org,2026:rats/ear#03",
    "ear_status",
    "ear_trustworthiness_vector",
    "ear_appraisal_policy_ids",
    "ear_verifier_id",
    policy_is_list=True,
)
VERAISON_2023 = EarProfile(
    "tag:github.com,2023:veraison/ear",
    "ear.status",
    "ear.trustworthiness-vector",
    "ear.appraisal-policy-id",
    "ear.verifier-id",
    policy_is_list=False,
)
PROFILES: Mapping[str, EarProfile] = {p.uri: p for p in (EAR_03, VERAISON_2023)}


@dataclass(frozen=True, slots=True)
class VerifierId:
    """Who appraised: AR4SI section 2.2.2."""

    developer: str
    build: str


@dataclass(frozen=True, slots=True)
class EarAppraisal:
    """The appraisal of one attester.  ``extensions`` holds claims that are not the profile's.

    ``nonce`` is the one that the evidence answered, or None.
    """

    status: Tier
    vector: Mapping[TrustClaim, int]
    policy_ids: tuple[str, ...] = ()
    nonce: Nonce | None = None
    extensions: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_status(self.status, [tier_of(value) for value in self.vector.values()])


_TRUST = (Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED)
"""Tiers from more to less trust.  NONE makes no claim, so it never claims too much."""


def _check_status(status: Tier, parts: list[Tier]) -> None:
    """The status is of no higher trust than the worst part (EAR section 3.1, ear_status)."""
    worst = max((_TRUST.index(tier) for tier in parts if tier is not Tier.NONE), default=0)
    if status is not Tier.NONE and _TRUST.index(status) < worst:
        raise ValueError(f"status {status.label} is better than {_TRUST[worst].label} within")


@dataclass(frozen=True, slots=True)
class EarResult:
    """An attestation result.  Times are in seconds since the Unix epoch."""

    issued_at: int
    verifier: VerifierId
    submods: Mapping[str, EarAppraisal]
    expires_at: int | None = None
    status: Tier | None = None
    profile: EarProfile = EAR_03

    def __post_init__(self) -> None:
        if not self.submods:
            raise ValueError("an EAR has at least one submod")
        for time in (self.issued_at, self.expires_at or 0):
            if not 0 <= time < MAX_TIME:
                raise ValueError(f"a time is 0 to 2^53-1 seconds, got {time}")
        if self.status is not None:
            _check_status(self.status, [submod.status for submod in self.submods.values()])


def b64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64url(text: str) -> bytes:
    """Decode canonical base64url without padding.  Raises ValueError."""
    if not _B64URL.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(data) != text:
        raise ValueError("base64url with stray bits at its end")
    return data


def to_claims(result: EarResult) -> dict[str, JsonValue]:
    """Return the claims set as a JSON object.  Raises ValueError if the profile cannot say it."""
    profile = result.profile
    claims: dict[str, JsonValue] = {
        "eat_profile": profile.uri,
        "iat": result.issued_at,
        profile.verifier: {"developer": result.verifier.developer, "build": result.verifier.build},
        "submods": {label: _submod(sub, profile) for label, sub in result.submods.items()},
    }
    if result.expires_at is not None:
        claims["exp"] = result.expires_at
    if result.status is not None:
        claims[profile.status] = result.status.label
    return claims


def _submod(appraisal: EarAppraisal, profile: EarProfile) -> dict[str, JsonValue]:
    claims: dict[str, JsonValue] = {profile.status: appraisal.status.label}
    if appraisal.vector:
        claims[profile.vector] = {c.value: value for c, value in appraisal.vector.items()}
    ids = appraisal.policy_ids
    if ids and profile.policy_is_list:
        claims[profile.policy] = list(ids)
    elif ids:
        if len(ids) > 1:
            raise ValueError(f"{profile.uri} has room for one policy id, not {len(ids)}")
        claims[profile.policy] = ids[0]
    if appraisal.nonce is not None:
        claims["eat_nonce"] = b64url(appraisal.nonce.value)
    return {**appraisal.extensions, **claims}


def _fail(reason: str, *, expected: object = "", got: object = "") -> FormatError:
    return FormatError(FORMAT, 0, reason, expected=expected, got=got)


def _typed(claims: Mapping[str, Any], name: str, kind: type) -> Any:
    value = claims.get(name)
    if type(value) is not kind:
        got = type(value).__name__
        raise _fail(
            f"the claim {name} is missing or of another type", expected=kind.__name__, got=got
        )
    return value


def _tier(claims: Mapping[str, Any], name: str) -> Tier:
    label = _typed(claims, name, str)
    for tier in Tier:
        if tier.label == label:
            return tier
    raise _fail("no such tier", got=repr(label[:40]))


def _vector(claims: Mapping[str, Any], name: str) -> dict[TrustClaim, int]:
    if name not in claims:
        return {}
    known = {claim.value: claim for claim in TrustClaim}
    vector = _typed(claims, name, dict)
    if not vector or vector.keys() - known.keys():
        raise _fail("not a trustworthiness vector", got=sorted(vector)[:10])
    return {known[label]: _typed(vector, label, int) for label in vector}


def _policy_ids(claims: Mapping[str, Any], profile: EarProfile) -> tuple[str, ...]:
    if profile.policy not in claims:
        return ()
    if not profile.policy_is_list:
        return (_typed(claims, profile.policy, str),)
    ids = _typed(claims, profile.policy, list)
    if not ids or not all(isinstance(one, str) for one in ids):
        raise _fail("policy ids are a list of text, not empty")
    return tuple(ids)


def _nonce(claims: Mapping[str, Any]) -> Nonce | None:
    if "eat_nonce" not in claims:
        return None
    return Nonce(from_b64url(_typed(claims, "eat_nonce", str)))


def _appraisal(claims: object, profile: EarProfile) -> EarAppraisal:
    if not isinstance(claims, dict):
        raise _fail("a submod is not an object")
    ours = (profile.status, profile.vector, profile.policy, "eat_nonce")
    return EarAppraisal(
        _tier(claims, profile.status),
        _vector(claims, profile.vector),
        _policy_ids(claims, profile),
        _nonce(claims),
        {name: value for name, value in claims.items() if name not in ours},
    )


def from_claims(claims: Mapping[str, Any]) -> EarResult:
    """Read a claims set.  Raises FormatError.

    Claims of a submod that the profile does not have are kept as ``extensions``; at the top they
    are ignored, as section 4 of the draft demands.
    """
    uri = _typed(claims, "eat_profile", str)
    profile = PROFILES.get(uri)
    if profile is None:
        raise _fail("an EAR profile that we do not know", expected=[*PROFILES], got=uri[:100])
    verifier = _typed(claims, profile.verifier, dict)
    submods = _typed(claims, "submods", dict)
    try:
        return EarResult(
            _typed(claims, "iat", int),
            VerifierId(_typed(verifier, "developer", str), _typed(verifier, "build", str)),
            {label: _appraisal(submod, profile) for label, submod in submods.items()},
            _typed(claims, "exp", int) if "exp" in claims else None,
            _tier(claims, profile.status) if profile.status in claims else None,
            profile,
        )
    except ValueError as error:
        raise _fail(str(error)) from error
