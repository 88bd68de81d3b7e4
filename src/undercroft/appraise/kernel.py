"""Is the running kernel a known one, and did the secure kernel find it intact?

The secure kernel reports facts; here they are judged.  A fact that is demanded and missing is as
undetermined as one that says UNKNOWN: never affirming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from undercroft.appraise.graded import matched
from undercroft.appraise.ima import UPDATES
from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.appraise.rules import answered
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import SecureKernelRecord
from undercroft.policy import Action, Policy
from undercroft.reference.match import DifferenceKind, KernelDifference, match_kernel
from undercroft.reference.model import ReferenceSet
from undercroft.reference.updates import updates_of

CLAIM = TrustClaim.EXECUTABLES
IDENTITY = "kernel.reference"
"""Id of the finding that the kernel which runs is one of the reference set's."""


def appraise_kernel(
    record: SecureKernelRecord | None,
    references: ReferenceSet,
    policy: Policy,
    *,
    more: Sequence[Finding] = (),
) -> Iterator[Judgement]:
    """Judge the kernel's identity and every fact, demanded or not.

    ``more`` are facts that follow from other evidence; they are judged like the record's.
    """
    demanded = policy.secure_kernel.facts
    if record is None:
        yield from (_missing(fact, policy, "there is no secure-kernel record") for fact in demanded)
        return
    yield _interval(record)
    if demanded or record.kernel_build_id:
        yield _identity(record, references, policy)
    facts = (*record.facts, *more)
    found = {fact.id for fact in facts}
    yield from (_fact(fact, policy) for fact in facts)
    yield from (
        _missing(fact, policy, "the secure kernel did not report it")
        for fact in demanded
        if fact not in found
    )


def _interval(record: SecureKernelRecord) -> Judgement:
    length = (record.t1 - record.t0) / 1e9
    channels = ", ".join(record.channels) or "no channel"
    return stated(
        Finding(
            "kernel.interval",
            Outcome.PASS if record.channels else Outcome.UNKNOWN,
            f"the secure kernel speaks of {length:.3f} s, seen through {channels}",
            {"t0-ns": record.t0, "t1-ns": record.t1, "channels": list(record.channels)},
        )
    )


def _identity(record: SecureKernelRecord, references: ReferenceSet, policy: Policy) -> Judgement:
    build_id = record.kernel_build_id.hex()
    details: dict[str, JsonValue] = {"release": record.kernel_release, "build-id": build_id}
    match = match_kernel(references, record.kernel_release, record.kernel_build_id)
    if not isinstance(match, KernelDifference):
        summary = f"the running kernel is {match.release}"
        whole = {**details, "vmlinuz": str(match.vmlinuz)}
        if references.states:
            whole[UPDATES] = {updates_of(references.states).label(match.provenance).text: 1}
        return matched(IDENTITY, summary, whole, [match.provenance], CLAIM, policy.reference)
    if not record.kernel_build_id:
        what = "the secure kernel could not tell which kernel runs"
        return _undetermined(Finding(IDENTITY, Outcome.UNKNOWN, what, details), policy)
    if match.kind is DifferenceKind.NO_REFERENCE:
        what = f"no kernel is known, so {record.kernel_release} cannot be judged"
        return _undetermined(Finding(IDENTITY, Outcome.UNKNOWN, what, details), policy)
    nearest: list[JsonValue] = [
        {"release": k.release, "build-id": k.build_id.hex(), "source": str(k.provenance)}
        for k in (match.nearest or references.kernels)
    ]
    what = f"the running kernel ({record.kernel_release}, {build_id}) is not one that is known"
    finding = Finding(IDENTITY, Outcome.FAIL, what, {**details, "expected": nearest})
    return failed(finding, CLAIM)


def _undetermined(finding: Finding, policy: Policy) -> Judgement:
    return failed(finding, CLAIM, policy.secure_kernel.unknown)


def _missing(fact: str, policy: Policy, why: str) -> Judgement:
    finding = Finding(fact, Outcome.UNKNOWN, f"{fact} is demanded, and {why}")
    return _undetermined(finding, policy)


def _fact(fact: Finding, policy: Policy) -> Judgement:
    if fact.outcome is Outcome.PASS:
        return passed(fact, CLAIM)
    if fact.outcome is Outcome.FAIL:
        return failed(fact, CLAIM, Action.CONTRAINDICATE)
    if fact.id in policy.secure_kernel.facts and not answered(fact, policy):
        return _undetermined(fact, policy)
    return stated(fact)
