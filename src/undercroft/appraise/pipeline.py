"""The whole pure pipeline in two steps: ``verify_evidence`` and ``appraise``.

Bytes, keys, policy and ``now`` in; an Appraisal out.  Nothing is read, asked or remembered, so
saved evidence gives the same appraisal again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.boot import appraise_boot
from undercroft.appraise.files import appraise_files, judge_of
from undercroft.appraise.freshness import appraise_time, expiry
from undercroft.appraise.identity import appraise_identity
from undercroft.appraise.ima_rules import ImaJudge
from undercroft.appraise.kernel import appraise_kernel
from undercroft.appraise.model import Appraisal, Judgement, failed
from undercroft.appraise.secureboot import appraise_secure_boot
from undercroft.appraise.verified import VerifiedEvidence, verify_evidence
from undercroft.base import Finding, Outcome
from undercroft.policy import Action, Policy
from undercroft.reference.model import ReferenceSet

__all__ = ["VerifiedEvidence", "appraise", "judge_of", "verify_evidence"]


def appraise(
    verified: VerifiedEvidence,
    references: ReferenceSet,
    policy: Policy,
    now: int,
    *,
    judge: ImaJudge | None = None,
) -> Appraisal:
    """Judge ``verified`` against ``references`` by ``policy`` at ``now`` (Unix s).

    ``judge`` is ``judge_of(references, policy)``, for a caller that keeps it.  Never raises for
    what the evidence says; every deviation is a judgement.
    """
    judge = judge or judge_of(references, policy)
    return Appraisal(
        guest=verified.trust.guest,
        policy_id=policy.identifier,
        references=references.name,
        nonce=verified.challenge.nonce,
        appraised_at=now,
        expires_at=expiry(verified, policy, now),
        judgements=tuple(_judgements(verified, references, policy, now, judge)),
    )


def _judgements(
    verified: VerifiedEvidence,
    references: ReferenceSet,
    policy: Policy,
    now: int,
    judge: ImaJudge,
) -> Iterator[Judgement]:
    yield from appraise_identity(verified, policy)
    yield appraise_time(verified, policy, now)
    yield from appraise_boot(verified, references, policy)
    yield from appraise_secure_boot(verified.log, policy)
    yield from appraise_files(verified, judge, policy)
    yield from appraise_kernel(verified.record, references, policy)
    yield from _nothing_to_go_by(references, policy)


def _nothing_to_go_by(references: ReferenceSet, policy: Policy) -> Iterator[Judgement]:
    if policy.demands_nothing:
        why = "the policy demands nothing, so nothing was shown"
        finding = Finding("policy.demands", Outcome.UNKNOWN, why, {"policy": policy.id})
        yield failed(finding, None, Action.INSUFFICIENT)
    if references.is_empty:
        why = "the reference set is empty: there is nothing to compare with"
        finding = Finding("reference.empty", Outcome.UNKNOWN, why, {"references": references.name})
        yield failed(finding, None, Action.INSUFFICIENT)
