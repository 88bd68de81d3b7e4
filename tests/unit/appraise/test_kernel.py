"""The kernel: identity against the reference set, and every fact judged by the policy."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace

import pytest
from msgspec import structs

from undercroft.appraise.kernel import appraise_kernel
from undercroft.appraise.model import Judgement, verdict_of
from undercroft.base import Finding, Grade, Outcome
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import SecureKernelRecord
from undercroft.policy import Action, SecureKernelRules, parse_policy
from undercroft.reference.model import Provenance, ReferenceSet
from undercroft.testing.guest import SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
GUEST = SimulatedGuest()
RECORD, REFERENCES = GUEST.record(), GUEST.references
NOTHING = replace(DEFAULT, secure_kernel=SecureKernelRules(()))


def judged(
    record: SecureKernelRecord | None = RECORD,
    references: ReferenceSet = REFERENCES,
    policy: object = DEFAULT,
) -> dict[str, Judgement]:
    found = appraise_kernel(record, references, policy)  # type: ignore[arg-type]
    return {judgement.finding.id: judgement for judgement in found}


def unmet(**changes: object) -> dict[str, Judgement]:
    everything = judged(**changes)  # type: ignore[arg-type]
    return {k: j for k, j in everything.items() if j.tier not in (None, Tier.AFFIRMING)}


def test_a_known_kernel_with_every_fact_passes() -> None:
    everything = judged()
    assert verdict_of(everything.values()) is Tier.AFFIRMING
    assert everything["kernel.reference"].finding.source == "package: linux-image 6.1.192-2"
    assert everything["kernel.interval"].tier is None
    assert "1.000 s" in everything["kernel.interval"].finding.summary


def test_another_kernel_fails_and_the_known_ones_are_shown() -> None:
    other = replace(RECORD, kernel_build_id=b"\x01" * 20)
    found = unmet(record=other)
    assert set(found) == {"kernel.reference"}
    assert found["kernel.reference"].tier is Tier.CONTRAINDICATED
    assert found["kernel.reference"].finding.details["expected"] == [
        {
            "release": RECORD.kernel_release,
            "build-id": "5a" * 20,
            "source": "package: linux-image 6.1.192-2",
        }
    ]
    far = unmet(record=replace(other, kernel_release="7.0"))
    assert far["kernel.reference"].finding.details["expected"]


def test_a_kernel_that_nobody_knows_or_named_cannot_be_judged() -> None:
    found = unmet(references=replace(REFERENCES, kernels=()))
    assert found["kernel.reference"].finding.outcome is Outcome.UNKNOWN
    assert found["kernel.reference"].tier is Tier.NONE
    unnamed = replace(RECORD, kernel_build_id=b"", kernel_release="")
    found = unmet(record=unnamed)
    assert found["kernel.reference"].finding.outcome is Outcome.UNKNOWN
    assert "kernel.reference" not in judged(record=unnamed, policy=NOTHING)


def test_a_kernel_known_by_observation_counts_for_less() -> None:
    seen = Provenance(Grade.OBSERVED)
    kernels = tuple(replace(kernel, provenance=seen) for kernel in REFERENCES.kernels)
    found = unmet(references=replace(REFERENCES, kernels=kernels))
    assert found["kernel.reference"].tier is Tier.WARNING


@pytest.mark.parametrize("fact", DEFAULT.secure_kernel.facts)
def test_each_demanded_fact_must_be_there_and_certain(fact: str) -> None:
    def changed(outcome: Outcome) -> SecureKernelRecord:
        facts = [structs.replace(f, outcome=outcome) if f.id == fact else f for f in RECORD.facts]
        return replace(RECORD, facts=tuple(facts))

    missing = replace(RECORD, facts=tuple(f for f in RECORD.facts if f.id != fact))
    assert {k: j.tier for k, j in unmet(record=missing).items()} == {fact: Tier.NONE}
    unknown = changed(Outcome.UNKNOWN)
    assert {k: j.tier for k, j in unmet(record=unknown).items()} == {fact: Tier.NONE}
    failed = changed(Outcome.FAIL)
    assert {k: j.tier for k, j in unmet(record=failed).items()} == {fact: Tier.CONTRAINDICATED}
    strict = replace(
        DEFAULT, secure_kernel=replace(DEFAULT.secure_kernel, unknown=Action.CONTRAINDICATE)
    )
    assert unmet(record=unknown, policy=strict)[fact].tier is Tier.CONTRAINDICATED


def test_a_fact_that_passes_once_and_fails_once_fails() -> None:
    bad = Finding("kernel.text", Outcome.FAIL, "patched")
    record = replace(RECORD, facts=(*RECORD.facts, bad))
    found = appraise_kernel(record, REFERENCES, DEFAULT)
    assert verdict_of(found) is Tier.CONTRAINDICATED


def test_facts_that_nobody_demanded_count_only_if_they_fail() -> None:
    extra = Finding("kernel.extra", Outcome.UNKNOWN, "could not tell")
    record = replace(RECORD, facts=(*RECORD.facts, extra))
    assert unmet(record=record) == {}
    assert judged(record=record)["kernel.extra"].tier is None
    failing = replace(RECORD, facts=(structs.replace(extra, outcome=Outcome.FAIL),))
    assert unmet(record=failing, policy=NOTHING)["kernel.extra"].tier is Tier.CONTRAINDICATED


def test_without_a_record_every_demanded_fact_is_missing() -> None:
    found = unmet(record=None)
    assert set(found) == set(DEFAULT.secure_kernel.facts)
    assert {j.tier for j in found.values()} == {Tier.NONE}
    assert judged(record=None, policy=NOTHING) == {}


def test_a_record_without_channels_says_so() -> None:
    interval = judged(record=replace(RECORD, channels=()))["kernel.interval"]
    assert interval.finding.outcome is Outcome.UNKNOWN
    assert "no channel" in interval.finding.summary
