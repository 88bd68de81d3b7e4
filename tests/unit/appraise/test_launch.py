"""Which secure kernel spoke, since when, for which machine: judged against references."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft import wiring
from undercroft.appraise.launch import MACHINE_FACTS
from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import appraise, verify_evidence
from undercroft.base import Finding, HashAlgorithm, Outcome, VerificationError
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Challenge, Evidence
from undercroft.formats.launch import (
    EPOCH,
    FINDING,
    LAUNCH_PCRS,
    EpochRecord,
    LaunchEvent,
    finding_record,
)
from undercroft.formats.tpm import TpmRh
from undercroft.reference.launch import launch_references
from undercroft.reference.model import Grade, Provenance, ReferenceSet, merge
from undercroft.testing.guest import FACTS, NOW, SELECTION, SimulatedGuest, standard_boot
from undercroft.testing.launch import launch_events, perform_launch, use_launch_key

POLICY = wiring.shipped_policy("direct-boot")
HERE = Provenance(Grade.BUILT, note="computed here")
IDENTITIES = {"vm-descriptor": (b"a machine", HERE)}
COMPARED = (*FACTS, *(Finding(fact, Outcome.PASS, "as described") for fact in MACHINE_FACTS))
KNOWN = launch_references([(b"manifest\n", HERE)], IDENTITIES)
GOOD = launch_events(b"manifest\n", [("vm-descriptor", b"a machine")])


def challenge_of(guest: SimulatedGuest) -> Challenge:
    pcrs = (*SELECTION[HashAlgorithm.SHA256], *LAUNCH_PCRS)
    return Challenge(guest.challenge().nonce, {HashAlgorithm.SHA256: pcrs}, NOW)


def collected(
    events: tuple[LaunchEvent, ...],
    facts: tuple[Finding, ...] = COMPARED,
    hierarchy: TpmRh | None = TpmRh.PLATFORM,
) -> tuple[SimulatedGuest, Challenge, Evidence]:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False), facts=facts)
    if hierarchy is not None:
        use_launch_key(guest.attester, hierarchy)
    log = perform_launch(guest.attester, events) if events else None
    challenge = challenge_of(guest)
    return guest, challenge, guest.evidence(challenge, launch_log=log)


def appraised(
    events: tuple[LaunchEvent, ...],
    known: ReferenceSet | None = KNOWN,
    facts: tuple[Finding, ...] = COMPARED,
    hierarchy: TpmRh | None = TpmRh.PLATFORM,
) -> Appraisal:
    guest, challenge, evidence = collected(events, facts, hierarchy)
    references = guest.predicted()
    if known is not None:
        references = merge("test", (references, known))
    verified = verify_evidence(evidence, guest.trust, challenge)
    return appraise(verified, references, POLICY, NOW)


def found(appraisal: Appraisal) -> dict[str, Finding]:
    return {f.id: f for f in appraisal.findings if f.id.startswith("launch.")}


def test_a_known_launch_is_affirmed() -> None:
    appraisal = appraised(GOOD)
    assert appraisal.verdict is Tier.AFFIRMING
    assert {i: f.outcome for i, f in found(appraisal).items()} == {
        "launch.start": Outcome.PASS,
        "launch.key": Outcome.PASS,
        "launch.manifest": Outcome.PASS,
        "launch.vm-descriptor": Outcome.PASS,
        "launch.records": Outcome.PASS,
    }


def test_another_secure_kernel_contraindicates() -> None:
    appraisal = appraised(launch_events(b"evil\n", [("vm-descriptor", b"a machine")]))
    assert appraisal.verdict is Tier.CONTRAINDICATED
    assert found(appraisal)["launch.manifest"].outcome is Outcome.FAIL


def test_another_machine_contraindicates() -> None:
    appraisal = appraised(launch_events(b"manifest\n", [("vm-descriptor", b"b machine")]))
    assert appraisal.verdict is Tier.CONTRAINDICATED
    assert found(appraisal)["launch.vm-descriptor"].outcome is Outcome.FAIL


def test_an_identity_that_was_not_measured_contraindicates() -> None:
    appraisal = appraised(launch_events(b"manifest\n"))
    assert appraisal.verdict is Tier.CONTRAINDICATED
    assert found(appraisal)["launch.vm-descriptor"].outcome is Outcome.FAIL


@pytest.mark.parametrize("reason", ["attach", "restore"])
def test_a_launch_beside_a_machine_that_ran_already_is_not_enough(reason: str) -> None:
    identities = [("vm-descriptor", b"a machine")]
    appraisal = appraised(launch_events(b"manifest\n", identities, reason=reason))
    assert appraisal.verdict is Tier.NONE
    assert found(appraisal)["launch.start"].outcome is Outcome.UNKNOWN


def test_no_launch_is_not_enough_where_one_is_known() -> None:
    appraisal = appraised(())
    assert appraisal.verdict is Tier.NONE
    assert found(appraisal)["launch.manifest"].outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("events", [(), GOOD])
def test_without_a_reference_a_launch_is_only_stated(events: tuple[LaunchEvent, ...]) -> None:
    appraisal = appraised(events, known=None)
    assert appraisal.verdict is Tier.AFFIRMING
    assert found(appraisal)["launch.manifest"].outcome is Outcome.UNKNOWN


def test_a_key_that_the_guest_can_use_contraindicates() -> None:
    appraisal = appraised(GOOD, hierarchy=None)
    assert appraisal.verdict is Tier.CONTRAINDICATED
    assert found(appraisal)["launch.key"].outcome is Outcome.FAIL
    assert appraised(GOOD, known=None, hierarchy=None).verdict is Tier.AFFIRMING


def test_a_key_that_was_made_after_the_firmware_closed_the_platform_is_not_enough() -> None:
    appraisal = appraised(GOOD, hierarchy=TpmRh.ENDORSEMENT)
    assert appraisal.verdict is Tier.NONE
    assert found(appraisal)["launch.key"].outcome is Outcome.UNKNOWN


def test_without_a_known_descriptor_nobody_has_to_compare() -> None:
    known = launch_references([(b"manifest\n", HERE)], {"guest-kernel": (b"6.1", HERE)})
    events = launch_events(b"manifest\n", [("guest-kernel", b"6.1")])
    assert appraised(events, known, facts=FACTS).verdict is Tier.AFFIRMING


def test_a_machine_that_nobody_compared_is_not_enough() -> None:
    assert appraised(GOOD, facts=FACTS).verdict is Tier.NONE
    assert appraised(GOOD, facts=COMPARED[:-1]).verdict is Tier.NONE


def test_what_was_found_once_stays_found() -> None:
    wrong = Finding("kernel.text", Outcome.FAIL, "a function was patched")
    identities = [("vm-descriptor", b"a machine")]
    records = [("epoch", b"1"), (FINDING, finding_record(wrong))]
    appraisal = appraised(launch_events(b"manifest\n", identities, records))
    assert appraisal.verdict is Tier.CONTRAINDICATED
    kept = found(appraisal)["launch.records"]
    assert "kernel.text" in kept.summary
    assert kept.details["findings"] == ["kernel.text\na function was patched"]
    assert (
        appraised(launch_events(b"manifest\n", identities, records[:1])).verdict is Tier.AFFIRMING
    )


def test_a_device_that_appeared_contraindicates() -> None:
    appeared = Finding("descriptor.devices", Outcome.FAIL, "chardev/x appeared")
    facts = (*(fact for fact in COMPARED if fact.id != appeared.id), appeared)
    assert appraised(GOOD, facts=facts).verdict is Tier.CONTRAINDICATED


def test_a_launch_log_that_the_quote_does_not_bind_is_refused() -> None:
    guest, challenge, evidence = collected(GOOD, COMPARED)
    for log in (None, b""):
        with pytest.raises(VerificationError) as caught:
            verify_evidence(replace(evidence, launch_log=log), guest.trust, challenge)
        assert caught.value.check == "quote.nonce"


def epochs(session: int, count: int) -> list[tuple[str, bytes]]:
    return [
        (EPOCH, EpochRecord(bytes([session]) * 16, number, bytes(32)).encode())
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("records", "outcome", "says"),
    [
        (epochs(1, 3), Outcome.PASS, "to number 3, of one run"),
        (epochs(1, 3) + epochs(2, 1), Outcome.UNKNOWN, "started 2 times"),
    ],
)
def test_what_the_write_traps_covered_is_stated(
    records: list[tuple[str, bytes]], outcome: Outcome, says: str
) -> None:
    events = launch_events(b"manifest\n", [("vm-descriptor", b"a machine")], records)
    finding = found(appraised(events))["launch.epochs"]
    assert (finding.outcome, says in finding.summary) == (outcome, True)
