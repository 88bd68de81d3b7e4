"""The whole pipeline on a simulated guest: each check of authenticity alone says no."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.appraise.pipeline import appraise, judge_of, verify_evidence
from undercroft.appraise.verified import CHECKS
from undercroft.base import (
    FormatError,
    HashAlgorithm,
    Nonce,
    Outcome,
    PcrBank,
    VerificationError,
)
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    encode_evidence,
    encode_record,
    parse_evidence,
)
from undercroft.policy import (
    BootRules,
    FileRules,
    Policy,
    Requirement,
    SecureKernelRules,
    parse_policy,
)
from undercroft.reference.model import ReferenceSet
from undercroft.testing.attester import AkKind, SimulatedAttester
from undercroft.testing.guest import NOW, SELECTION, SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)
GUEST = SimulatedGuest()
CHALLENGE = GUEST.challenge()
EVIDENCE = GUEST.evidence(CHALLENGE)
VERIFIED = verify_evidence(EVIDENCE, GUEST.trust, CHALLENGE)
SHA256 = HashAlgorithm.SHA256


def test_a_good_guest_is_affirmed_by_the_default_policy() -> None:
    for references in (GUEST.references, GUEST.predicted()):
        appraisal = appraise(VERIFIED, references, DEFAULT, NOW + 1)
        assert appraisal.unmet() == ()
        assert appraisal.verdict is Tier.AFFIRMING
        assert appraisal.exit_status == 0
        assert appraisal.expires_at == NOW + DEFAULT.result.validity_s
        assert set(appraisal.trust_vector.values()) == {2}
        assert TrustClaim.EXECUTABLES in appraisal.trust_vector


@pytest.mark.parametrize("kind", list(AkKind))
def test_every_kind_of_key_verifies(kind: AkKind) -> None:
    guest = SimulatedGuest(kind=kind)
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    appraisal = appraise(verified, guest.references, DEFAULT, NOW)
    weak = "SHA1" in kind.name
    assert appraisal.verdict is (Tier.WARNING if weak else Tier.AFFIRMING)
    ids = {j.finding.id for j in appraisal.unmet()}
    assert ids == ({"quote.strength"} if weak else set())


def test_saved_evidence_gives_the_same_appraisal_again() -> None:
    again = verify_evidence(parse_evidence(encode_evidence(EVIDENCE)), GUEST.trust, CHALLENGE)
    first = appraise(VERIFIED, GUEST.references, DEFAULT, NOW + 1)
    judge = judge_of(GUEST.references, DEFAULT)
    assert appraise(again, GUEST.references, DEFAULT, NOW + 1) == first
    assert appraise(again, GUEST.references, DEFAULT, NOW + 1, judge=judge) == first


# --- authenticity -----------------------------------------------------------------------------


def other_key() -> Evidence:
    other = SimulatedGuest()
    other.attester = SimulatedAttester(label="other")
    return replace(EVIDENCE, quote=replace(EVIDENCE.quote, claimed_ak_public=other.trust.ak_public))


def stolen_name() -> Evidence:
    """Another key signs, but the evidence names the trusted one."""
    other = SimulatedGuest()
    other.attester.private = SimulatedAttester(label="other").private
    return other.evidence(CHALLENGE)


def other_pcr_value() -> Evidence:
    (bank,) = EVIDENCE.quote.claimed_pcrs
    values = {**bank.values, 7: bytes(32)}
    item = replace(EVIDENCE.quote, claimed_pcrs=(PcrBank(SHA256, values),))
    return replace(EVIDENCE, quote=item)


def other_selection() -> Evidence:
    selection = {SHA256: (*range(10), 14)}
    return GUEST.evidence(replace(CHALLENGE, selection=selection))


def changed_log() -> Evidence:
    boot = (*GUEST.boot[:2], *GUEST.boot[3:])
    return GUEST.evidence(CHALLENGE, eventlog=SimulatedGuest(boot=boot).log)


def short_ima() -> Evidence:
    longer = SimulatedGuest(files={"/usr/bin/busybox": b"busybox"})
    return GUEST.evidence(CHALLENGE, ima_list=longer.ima.binary)


def other_record() -> Evidence:
    record = encode_record(GUEST.record(at=NOW + 1))
    return replace(EVIDENCE, record=record)


def other_guest() -> Evidence:
    record = encode_record(replace(GUEST.record(), guest="another"))
    return GUEST.evidence(CHALLENGE, record=record)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (other_key, "evidence.ak"),
        (stolen_name, "quote.signature"),
        (lambda: GUEST.evidence(GUEST.challenge(nonce=bytes(32))), "quote.nonce"),
        (other_record, "quote.nonce"),
        (lambda: replace(EVIDENCE, record=None), "quote.nonce"),
        (lambda: replace(EVIDENCE, eventlog=None), "quote.nonce"),
        (lambda: replace(EVIDENCE, ima_list=None), "quote.nonce"),
        (other_selection, "quote.selection"),
        (other_pcr_value, "quote.pcr-digest"),
        (changed_log, "eventlog.replay"),
        (short_ima, "ima.pcr"),
        (lambda: GUEST.evidence(CHALLENGE, ima_list=b""), "ima.boot-aggregate-entry"),
        (other_guest, "evidence.guest"),
    ],
)
def test_each_lie_is_found_by_its_own_check(make: Callable[[], Evidence], check: str) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_evidence(make(), GUEST.trust, CHALLENGE)
    assert caught.value.check == check


def test_an_ima_list_needs_a_quoted_bank_with_its_pcr() -> None:
    challenge = Challenge(CHALLENGE.nonce, {SHA256: tuple(range(10))}, NOW)
    with pytest.raises(VerificationError) as caught:
        verify_evidence(GUEST.evidence(challenge), GUEST.trust, challenge)
    assert caught.value.check == "evidence.ima-bank"
    assert {check.id for check in CHECKS} == {"evidence.ak", "evidence.guest", "evidence.ima-bank"}


def test_the_strongest_quoted_bank_replays_the_list() -> None:
    both = {HashAlgorithm.SHA1: (10,), **SELECTION}
    challenge = Challenge(CHALLENGE.nonce, both, NOW)
    verified = verify_evidence(GUEST.evidence(challenge), GUEST.trust, challenge)
    assert verified.ima is not None
    assert verified.ima.algorithm is SHA256


def test_evidence_from_before_the_last_accepted_is_refused() -> None:
    guest = SimulatedGuest()
    old = guest.evidence(CHALLENGE)
    guest.attester.advance(1000)
    newer = verify_evidence(guest.evidence(CHALLENGE), guest.trust, CHALLENGE)
    last = newer.quote.accepted_state
    with pytest.raises(VerificationError) as caught:
        verify_evidence(old, guest.trust, CHALLENGE, last=last)
    assert caught.value.check == "quote.clock"


@pytest.mark.parametrize(
    "evidence",
    [
        GUEST.evidence(CHALLENGE, eventlog=b""),
        GUEST.evidence(CHALLENGE, eventlog=GUEST.log[:-1]),
        GUEST.evidence(CHALLENGE, ima_list=GUEST.ima.binary[:-1]),
        GUEST.evidence(CHALLENGE, record=b"\xa0"),
        replace(EVIDENCE, quote=replace(EVIDENCE.quote, attest=EVIDENCE.quote.attest[:-1])),
        replace(EVIDENCE, quote=replace(EVIDENCE.quote, signature=b"")),
    ],
    ids=["no log bytes", "log cut", "ima cut", "no record", "attest cut", "no signature"],
)
def test_broken_parts_are_format_errors_even_if_they_are_bound(evidence: Evidence) -> None:
    with pytest.raises(FormatError):
        verify_evidence(evidence, GUEST.trust, CHALLENGE)


FILE = encode_evidence(EVIDENCE)


@settings(max_examples=300)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_refused(place: int, mask: int) -> None:
    data = bytearray(FILE)
    data[place] ^= mask
    with pytest.raises((FormatError, VerificationError)):
        verify_evidence(parse_evidence(bytes(data)), GUEST.trust, CHALLENGE)


# --- verdicts ----------------------------------------------------------------------------------


def test_an_empty_policy_or_reference_set_passes_nothing() -> None:
    nothing = replace(
        DEFAULT,
        boot=BootRules((), Requirement.NOT_REQUIRED),
        files=FileRules(Requirement.NOT_REQUIRED),
        secure_kernel=SecureKernelRules(()),
    )
    appraisal = appraise(VERIFIED, GUEST.references, nothing, NOW)
    assert [j.finding.id for j in appraisal.unmet()] == ["policy.demands"]
    assert appraisal.verdict is Tier.NONE
    one = replace(nothing, secure_kernel=SecureKernelRules(("kernel.text",)))
    assert appraise(VERIFIED, GUEST.references, one, NOW).verdict is Tier.AFFIRMING

    empty = appraise(VERIFIED, ReferenceSet("empty"), DEFAULT, NOW)
    assert "reference.empty" in {j.finding.id for j in empty.unmet()}
    assert empty.verdict is not Tier.AFFIRMING


@pytest.mark.parametrize(
    ("evidence", "now", "summary"),
    [
        (GUEST.evidence(CHALLENGE, at=NOW), NOW + 120, None),
        (GUEST.evidence(CHALLENGE, at=NOW), NOW + 121, "121 s old"),
        (GUEST.evidence(CHALLENGE, at=NOW + 5), NOW, None),
        (GUEST.evidence(CHALLENGE, at=NOW + 6), NOW, "6 s in the future"),
        (GUEST.evidence(CHALLENGE, at=NOW - 5), NOW, None),
        (GUEST.evidence(CHALLENGE, at=NOW - 6), NOW, "6 s before the challenge"),
        (GUEST.evidence(CHALLENGE, record=None), NOW + 121, "121 s old"),
    ],
)
def test_evidence_has_its_time(evidence: Evidence, now: int, summary: str | None) -> None:
    verified = verify_evidence(evidence, GUEST.trust, CHALLENGE)
    appraisal = appraise(verified, GUEST.references, DEFAULT, now)
    (time,) = [j for j in appraisal.judgements if j.finding.id == "evidence.time"]
    assert (time.finding.outcome is Outcome.PASS) is (summary is None)
    assert time.tier is (Tier.AFFIRMING if summary is None else Tier.NONE)
    assert (summary or "") in time.finding.summary
    assert appraisal.expires_at <= now + DEFAULT.result.validity_s


def without_ima(policy: Policy) -> Policy:
    return replace(policy, files=replace(policy.files, ima=Requirement.NOT_REQUIRED))


def test_a_missing_ima_list_counts_if_it_is_required() -> None:
    evidence = GUEST.evidence(CHALLENGE, ima_list=None)
    verified = verify_evidence(evidence, GUEST.trust, CHALLENGE)
    required = appraise(verified, GUEST.references, DEFAULT, NOW)
    assert [j.finding.id for j in required.unmet()] == ["ima.list"]
    assert required.verdict is Tier.NONE
    optional = appraise(verified, GUEST.references, without_ima(DEFAULT), NOW)
    assert optional.verdict is Tier.AFFIRMING
    assert optional.trust_vector[TrustClaim.EXECUTABLES] == 3
    assert "ima.list" in {finding.id for finding in optional.findings}


def test_files_count_as_the_policy_says() -> None:
    changed = replace(
        GUEST.references,
        files=dict.fromkeys(GUEST.references.files, GUEST.references.files["/init"]),
    )
    for policy in (DEFAULT, without_ima(DEFAULT)):
        appraisal = appraise(VERIFIED, changed, policy, NOW)
        assert {j.finding.id for j in appraisal.unmet()} == {"ima.files", "ima.file"}
        assert appraisal.verdict is Tier.CONTRAINDICATED
    unknown = replace(GUEST.references, files={})
    assert appraise(VERIFIED, unknown, DEFAULT, NOW).verdict is Tier.CONTRAINDICATED
    assert appraise(VERIFIED, unknown, without_ima(DEFAULT), NOW).verdict is Tier.AFFIRMING


def test_quirks_of_the_log_are_stated() -> None:
    padded = GUEST.evidence(CHALLENGE, eventlog=GUEST.log + b"\xff" * 64)
    verified = verify_evidence(padded, GUEST.trust, CHALLENGE)
    appraisal = appraise(verified, GUEST.references, DEFAULT, NOW)
    assert appraisal.verdict is Tier.AFFIRMING
    (quirk,) = [f for f in appraisal.findings if f.id == "eventlog.quirk"]
    assert quirk.details["quirk"] == "padding-ones"
    assert Nonce(bytes(range(32))) == appraisal.nonce
