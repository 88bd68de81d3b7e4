"""Verdicts and trust vectors, and how an appraisal leaves as an EAR."""

from __future__ import annotations

from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from undercroft.appraise.ear import FINDINGS, ear_claims, ear_result, sign_ear, verify_ear
from undercroft.appraise.model import (
    EXIT_STATUS,
    Appraisal,
    Judgement,
    Layer,
    failed,
    passed,
    stated,
    vector_of,
    verdict_of,
)
from undercroft.base import Finding, Nonce, Outcome
from undercroft.formats.ear import VERAISON_2023, Tier, TrustClaim, VerifierId
from undercroft.policy import Action

VERIFIER = VerifierId("https://undercroft.example", "0.1")
GOOD = Finding("boot.pcr.4", Outcome.PASS, "fine")
BAD = Finding("kernel.text", Outcome.FAIL, "patched", {"function": "do_sys_open"}, "package: linux")
OPEN = Finding("ima.list", Outcome.UNKNOWN, "no list")


def appraisal(*judgements: Judgement) -> Appraisal:
    layers = (Layer.of(judgements[:2]), Layer.of(judgements[2:]))
    return Appraisal("demo", "default;sha256=0", "set", Nonce(bytes(16)), 100, 400, layers)


def test_nothing_shown_is_nothing_known() -> None:
    assert verdict_of([]) is Tier.NONE
    assert verdict_of([stated(GOOD)]) is Tier.NONE
    assert vector_of([stated(GOOD)]) == {}
    assert appraisal().exit_status == 4


def test_the_worst_finding_decides() -> None:
    good = passed(GOOD, TrustClaim.EXECUTABLES)
    warn = failed(OPEN, TrustClaim.FILE_SYSTEM, Action.WARN)
    unknown = failed(OPEN, TrustClaim.FILE_SYSTEM, Action.INSUFFICIENT)
    bad = failed(BAD, TrustClaim.EXECUTABLES)
    assert verdict_of([good]) is Tier.AFFIRMING
    assert verdict_of([good, warn]) is Tier.WARNING
    assert verdict_of([good, warn, unknown]) is Tier.NONE
    assert verdict_of([good, warn, unknown, bad]) is Tier.CONTRAINDICATED
    result = appraisal(good, warn, unknown, bad, stated(OPEN))
    assert result.unmet() == (bad, unknown, warn)
    assert result.findings == (GOOD, OPEN, OPEN, BAD, OPEN)


def test_exit_statuses() -> None:
    assert {tier.label: status for tier, status in EXIT_STATUS.items()} == {
        "affirming": 0,
        "contraindicated": 3,
        "warning": 4,
        "none": 4,
    }


def test_the_vector_has_the_standard_values() -> None:
    values = {
        (claim, action): vector_of([failed(OPEN, claim, action)])[claim]
        for claim, action in product(TrustClaim, Action)
    }
    assert {v for (_, action), v in values.items() if action is Action.CONTRAINDICATE} == {96}
    assert {v for (_, action), v in values.items() if action is Action.INSUFFICIENT} == {0}
    assert values[TrustClaim.EXECUTABLES, Action.WARN] == 33
    assert values[TrustClaim.INSTANCE_IDENTITY, Action.WARN] == -33
    assert values[TrustClaim.CONFIGURATION, Action.WARN] == 32


def test_a_warning_must_be_given_where_it_applies() -> None:
    judgements = [failed(OPEN, TrustClaim.FILE_SYSTEM, action) for action in Action][:2]
    assert vector_of(judgements) == {TrustClaim.FILE_SYSTEM: 32}
    assert verdict_of(judgements) is Tier.NONE


def test_executables_say_after_boot_only_if_files_and_kernel_were_judged() -> None:
    boot = passed(GOOD, TrustClaim.EXECUTABLES)
    files = passed(Finding("ima.files", Outcome.PASS, ""), TrustClaim.EXECUTABLES)
    kernel = passed(Finding("kernel.text", Outcome.PASS, ""), TrustClaim.EXECUTABLES)
    assert vector_of([boot])[TrustClaim.EXECUTABLES] == 3
    assert vector_of([boot, kernel])[TrustClaim.EXECUTABLES] == 3
    assert vector_of([boot, files])[TrustClaim.EXECUTABLES] == 3
    assert vector_of([boot, files, kernel])[TrustClaim.EXECUTABLES] == 2


findings = st.builds(
    Finding, st.sampled_from(["a.b", "ima.x", "kernel.y"]), st.sampled_from(Outcome), st.just("")
)
judgements = st.builds(
    Judgement,
    findings,
    st.none() | st.sampled_from(Tier),
    st.none() | st.sampled_from(TrustClaim),
)


@given(st.lists(judgements, max_size=6))
def test_any_appraisal_is_a_lawful_ear(found: list[Judgement]) -> None:
    result = ear_result(appraisal(*found), VERIFIER)
    assert result.status is appraisal(*found).verdict


def test_an_appraisal_is_signed_and_read_again() -> None:
    key = ec.derive_private_key(11, ec.SECP256R1())
    result = appraisal(passed(GOOD, TrustClaim.EXECUTABLES), failed(BAD, TrustClaim.EXECUTABLES))
    token = sign_ear(ear_claims(result, VERIFIER), key, "verifier-1")
    read = verify_ear(token, key.public_key(), 100)
    assert read == ear_result(result, VERIFIER)
    assert read.status is Tier.CONTRAINDICATED
    submod = read.submods["demo"]
    assert submod.vector == {TrustClaim.EXECUTABLES: 96}
    assert submod.policy_ids == ("default;sha256=0",)
    assert submod.nonce == Nonce(bytes(16))
    said = submod.extensions[FINDINGS]
    assert isinstance(said, list)
    assert said[1] == {**BAD.as_json(), "tier": "contraindicated", "claim": "executables"}
    older = ear_claims(result, VERIFIER, profile=VERAISON_2023)
    assert verify_ear(sign_ear(older, key, ""), key.public_key(), 100).profile is VERAISON_2023


def test_only_p256_signs() -> None:
    with pytest.raises(ValueError, match="P-256"):
        sign_ear({}, ec.derive_private_key(1, ec.SECP384R1()), "")
