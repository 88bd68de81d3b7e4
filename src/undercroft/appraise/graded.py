"""Judging a match: a good value counts for as much as the place it came from."""

from __future__ import annotations

from undercroft.appraise.model import Judgement, failed, passed
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.policy import ReferenceRules
from undercroft.reference.match import Difference, DifferenceKind
from undercroft.reference.model import Provenance, ReferenceValue

SHOWN = 16
"""How many expected values a finding lists at most."""


def matched(
    finding_id: str,
    summary: str,
    details: dict[str, JsonValue],
    provenances: list[Provenance],
    claim: TrustClaim,
    rules: ReferenceRules,
) -> Judgement:
    """Judge a match with reference values of these ``provenances`` (at least one)."""
    grades = sorted({p.grade for p in provenances}, key=lambda grade: grade.value)
    source = "; ".join(dict.fromkeys(map(str, provenances)))
    finding = Finding(
        finding_id,
        Outcome.PASS,
        summary,
        {**details, "grades": [grade.value for grade in grades]},
        source,
    )
    if set(grades) <= set(rules.affirm):
        return passed(finding, claim)
    return failed(finding, claim, rules.other)


def outcome_of(difference: Difference) -> Outcome:
    """FAIL only where something else is known to be right; else we cannot tell."""
    other = difference.kind is DifferenceKind.OTHER_VALUE
    return Outcome.FAIL if other else Outcome.UNKNOWN


def described(values: tuple[ReferenceValue, ...]) -> list[JsonValue]:
    """Return reference values as JSON for a finding's details, at most :data:`SHOWN`."""
    return [
        {
            "digests": [str(digest) for digest in value.digests],
            "description": value.description,
            "source": str(value.provenance),
        }
        for value in values[:SHOWN]
    ]
