"""Boot: each PCR is explained by reference values, or the finding says what differs."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from undercroft.appraise.model import Appraisal, Judgement
from undercroft.appraise.pipeline import appraise, verify_evidence
from undercroft.base import Digest, Finding, Grade, HashAlgorithm, Outcome
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.formats.evidence import Challenge
from undercroft.policy import Action, Policy, Requirement, parse_policy
from undercroft.reference.model import Provenance, ReferenceSet, ReferenceValue
from undercroft.testing.guest import NOW, Measured, SimulatedGuest, standard_boot

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
GOOD = SimulatedGuest()
REFERENCES, PREDICTED = GOOD.references, GOOD.predicted()
SHA256, SHA384 = HashAlgorithm.SHA256, HashAlgorithm.SHA384


def appraised(
    guest: SimulatedGuest,
    references: ReferenceSet = REFERENCES,
    policy: Policy = DEFAULT,
    *,
    log: bool = True,
) -> Appraisal:
    challenge = guest.challenge()
    evidence = guest.evidence(challenge, eventlog=guest.log if log else None)
    return appraise(verify_evidence(evidence, guest.trust, challenge), references, policy, NOW)


def booted(boot: Sequence[Measured]) -> SimulatedGuest:
    return SimulatedGuest(boot=boot)


def unmet(appraisal: Appraisal) -> dict[str, Judgement]:
    return {judgement.finding.id: judgement for judgement in appraisal.unmet()}


def rows(finding: Finding, key: str) -> list[Any]:
    found = finding.details[key]
    assert isinstance(found, list)
    return found


BOOT = standard_boot()
KERNEL = next(i for i, one in enumerate(BOOT) if one.role == "kernel")
EVIL = replace(BOOT[KERNEL], measured=b"evil", role="", description="evil")


def test_an_unknown_event_is_named_with_index_type_and_digest() -> None:
    guest = booted([*BOOT[: KERNEL + 1], replace(EVIL, pcr=9), *BOOT[KERNEL + 1 :]])
    found = unmet(appraised(guest))
    assert set(found) == {"boot.pcr.9"}
    finding = found["boot.pcr.9"].finding
    assert finding.outcome is Outcome.FAIL
    assert found["boot.pcr.9"].tier is Tier.CONTRAINDICATED
    assert found["boot.pcr.9"].claim is TrustClaim.EXECUTABLES
    assert finding.details["unexplained"] == [
        {
            "event": KERNEL + 2,  # event 0 is the log's header
            "type": "EV_EFI_BOOT_SERVICES_APPLICATION",
            "says": "EFI application loaded, claimed from an unnamed place",
            "digest": f"sha256:{SHA256.hash(b'evil').hex()}",
            "why": "other-value",
        }
    ]
    assert f"event {KERNEL + 2}" in finding.summary


def test_a_replaced_kernel_names_what_was_expected_in_its_place() -> None:
    guest = booted([*BOOT[:KERNEL], EVIL, *BOOT[KERNEL + 1 :]])
    off = replace(DEFAULT, boot=replace(DEFAULT.boot, secure_boot=Requirement.NOT_REQUIRED))
    found = unmet(appraised(guest, policy=off))
    assert set(found) == {"boot.pcr.4"}
    finding = found["boot.pcr.4"].finding
    assert finding.outcome is Outcome.FAIL
    assert "nothing known was measured as kernel" in finding.summary
    (missing,) = rows(finding, "missing")
    assert missing["source"] == "package: linux-image 6.1.192-2"


def test_a_measurement_that_never_happened_is_noticed() -> None:
    initrd = next(i for i, one in enumerate(BOOT) if one.role == "Linux initrd")
    found = unmet(appraised(booted([*BOOT[:initrd], *BOOT[initrd + 1 :]])))
    assert set(found) == {"boot.pcr.9"}
    assert found["boot.pcr.9"].finding.outcome is Outcome.FAIL
    assert "measured as Linux initrd" in found["boot.pcr.9"].finding.summary


def test_known_events_in_another_number_or_order_are_another_boot() -> None:
    twice = booted([*BOOT, BOOT[-1]])
    assert unmet(appraised(twice, REFERENCES)) == {}
    found = unmet(appraised(twice, PREDICTED))
    assert set(found) == {"boot.pcr.5"}
    assert found["boot.pcr.5"].finding.outcome is Outcome.FAIL
    assert "not in this number or order" in found["boot.pcr.5"].finding.summary
    assert found["boot.pcr.5"].finding.details["expected"]


def test_many_differences_are_counted() -> None:
    extra = [replace(EVIL, measured=bytes([i]), pcr=9) for i in range(40)]
    finding = unmet(appraised(booted([*BOOT, *extra])))["boot.pcr.9"].finding
    assert finding.details["unexplained-count"] == 40
    assert len(rows(finding, "unexplained")) == 32
    assert "39 more events" in finding.summary


def test_without_a_log_only_predictions_tell() -> None:
    off = replace(DEFAULT, boot=replace(DEFAULT.boot, secure_boot=Requirement.NOT_REQUIRED))
    assert unmet(appraised(GOOD, PREDICTED, off, log=False)) == {}
    found = unmet(appraised(GOOD, REFERENCES, off, log=False))
    assert set(found) == {f"boot.pcr.{pcr}" for pcr in (0, 1, 2, 3, 4, 5, 6, 7, 9)}
    assert {j.tier for j in found.values()} == {Tier.NONE}
    required = unmet(appraised(GOOD, PREDICTED, log=False))
    assert set(required) == {"secureboot.log"}
    other = booted([*BOOT, replace(EVIL, pcr=9)])
    wrong = unmet(appraised(other, PREDICTED, off, log=False))
    assert wrong["boot.pcr.9"].finding.outcome is Outcome.FAIL


def test_what_no_reference_speaks_of_cannot_be_told() -> None:
    without = replace(
        REFERENCES, events={k: v for k, v in REFERENCES.events.items() if k != 3}, pcrs={}
    )
    found = unmet(appraised(GOOD, without))
    assert set(found) == {"boot.pcr.3", "boot.pcr.8", "boot.pcr.14"}
    assert {j.finding.outcome for j in found.values()} == {Outcome.UNKNOWN}
    assert {j.tier for j in found.values()} == {Tier.NONE}
    assert "nothing was measured" in found["boot.pcr.8"].finding.summary
    strict = replace(DEFAULT, boot=replace(DEFAULT.boot, unknown=Action.CONTRAINDICATE))
    assert appraised(GOOD, without, strict).verdict is Tier.CONTRAINDICATED


def test_references_of_another_bank_cannot_tell() -> None:
    def only(values: tuple[ReferenceValue, ...]) -> tuple[ReferenceValue, ...]:
        return tuple(replace(v, digests=(SHA384.digest(b""),), role="") for v in values)

    other = replace(REFERENCES, events={**REFERENCES.events, 2: only(REFERENCES.events[2])})
    finding = unmet(appraised(GOOD, other))["boot.pcr.2"].finding
    assert finding.outcome is Outcome.UNKNOWN
    assert rows(finding, "unexplained")[0]["why"] == "other-algorithm"


def test_a_pcr_or_bank_that_was_not_quoted_cannot_be_told() -> None:
    challenge = Challenge(GOOD.challenge().nonce, {SHA256: (*range(11),)}, NOW)
    verified = verify_evidence(GOOD.evidence(challenge), GOOD.trust, challenge)
    found = unmet(appraise(verified, REFERENCES, DEFAULT, NOW))
    assert set(found) == {"boot.pcr.14"}
    assert found["boot.pcr.14"].tier is Tier.NONE
    both = replace(DEFAULT, quote=replace(DEFAULT.quote, banks=(SHA256, SHA384)))
    missing = [j.finding for j in appraised(GOOD, REFERENCES, both).unmet()]
    assert len(missing) == len(DEFAULT.boot.pcrs)
    assert {f.details["bank"] for f in missing} == {"sha384"}


@pytest.mark.parametrize(
    ("other", "tier"),
    [
        (Action.WARN, Tier.WARNING),
        (Action.INSUFFICIENT, Tier.NONE),
        (Action.CONTRAINDICATE, Tier.CONTRAINDICATED),
    ],
)
def test_a_value_counts_for_as_much_as_its_grade(other: Action, tier: Tier) -> None:
    observed = Provenance(Grade.OBSERVED, note="first boot")
    events = {2: tuple(replace(v, provenance=observed) for v in REFERENCES.events[2])}
    learned = replace(REFERENCES, events={**REFERENCES.events, **events})
    policy = replace(DEFAULT, reference=replace(DEFAULT.reference, other=other))
    appraisal = appraised(GOOD, learned, policy)
    (judgement,) = appraisal.unmet()
    assert (judgement.finding.id, judgement.tier) == ("boot.pcr.2", tier)
    assert judgement.finding.outcome is Outcome.PASS
    assert judgement.finding.source == "observed: first boot"
    assert judgement.finding.details["grades"] == ["observed"]


def test_secure_boot_off_counts_if_it_is_required() -> None:
    guest = booted(standard_boot(secure_boot=False))
    references = guest.references
    required = appraised(guest, references)
    assert required.verdict is Tier.CONTRAINDICATED
    assert {j.finding.id.split(".")[0] for j in required.unmet()} == {"secureboot"}
    off = replace(DEFAULT, boot=replace(DEFAULT.boot, secure_boot=Requirement.NOT_REQUIRED))
    optional = appraised(guest, references, off)
    assert optional.verdict is Tier.AFFIRMING
    (stated,) = [f for f in optional.findings if f.id.startswith("secureboot")]
    assert stated.outcome is Outcome.UNKNOWN
    assert "not required" in stated.summary
    on = [f for f in appraised(GOOD, REFERENCES, off).findings if f.id.startswith("secureboot")]
    assert len(on) > 5


def test_an_undetermined_secure_boot_check_is_not_fine() -> None:
    authority = next(i for i, one in enumerate(BOOT) if one.role == "authority in db")
    guest = booted([*BOOT[:authority], *BOOT[authority + 1 :]])
    found = unmet(appraised(guest, guest.references))
    assert set(found) == {"secureboot.authorities"}
    assert found["secureboot.authorities"].tier is Tier.NONE


def test_a_different_value_is_shown_with_what_was_expected() -> None:
    wrong = ReferenceValue((SHA256.digest(b"other"),), "predicted", Provenance(Grade.BUILT))
    references = replace(REFERENCES, pcrs={**REFERENCES.pcrs, 14: (wrong,)})
    finding = unmet(appraised(GOOD, references))["boot.pcr.14"].finding
    assert finding.outcome is Outcome.FAIL
    assert finding.details["found"] == "00" * 32
    assert finding.details["expected"] == [
        {
            "digests": [str(Digest(SHA256, SHA256.hash(b"other")))],
            "description": "predicted",
            "source": "built",
        }
    ]
