"""Are the files that ran known ones?  The policy's side of :mod:`undercroft.appraise.ima`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from undercroft.appraise.ima import appraise_ima
from undercroft.appraise.ima_entry import CLAIM
from undercroft.appraise.ima_rules import ImaJudge, rules_of
from undercroft.appraise.model import Judgement, failed, stated
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Finding, Outcome
from undercroft.policy import Action, Policy, Requirement
from undercroft.reference.archive import FileArchive
from undercroft.reference.layers import file_knowledge
from undercroft.reference.model import ReferenceSet


def judge_of(
    references: ReferenceSet, policy: Policy, archives: Sequence[FileArchive] = ()
) -> ImaJudge:
    """Compile what files are judged by.  It takes a while for many files: make one and keep it.

    ``archives`` are the tables of packaged files that ``references`` names; raises ValueError for
    others.
    """
    return ImaJudge(rules_of(policy), file_knowledge(references, archives))


def appraise_files(
    verified: VerifiedEvidence, judge: ImaJudge, policy: Policy
) -> Iterator[Judgement]:
    """Judge the IMA list.

    Where no list is required, what could not be told is stated only; what is wrong counts.
    """
    if verified.ima is None:
        yield no_list(policy)
    else:
        found = appraise_ima(verified.ima, judge, verified.quote.pcrs).judgements
        yield from as_required(found, policy)


def no_list(policy: Policy) -> Judgement:
    """Judge that there is no list."""
    why = "there is no IMA list: nothing tells which files ran"
    finding = Finding("ima.list", Outcome.UNKNOWN, why)
    if policy.files.ima is Requirement.REQUIRED:
        return failed(finding, CLAIM, Action.INSUFFICIENT)
    return stated(finding)


def as_required(judgements: Iterable[Judgement], policy: Policy) -> Iterator[Judgement]:
    """Return ``judgements`` by what the policy requires."""
    required = policy.files.ima is Requirement.REQUIRED
    for judgement in judgements:
        unknown = judgement.finding.outcome is Outcome.UNKNOWN
        yield stated(judgement.finding) if unknown and not required else judgement
