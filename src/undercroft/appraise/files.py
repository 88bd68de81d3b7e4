"""Are the files that ran known ones?  The policy's side of :mod:`undercroft.appraise.ima`."""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.ima import appraise_ima
from undercroft.appraise.ima_entry import CLAIM
from undercroft.appraise.ima_rules import ImaJudge, rules_of
from undercroft.appraise.model import Judgement, failed, stated
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Finding, Outcome
from undercroft.policy import Action, Policy, Requirement
from undercroft.reference.files import compile_files
from undercroft.reference.model import ReferenceSet


def judge_of(references: ReferenceSet, policy: Policy) -> ImaJudge:
    """Compile what files are judged by.  It takes a while for many files: make one and keep it."""
    return ImaJudge(rules_of(policy), compile_files(references.files, references.name))


def appraise_files(
    verified: VerifiedEvidence, judge: ImaJudge, policy: Policy
) -> Iterator[Judgement]:
    """Judge the IMA list.

    Where no list is required, what could not be told is stated only; what is wrong counts.
    """
    required = policy.files.ima is Requirement.REQUIRED
    if verified.ima is None:
        why = "there is no IMA list: nothing tells which files ran"
        finding = Finding("ima.list", Outcome.UNKNOWN, why)
        yield failed(finding, CLAIM, Action.INSUFFICIENT) if required else stated(finding)
        return
    for judgement in appraise_ima(verified.ima, judge, verified.quote.pcrs).judgements:
        unknown = judgement.finding.outcome is Outcome.UNKNOWN
        yield stated(judgement.finding) if unknown and not required else judgement
