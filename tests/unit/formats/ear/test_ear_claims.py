"""EAR claims: tiers, both spellings, strictness, and that a status never claims too much."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, Nonce
from undercroft.formats.ear import (
    EAR_03,
    PROFILES,
    VERAISON_2023,
    EarAppraisal,
    EarResult,
    Tier,
    TrustClaim,
    VerifierId,
    from_claims,
    tier_of,
    to_claims,
)
from undercroft.formats.ear.claims import b64url, from_b64url

VERIFIER = VerifierId("https://undercroft.example", "undercroft 0.1.0")
NONCE = Nonce(bytes(range(32)))
APPRAISAL = EarAppraisal(
    Tier.CONTRAINDICATED,
    {TrustClaim.EXECUTABLES: 96, TrustClaim.HARDWARE: 2},
    ("policy;sha256=00",),
    NONCE,
    {"undercroft_findings": [{"id": "kernel.text"}]},
)
RESULT = EarResult(100, VERIFIER, {"demo": APPRAISAL}, 400, Tier.CONTRAINDICATED)


def test_the_example_of_the_draft_is_read() -> None:
    # draft-ietf-rats-ear-03, figure "JSON claims-set: contraindicated appraisal".
    example = {
        "eat_profile": "tag:ietf.org,2026:rats/ear#03",
        "iat": 1666529184,
        "ear_verifier_id": {
            "developer": "https://veraison-project.org",
            "build": "vts 0.0.1",
        },
        "ear_raw_evidence": "NzQ3MjY5NzM2NTYzNzQK",
        "submods": {
            "PSA": {
                "ear_status": "contraindicated",
                "ear_trustworthiness_vector": {
                    "instance-identity": 2,
                    "executables": 96,
                    "hardware": 2,
                },
                "ear_appraisal_policy_ids": ["https://veraison.example/policy/1/60a0068d"],
            }
        },
    }
    result = from_claims(example)
    assert result.submods["PSA"].status is Tier.CONTRAINDICATED
    assert result.submods["PSA"].vector[TrustClaim.EXECUTABLES] == 96
    assert result.verifier.build == "vts 0.0.1"


def test_the_older_spelling_is_written_and_read() -> None:
    older = replace(RESULT, profile=VERAISON_2023)
    claims = to_claims(older)
    submods = claims["submods"]
    assert isinstance(submods, dict)
    assert submods["demo"]["ear.status"] == "contraindicated"
    assert submods["demo"]["ear.appraisal-policy-id"] == "policy;sha256=00"
    assert claims["ear.status"] == "contraindicated"
    assert from_claims(json.loads(json.dumps(claims))) == older
    two = replace(APPRAISAL, policy_ids=("a", "b"))
    with pytest.raises(ValueError, match="one policy id"):
        to_claims(replace(older, submods={"demo": two}))


tiers = st.sampled_from(Tier)
values = st.integers(-128, 127)
appraisals = st.builds(
    lambda vector, ids, nonce, extension: EarAppraisal(
        Tier.NONE, vector, tuple(ids), nonce, extension
    ),
    st.dictionaries(st.sampled_from(TrustClaim), values, max_size=4),
    st.lists(st.text(max_size=5), max_size=1),
    st.none() | st.binary(min_size=16, max_size=64).map(Nonce),
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.integers(0, 9), max_size=2),
)
results = st.builds(
    EarResult,
    st.integers(0, 2**53 - 1),
    st.builds(VerifierId, st.text(max_size=5), st.text(max_size=5)),
    st.dictionaries(st.text(max_size=5), appraisals, min_size=1, max_size=2),
    st.none() | st.integers(0, 2**53 - 1),
    st.none() | st.just(Tier.NONE),
    st.sampled_from(list(PROFILES.values())),
)


@given(results)
def test_any_result_survives(result: EarResult) -> None:
    assert from_claims(json.loads(json.dumps(to_claims(result)))) == result


@given(values)
def test_tiers_mirror_each_other(value: int) -> None:
    # draft-ietf-rats-ar4si-06 section 2.3.2.
    expected = (
        Tier.NONE
        if -1 <= value <= 1
        else Tier.AFFIRMING
        if -32 <= value <= 31
        else Tier.WARNING
        if -96 <= value <= 95
        else Tier.CONTRAINDICATED
    )
    assert tier_of(value) is expected


@pytest.mark.parametrize("value", [-129, 128])
def test_a_value_outside_eight_bits_has_no_tier(value: int) -> None:
    with pytest.raises(ValueError, match="-128 to 127"):
        tier_of(value)


@pytest.mark.parametrize(
    ("status", "worst", "allowed"),
    [
        (Tier.AFFIRMING, 2, True),
        (Tier.AFFIRMING, 32, False),
        (Tier.AFFIRMING, 96, False),
        (Tier.AFFIRMING, 0, True),
        (Tier.WARNING, 2, True),
        (Tier.WARNING, 96, False),
        (Tier.CONTRAINDICATED, 96, True),
        (Tier.NONE, 96, True),
    ],
)
def test_a_status_is_never_better_than_its_worst_part(
    status: Tier, worst: int, *, allowed: bool
) -> None:
    vector = {TrustClaim.HARDWARE: 2, TrustClaim.EXECUTABLES: worst}
    if allowed:
        EarAppraisal(status, vector)
    else:
        with pytest.raises(ValueError, match="better than"):
            EarAppraisal(status, vector)


def test_the_overall_status_is_never_better_than_a_submod() -> None:
    with pytest.raises(ValueError, match="better than"):
        replace(RESULT, status=Tier.WARNING)


_SUBMOD: dict[str, Any] = json.loads(json.dumps(to_claims(RESULT)))["submods"]["demo"]


def changed(**changes: Any) -> dict[str, Any]:
    claims = {**json.loads(json.dumps(to_claims(RESULT))), **changes}
    return {name: value for name, value in claims.items() if value is not None}


def submod(**changes: Any) -> dict[str, Any]:
    claims = {**_SUBMOD, **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return changed(submods={"demo": kept})


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (changed(eat_profile=None), "eat_profile"),
        (changed(eat_profile="tag:example.com,2026:ear"), "do not know"),
        (changed(iat=None), "iat"),
        (changed(iat=1.0), "iat"),
        (changed(iat=-1), "2\\^53"),
        (changed(exp=1 << 53), "2\\^53"),
        (changed(exp="400"), "exp"),
        (changed(submods={}), "at least one"),
        (changed(submods={"demo": []}), "not an object"),
        (changed(submods=[]), "submods"),
        (changed(ear_verifier_id={"developer": "x"}), "build"),
        (changed(ear_status="fine"), "no such tier"),
        (changed(ear_status="affirming"), "better than"),
        (submod(ear_status=None), "ear_status"),
        (submod(ear_status=96), "ear_status"),
        (submod(ear_status="warning"), "better than"),
        (submod(ear_trustworthiness_vector={}), "not a trustworthiness vector"),
        (submod(ear_trustworthiness_vector={"mood": 2}), "not a trustworthiness vector"),
        (submod(ear_trustworthiness_vector={"hardware": True}), "hardware"),
        (submod(ear_trustworthiness_vector={"hardware": 128}), "-128 to 127"),
        (submod(ear_appraisal_policy_ids=[]), "not empty"),
        (submod(ear_appraisal_policy_ids=[1]), "not empty"),
        (submod(ear_appraisal_policy_ids="x"), "ear_appraisal_policy_ids"),
        (submod(eat_nonce="AAAA"), "16 to 64"),
        (submod(eat_nonce="A" * 21), "base64url"),
        (submod(eat_nonce="A" * 21 + "B"), "stray bits"),
        (submod(eat_nonce="=" * 24), "base64url"),
    ],
)
def test_refused(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        from_claims(claims)


def test_unknown_claims_at_the_top_are_ignored() -> None:
    assert from_claims(changed(jti="x", ear_raw_evidence="AA")) == RESULT
    assert RESULT.profile is EAR_03


@given(st.binary(max_size=40))
def test_base64url_has_one_spelling(data: bytes) -> None:
    assert from_b64url(b64url(data)) == data
