"""What an appraisal says: judgements, one verdict, one trustworthiness vector.

What is made anew in every appraisal of every guest is an msgspec struct: as frozen as a dataclass,
and made in an eighth of the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from undercroft.base import Finding, JsonValue, Nonce
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.formats.ear.ar4si import (
    APPROVED,
    APPROVED_BOOT,
    CONTRAINDICATED,
    NO_CLAIM,
    NON_STANDARD_WARNING,
    UNRECOGNIZED,
)
from undercroft.policy import Action

TIER_OF_ACTION: Final[Mapping[Action, Tier]] = {
    Action.WARN: Tier.WARNING,
    Action.INSUFFICIENT: Tier.NONE,
    Action.CONTRAINDICATE: Tier.CONTRAINDICATED,
}

EXIT_STATUS: Final[Mapping[Tier, int]] = {
    Tier.AFFIRMING: 0,
    Tier.CONTRAINDICATED: 3,
    Tier.WARNING: 4,
    Tier.NONE: 4,
}
"""The command line's exit status for a verdict: only an affirmed machine gives 0."""


class Judgement(msgspec.Struct, frozen=True):
    """A finding and what it does.

    ``tier`` is what it does to the verdict, None for a finding that is only stated (what is
    absent and not required).  ``claim`` is the AR4SI claim it speaks to, or None.
    """

    finding: Finding
    tier: Tier | None
    claim: TrustClaim | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """Return the finding as a JSON object, with ``tier`` and ``claim``."""
        return {
            **self.finding.as_json(),
            "tier": self.tier.label if self.tier else None,
            "claim": self.claim.value if self.claim else None,
        }


def passed(finding: Finding, claim: TrustClaim | None) -> Judgement:
    """Judge a finding whose outcome is PASS."""
    return Judgement(finding, Tier.AFFIRMING, claim)


def failed(
    finding: Finding, claim: TrustClaim | None, action: Action = Action.CONTRAINDICATE
) -> Judgement:
    """Judge a finding that is not PASS by what the policy says it does."""
    return Judgement(finding, TIER_OF_ACTION[action], claim)


def stated(finding: Finding) -> Judgement:
    """Keep a finding in the result without letting it count."""
    return Judgement(finding, None)


_SEVERITY: Final = (Tier.AFFIRMING, Tier.WARNING, Tier.NONE, Tier.CONTRAINDICATED)
"""Tiers from best to worst for a verdict: what was not shown weighs more than a warning."""

_WORST_FIRST: Final = tuple(reversed(_SEVERITY))

_CLAIM_SEVERITY: Final = (Tier.AFFIRMING, Tier.NONE, Tier.WARNING, Tier.CONTRAINDICATED)
"""The same for one claim: a warning that applies must be given (AR4SI section 2.3.3)."""


def worst_of(tiers: Collection[Tier | None]) -> Tier | None:
    """Return the worst of ``tiers``, None if none of them counts."""
    for tier in _WORST_FIRST:
        if tier in tiers:
            return tier
    return None


def verdict_of(judgements: Iterable[Judgement]) -> Tier:
    """Return the worst tier; NONE if nothing counts, for nothing shown is nothing known."""
    return worst_of([judgement.tier for judgement in judgements]) or Tier.NONE


class Layer(msgspec.Struct, frozen=True):
    """Judgements that belong together; ``tier`` is the worst of them, None if none counts."""

    judgements: tuple[Judgement, ...]
    tier: Tier | None

    @classmethod
    def of(cls, judgements: Iterable[Judgement]) -> Layer:
        """Put ``judgements`` together."""
        found = tuple(judgements)
        return cls(found, worst_of([judgement.tier for judgement in found]))


def _value(claim: TrustClaim, tier: Tier) -> int:
    if tier is Tier.CONTRAINDICATED:
        return CONTRAINDICATED
    if tier is Tier.WARNING:
        special = {
            TrustClaim.INSTANCE_IDENTITY: NON_STANDARD_WARNING,
            TrustClaim.EXECUTABLES: UNRECOGNIZED,
        }
        return special.get(claim, Tier.WARNING.value)
    return APPROVED if tier is Tier.AFFIRMING else NO_CLAIM


def vector_of(judgements: Iterable[Judgement]) -> dict[TrustClaim, int]:
    """Return the trustworthiness vector: for each claim that was judged, its worst value.

    ``executables`` says 2 (during and after boot) only if files and kernel were both judged;
    else 3, what was loaded during boot.
    """
    found = tuple(judgements)
    worst: dict[TrustClaim, Tier] = {}
    # A handful of pairs, out of dozens of judgements.
    for claim, tier in {(j.claim, j.tier) for j in found}:
        if claim is not None and tier is not None:
            worst[claim] = max(worst.get(claim, tier), tier, key=_CLAIM_SEVERITY.index)
    vector = {claim: _value(claim, worst[claim]) for claim in _CLAIMS if claim in worst}
    if vector.get(TrustClaim.EXECUTABLES) == APPROVED:
        ids = [j.finding.id for j in found if j.claim is TrustClaim.EXECUTABLES]
        if not {name.partition(".")[0] for name in ids} >= _RUNTIME_LAYERS:
            vector[TrustClaim.EXECUTABLES] = APPROVED_BOOT
    return vector


_CLAIMS: Final = tuple(TrustClaim)
_RUNTIME_LAYERS: Final = frozenset({"ima", "kernel"})
"""What has to be judged, by the first part of finding ids, to speak of the time after boot."""


class Appraisal(msgspec.Struct, frozen=True):
    """The outcome of one appraisal.

    Everything in it follows from evidence, trust, challenge, references, policy and
    ``appraised_at`` (Unix s), so it can be made again from saved evidence, to the byte.
    ``expires_at`` is when it stops holding; a verdict is never kept alive past that.
    """

    guest: str
    policy_id: str
    references: str
    nonce: Nonce
    appraised_at: int
    expires_at: int
    layers: tuple[Layer, ...]

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """Every judgement, in the order of the checks."""
        return tuple([judgement for layer in self.layers for judgement in layer.judgements])

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, in the order of the checks."""
        return tuple(judgement.finding for judgement in self.judgements)

    @property
    def verdict(self) -> Tier:
        """AFFIRMING only if something was demanded and everything demanded was shown."""
        return worst_of([layer.tier for layer in self.layers]) or Tier.NONE

    @property
    def trust_vector(self) -> dict[TrustClaim, int]:
        """The AR4SI trustworthiness vector."""
        return vector_of(self.judgements)

    @property
    def exit_status(self) -> int:
        """What the command line returns for this verdict: see :data:`EXIT_STATUS`."""
        return EXIT_STATUS[self.verdict]

    def unmet(self) -> tuple[Judgement, ...]:
        """Return the judgements that keep the verdict from being affirming, worst first."""
        counting = [j for j in self.judgements if j.tier not in (None, Tier.AFFIRMING)]
        rank = {tier: at for at, tier in enumerate(_WORST_FIRST)}
        return tuple(sorted(counting, key=lambda j: rank[j.tier or Tier.NONE]))
