"""The chain of epochs in evidence: bound by the record, judged like a fact."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft import wiring
from undercroft.appraise.interval import RANGES, UNCHANGED, interval_facts
from undercroft.appraise.kernel import appraise_kernel
from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import VerifiedEvidence, appraise, verify_evidence
from undercroft.base import Finding, HashAlgorithm, Outcome, VerificationError
from undercroft.formats.evidence import (
    Challenge,
    SecureKernelRecord,
    encode_evidence,
    parse_evidence,
)
from undercroft.formats.evidence.interval import (
    BlindWindow,
    CoveredRange,
    Epoch,
    encode_chain,
    encode_epoch,
    epoch_digest,
)
from undercroft.formats.launch import EPOCH, LAUNCH_PCRS, EpochRecord
from undercroft.formats.tpm import TpmRh
from undercroft.reference.model import ReferenceSet
from undercroft.testing.epochs import honest_epoch, lawful_change
from undercroft.testing.guest import FACTS, NOW, SELECTION, SimulatedGuest, standard_boot
from undercroft.testing.launch import launch_events, perform_launch, use_launch_key
from undercroft.verify.interval import verify_bound_chain

DEFAULT = wiring.shipped_policy("default")


def whole_epoch() -> Epoch:
    """Return an epoch that covers all that is demanded."""
    quiet = replace(honest_epoch(1), changes=(lawful_change(1),), blind=(), unsettled=0)
    ranges = tuple(CoveredRange(name, ((1, 2, 3),), bytes(32), 0) for name in RANGES)
    return replace(quiet, ranges=ranges)


def record(*facts: Finding) -> SecureKernelRecord:
    return SecureKernelRecord(1, "guest", "6.1", b"", 1, 2, ("poll",), facts)


def traps(head: object) -> Finding:
    return Finding("kernel.traps", Outcome.PASS, "quiet", {"head": head})  # type: ignore[dict-item]


def test_a_whole_quiet_chain_passes() -> None:
    (fact,) = interval_facts([whole_epoch()])
    assert (fact.id, fact.outcome) == (UNCHANGED, Outcome.PASS)
    assert "unchanged for 10.000 s" in fact.summary
    assert "1 places" in fact.summary
    assert fact.details["changes"] == 1


def test_without_epochs_nothing_is_said() -> None:
    assert interval_facts(None) == ()
    assert interval_facts([]) == ()


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"ranges": ()}, "interval.ranges"),
        ({"channels": ()}, "interval.channels"),
        ({"blind": (BlindWindow(1, 2, "", "storm"),)}, "interval.blind"),
        ({"unsettled": 1}, "interval.change"),
    ],
)
def test_what_is_not_proven_is_unknown(change: dict[str, object], check: str) -> None:
    (fact,) = interval_facts([replace(whole_epoch(), **change)])  # type: ignore[arg-type]
    assert fact.outcome is Outcome.UNKNOWN
    assert fact.details["check"] == check


def test_an_unlawful_change_fails_and_is_named() -> None:
    unlawful = replace(lawful_change(1), lawful=False, landed=False, reason="nothing patches here")
    (fact,) = interval_facts([replace(whole_epoch(), changes=(unlawful,))])
    assert fact.outcome is Outcome.FAIL
    assert "nothing patches here" in str(fact.details["seen"])
    nameless = replace(unlawful, symbol="")
    (fact,) = interval_facts([replace(whole_epoch(), changes=(nameless,))])
    assert "kernel.text at 0x" in str(fact.details["seen"])


def test_the_fact_is_judged_like_the_records_own() -> None:
    facts = interval_facts([whole_epoch()])
    found = list(appraise_kernel(record(), ReferenceSet("none"), DEFAULT, more=facts))
    assert UNCHANGED in [judgement.finding.id for judgement in found]


def test_the_record_binds_the_chain() -> None:
    chain = [encode_epoch(whole_epoch())]
    head = epoch_digest(chain[0]).hex()
    assert verify_bound_chain(encode_chain(chain), record(traps(head))) == (whole_epoch(),)


@pytest.mark.parametrize(
    "facts",
    [(), (traps(None),), (traps("00"),), (traps("z" * 64),), (traps("00" * 32), traps("00" * 32))],
)
def test_a_chain_that_no_record_names_is_refused(facts: tuple[Finding, ...]) -> None:
    data = encode_chain([encode_epoch(whole_epoch())])
    for bound in (record(*facts), None):
        with pytest.raises(VerificationError) as caught:
            verify_bound_chain(data, bound)
        assert caught.value.check == "interval.head"


def test_another_chain_than_the_named_one_is_refused() -> None:
    data = encode_chain([encode_epoch(whole_epoch())])
    with pytest.raises(VerificationError) as caught:
        verify_bound_chain(data, record(traps("00" * 32)))
    assert caught.value.check == "interval.head"
    assert "not end with" in str(caught.value)


def attested(
    shown: Epoch, named: Epoch, *, recorded: Epoch | None
) -> tuple[Appraisal, VerifiedEvidence]:
    """Collect and appraise evidence that shows one chain, names one, and has one in PCR 19."""
    head = epoch_digest(encode_epoch(named)).hex()
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False), facts=(*FACTS, traps(head)))
    challenge, log = guest.challenge(), None
    if recorded is not None:
        use_launch_key(guest.attester, TpmRh.PLATFORM)
        digest = epoch_digest(encode_epoch(recorded))
        told = EpochRecord(recorded.session, recorded.sequence, digest).encode()
        events = launch_events(b"manifest\n", [("vm-descriptor", b"a machine")], [(EPOCH, told)])
        log = perform_launch(guest.attester, events)
        pcrs = (*SELECTION[HashAlgorithm.SHA256], *LAUNCH_PCRS)
        challenge = Challenge(challenge.nonce, {HashAlgorithm.SHA256: pcrs}, NOW)
    evidence = replace(
        guest.evidence(challenge, launch_log=log), epochs=encode_chain([encode_epoch(shown)])
    )
    again = parse_evidence(encode_evidence(evidence))
    verified = verify_evidence(again, guest.trust, challenge)
    return appraise(verified, guest.predicted(), DEFAULT, NOW), verified


@pytest.mark.parametrize("recorded", [None, whole_epoch()])
def test_the_whole_way_from_evidence_to_the_result(recorded: Epoch | None) -> None:
    appraisal, verified = attested(whole_epoch(), whole_epoch(), recorded=recorded)
    assert verified.epochs == (whole_epoch(),)
    (fact,) = (fact for fact in appraisal.findings if fact.id == UNCHANGED)
    assert fact.outcome is Outcome.PASS


def test_a_chain_that_pcr_19_does_not_have_is_refused() -> None:
    other = replace(whole_epoch(), cause="another")
    with pytest.raises(VerificationError) as caught:
        attested(whole_epoch(), whole_epoch(), recorded=other)
    assert caught.value.check == "launch.chain"


def test_a_chain_that_was_exchanged_is_refused() -> None:
    with pytest.raises(VerificationError) as caught:
        attested(replace(whole_epoch(), cause="another"), whole_epoch(), recorded=None)
    assert caught.value.check == "interval.head"
