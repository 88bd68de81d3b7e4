"""Are the files that ran and were read known ones?  An IMA list, entry by entry.

Everything that is said is said of entries that the quote vouches for.  Of a violation only its
place in the list is vouched for: what its entry says is claimed, so it is never compared with
references (a known good path in it would mean nothing) and its path is called ``claimed-path``.

Finding ids:

``ima.replay``          the list leads to the quoted PCRs (verified before; stated here)
``ima.boot-aggregate``  the list belongs to the boot that the boot PCRs speak of
``ima.files``           the summary: how many entries, how many known, how many not
``ima.file``            a file that is not as a reference says
``ima.signature``       a file whose signature is wrong
``ima.violation``       a file that was open for writing while it was measured, or the reverse
``ima.buffer``          a kernel buffer (key, critical data) that is not known to be good
``ima.kexec``           a kernel was loaded, or started, after the one that was measured at boot
``ima.template``        an entry of a template that we do not know
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from undercroft.appraise.ima_carried import KEPT, ImaCarried, ImaTally
from undercroft.appraise.ima_entry import (
    CLAIM,
    KNOWN,
    SIGNED,
    SOURCE,
    EntryVerdict,
    classify,
    tell,
)
from undercroft.appraise.ima_rules import ImaJudge
from undercroft.appraise.model import TIER_OF_ACTION, Judgement, failed, passed, stated
from undercroft.base import Finding, JsonValue, Outcome, PcrBank, VerificationError
from undercroft.formats.ear import Tier
from undercroft.formats.ima import ImaList, Run
from undercroft.policy import Action
from undercroft.reference.layers import look_up
from undercroft.reference.updates import grade_name
from undercroft.verify.checks import Check
from undercroft.verify.ima import ReplayedIma
from undercroft.verify.ima_boot import I9_BOOT_AGGREGATE, verify_boot_aggregate
from undercroft.verify.ima_state import ImaState

P1_STATE = Check(
    "P1",
    "ima.carried-state",
    "the carried appraisal left the state that the replay went on from",
    "",
)
P2_JUDGE = Check(
    "P2", "ima.carried-judge", "the carried appraisal was made with these rules and references", ""
)
CHECKS = (P1_STATE, P2_JUDGE)

UPDATES = "updates"
"""Name of the detail that counts files by package and version, where there are several."""

BOOT_AGGREGATE = "ima.boot-aggregate"
"""Id of the finding that the list belongs to the boot that the boot PCRs speak of."""


@dataclass(frozen=True, slots=True)
class ImaAppraisal:
    """The judgements, and what the next appraisal of this boot's list goes on from."""

    judgements: tuple[Judgement, ...]
    carried: ImaCarried = field(repr=False)


def appraise_ima(
    replayed: ReplayedIma,
    judge: ImaJudge,
    boot_pcrs: Sequence[PcrBank],
    *,
    carried: ImaCarried | None = None,
) -> ImaAppraisal:
    """Judge the entries that the quote vouches for.

    ``boot_pcrs`` are quoted PCRs (or the event log's, compared with a quote).  Where
    ``replayed`` went on from a state, ``carried`` is the appraisal that left that state; it has
    to be given then.  Raises VerificationError with one of :data:`CHECKS` if it does not fit.
    """
    seen = _Seen(judge.rules.max_findings)
    if carried is not None or replayed.first:
        seen.go_on_from(_checked(carried, replayed, judge))
    for run in replayed.measurements.runs:
        if run.start >= replayed.vouched:
            break
        _judge_run(replayed, run, judge, boot_pcrs, seen)
    tally, told = seen.tally(), seen.told()
    judgements = (
        stated(replay_finding(replayed.state, replayed.vouched, replayed.pending, replayed.quirks)),
        _boot_aggregate(replayed, boot_pcrs),
        summary_of(replayed.state.count, judge, tally, len(told)),
        *told,
    )
    left = ImaCarried(replayed.state, judge.id, tally, told[:KEPT])
    return ImaAppraisal(judgements, left)


def _checked(carried: ImaCarried | None, replayed: ReplayedIma, judge: ImaJudge) -> ImaCarried:
    if (
        carried is None
        or carried.state.count != replayed.first
        or not carried.state.same_boot(replayed.state)
    ):
        raise P1_STATE.failed(
            "the carried appraisal left another state than the replay went on from",
            expected=f"an appraisal of {replayed.first} entries of this boot",
            got=f"one of {carried.state.count}" if carried else "none",
        )
    if carried.judge_id != judge.id:
        raise P2_JUDGE.failed(
            "the carried appraisal was made with other rules or references",
            expected=judge.id.hex(),
            got=carried.judge_id.hex(),
            remedy="replay and judge the whole list, without a state",
        )
    return carried


_RANK = {None: 0, Tier.WARNING: 1, Tier.NONE: 2, Tier.CONTRAINDICATED: 3}


class _Seen:
    """Counts everything; keeps the first deviations of each outcome, failures before others."""

    __slots__ = (
        "counts",
        "failed",
        "failures",
        "grades",
        "limit",
        "others",
        "undetermined",
        "worst",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: dict[str, int] = {}
        self.grades: dict[str, int] = {}
        self.failed = self.undetermined = 0
        self.worst: Tier | None = None
        self.failures: list[Judgement] = []
        self.others: list[Judgement] = []

    def go_on_from(self, carried: ImaCarried) -> None:
        tally = carried.tally
        self.counts.update(tally.kinds)
        self.grades.update(tally.grades)
        self.failed, self.undetermined = tally.failed, tally.undetermined
        self.worst = tally.worst
        for judgement in carried.deviations:
            self._kept(judgement.finding.outcome).append(judgement)

    def count(self, kind: str, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count

    def known(self, grade: str, count: int = 1) -> None:
        self.count(KNOWN, count)
        self.grades[grade] = self.grades.get(grade, 0) + count

    def wants(self, outcome: Outcome) -> bool:
        """Return whether one more deviation of this outcome would be told."""
        return len(self._kept(outcome)) < self.limit

    def _kept(self, outcome: Outcome) -> list[Judgement]:
        return self.failures if outcome is Outcome.FAIL else self.others

    def deviation(self, verdict: EntryVerdict, action: Action) -> None:
        if verdict.outcome is Outcome.FAIL:
            self.failed += 1
        else:
            self.undetermined += 1
        self.worst = max(self.worst, TIER_OF_ACTION[action], key=_RANK.__getitem__)

    def keep(self, judgement: Judgement) -> None:
        self._kept(judgement.finding.outcome).append(judgement)

    def tally(self) -> ImaTally:
        return ImaTally(self.counts, self.grades, self.failed, self.undetermined, self.worst)

    def told(self) -> tuple[Judgement, ...]:
        return tuple((self.failures + self.others)[: self.limit])


def _judge_run(
    replayed: ReplayedIma,
    run: Run,
    judge: ImaJudge,
    boot_pcrs: Sequence[PcrBank],
    seen: _Seen,
) -> None:
    """Look every entry up at once, and then at each that was not found."""
    measurements = replayed.measurements
    stop = min(run.stop, replayed.vouched)
    found = _look_up(measurements, run, stop, judge)
    violations = replayed.violations
    for index in violations[bisect_left(violations, run.start) : bisect_left(violations, stop)]:
        found[index - run.start] = ""
    grades = set(found)
    for grade in grades - {""}:
        seen.known(grade, found.count(grade))
    if "" in grades:
        for at in [at for at, grade in enumerate(found, run.start) if not grade]:
            _judge_entry(measurements, at, replayed.first + at, judge, boot_pcrs, seen)


def _look_up(measurements: ImaList, run: Run, stop: int, judge: ImaJudge) -> list[str]:
    """Return for each entry the label of the reference that explains it, or nothing.

    The hot path: where the template data up to the name's end is all that a reference fixes,
    one dictionary look-up tells that path and digest are known.
    """
    datas = measurements.template_data[run.start : stop]
    fields = run.template.fields
    accepted = judge.references.accepted(run.digest_head, run.digest_size, measurements.order)
    if not accepted or fields is None or fields[1:2] != ("n-ng",) or "buf" in fields:
        return [""] * len(datas)
    if len(fields) == 2:
        return look_up(accepted, datas)
    at = len(run.digest_head) + run.digest_size
    text = at + 4
    order = measurements.order
    return look_up(accepted, [d[: text + int.from_bytes(d[at:text], order)] for d in datas])


def _judge_entry(
    measurements: ImaList,
    at: int,
    index: int,
    judge: ImaJudge,
    boot_pcrs: Sequence[PcrBank],
    seen: _Seen,
) -> None:
    entry = measurements[at]
    verdict = classify(entry, index, judge, boot_pcrs)
    if verdict.label:
        seen.known(verdict.label)
        return
    seen.count(verdict.kind)
    if verdict.action is not None:
        seen.deviation(verdict, verdict.action)
        if seen.wants(verdict.outcome):
            seen.keep(tell(entry, index, verdict, verdict.action, judge))


def replay_finding(
    state: ImaState, new: int, pending: int = 0, quirks: Sequence[str] = ()
) -> Finding:
    """State where the list leads, ``new`` entries further than before, ``pending`` not yet."""
    pcrs = ", ".join([f"PCR {pcr}" for pcr, _ in state.values])
    bank = state.algorithm.label
    summary = f"{state.count} entries lead to the quoted {pcrs} of the {bank} bank"
    if pending:
        summary += f"; {pending} more were measured after the quote and are not judged"
    details: dict[str, JsonValue] = {
        "entries": state.count,
        "new": new,
        "pending": pending,
        "bank": bank,
        "quirks": list(quirks),
    }
    return Finding("ima.replay", Outcome.PASS, summary, details, SOURCE)


def _boot_aggregate(replayed: ReplayedIma, boot_pcrs: Sequence[PcrBank]) -> Judgement:
    digest = replayed.boot_aggregate
    name = BOOT_AGGREGATE
    try:
        verified = verify_boot_aggregate(digest, boot_pcrs)
    except VerificationError as error:
        other = error.check == I9_BOOT_AGGREGATE.id
        finding = Finding(
            name,
            Outcome.FAIL if other else Outcome.UNKNOWN,
            error.what,
            {"expected": error.expected, "got": str(digest)},
            SOURCE,
        )
        return failed(finding, CLAIM, Action.CONTRAINDICATE if other else Action.INSUFFICIENT)
    details: dict[str, JsonValue] = {
        "digest": str(digest),
        "pcrs": list(verified.pcrs),
        "quirks": list(verified.quirks),
    }
    summary = (
        f"the list belongs to this boot: it starts with the hash of PCR 0 to {verified.pcrs[-1]}"
    )
    return passed(Finding(name, Outcome.PASS, summary, details, SOURCE), CLAIM)


def summary_of(count: int, judge: ImaJudge, tally: ImaTally, told: int) -> Judgement:
    """Judge the ``count`` entries of a boot as a whole; ``told`` deviations are told each."""
    deviations = tally.failed + tally.undetermined
    grades, updates = _by_grade(tally.grades)
    compared = tally.kinds.get(KNOWN, 0) + tally.kinds.get(SIGNED, 0)
    details: dict[str, JsonValue] = {
        "entries": count,
        "kinds": tally.kinds,
        "grades": grades,
        "references": len(judge.references),
        "not-told": deviations - told,
    }
    if updates:
        details[UPDATES] = updates
    summary = f"{count} entries: {', '.join(_words(tally.kinds)) or 'none judged'}"
    source = judge.references.name
    worst = tally.worst
    if not compared:
        # Also if everything else was excluded or ignored: nothing shown is nothing known.
        summary += "; no file was found to be a known one"
        worst = max(worst, Tier.NONE, key=_RANK.__getitem__)
    if tally.failed:
        return Judgement(Finding("ima.files", Outcome.FAIL, summary, details, source), worst, CLAIM)
    if worst:
        finding = Finding("ima.files", Outcome.UNKNOWN, summary, details, source)
        return Judgement(finding, worst, CLAIM)
    finding = Finding("ima.files", Outcome.PASS, summary, details, source)
    if grades.keys() <= judge.affirmed:
        return passed(finding, CLAIM)
    return failed(finding, CLAIM, judge.rules.reference.other)


def _by_grade(labels: Mapping[str, int]) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """Return how many files have each grade, and how many each label that says more than that."""
    more: dict[str, JsonValue] = {text: count for text, count in labels.items() if text[0] == "["}
    if not more:
        return dict(labels), more
    grades: dict[str, int] = {}
    for text, count in labels.items():
        grades[grade_name(text)] = grades.get(grade_name(text), 0) + count
    return dict(grades), more


def _words(kinds: Mapping[str, int]) -> list[str]:
    words = [f"{kinds[kind]} {kind}" for kind in sorted(kinds) if kind != KNOWN]
    return [f"{kinds[KNOWN]} {KNOWN}", *words] if KNOWN in kinds else words
