"""Is what booted what should boot?  Each demanded PCR, explained by reference values.

A PCR passes in one of two ways:

* its quoted value is one that was predicted: everything that was measured into it, in order, is
  what the prediction says; or
* no value was predicted, and each event that the log shows for it is a known one, with every
  role that is known for the PCR filled.

A predicted value that is not the quoted one fails, also where each event by itself is known: a
good event twice, or two good ones in the wrong order, is another boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from undercroft.appraise.graded import described, matched, outcome_of
from undercroft.appraise.model import Judgement, failed
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Digest, Finding, HashAlgorithm, JsonValue, Outcome, PcrBank
from undercroft.formats.ear import TrustClaim
from undercroft.formats.eventlog import Event
from undercroft.formats.eventlog.words import describe
from undercroft.policy import Action, Policy
from undercroft.reference.match import (
    Difference,
    DifferenceKind,
    match_event,
    match_pcr,
    missing_roles,
)
from undercroft.reference.model import ReferenceSet, ReferenceValue
from undercroft.verify.eventlog import ReplayedLog

SOURCE = "TCG PC Client Platform Firmware Profile 1.06, 3.3.4"

CLAIM_OF_PCR = {
    0: TrustClaim.HARDWARE,
    2: TrustClaim.HARDWARE,
    4: TrustClaim.EXECUTABLES,
    9: TrustClaim.EXECUTABLES,
    11: TrustClaim.EXECUTABLES,
    13: TrustClaim.EXECUTABLES,
}
"""What a PCR speaks for: firmware and option ROMs, boot code, kernel and initrd; every other
boot PCR holds configuration (:data:`SOURCE`, table 1; UAPI Group "Linux TPM PCR Registry")."""

SHOWN_TEXT = 300
"""Characters of what an event says of itself that are shown."""

SHOWN_EVENTS = 32
"""How many unexplained events a finding lists at most."""


def claim_of(pcr: int) -> TrustClaim:
    """Return the AR4SI claim that ``pcr`` speaks to."""
    return CLAIM_OF_PCR.get(pcr, TrustClaim.CONFIGURATION)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the events of one PCR were explained by, and what was not.

    ``missing`` are roles that nothing filled, with the values that would have.
    """

    explained: tuple[tuple[Event, ReferenceValue], ...]
    unexplained: tuple[tuple[Event, Difference], ...]
    missing: tuple[ReferenceValue, ...]

    @property
    def outcome(self) -> Outcome:
        """PASS only if there was an event, each is explained and every role is filled."""
        if self.missing or any(outcome_of(d) is Outcome.FAIL for _, d in self.unexplained):
            return Outcome.FAIL
        return Outcome.PASS if self.explained and not self.unexplained else Outcome.UNKNOWN


def explain(
    log: ReplayedLog, references: ReferenceSet, pcr: int, bank: HashAlgorithm
) -> Explanation:
    """Match every event that was extended into ``pcr`` against the events known for it."""
    explained, unexplained = [], []
    for event in log.vouched:
        if event.pcr != pcr:
            continue
        match = match_event(references, pcr, Digest(bank, event.digests[bank]))
        if isinstance(match, Difference):
            unexplained.append((event, match))
        else:
            explained.append((event, match))
    roles = set(missing_roles(references, pcr, [value for _, value in explained]))
    missing = tuple(v for v in references.events.get(pcr, ()) if v.role in roles)
    return Explanation(tuple(explained), tuple(unexplained), missing)


def appraise_boot(
    verified: VerifiedEvidence, references: ReferenceSet, policy: Policy
) -> Iterator[Judgement]:
    """Judge every demanded PCR in every demanded bank."""
    banks = {bank.algorithm: bank for bank in verified.quote.pcrs}
    for algorithm in policy.quote.banks:
        bank = banks.get(algorithm)
        for pcr in policy.boot.pcrs:
            if bank is None or pcr not in bank.values:
                yield _not_quoted(pcr, algorithm)
            else:
                yield _pcr(pcr, bank, verified.log, references, policy)


def _not_quoted(pcr: int, bank: HashAlgorithm) -> Judgement:
    finding = Finding(
        f"boot.pcr.{pcr}",
        Outcome.UNKNOWN,
        f"PCR {pcr} of the {bank} bank is demanded and was not quoted",
        {"bank": bank.label},
        SOURCE,
    )
    return failed(finding, claim_of(pcr), Action.INSUFFICIENT)


def _pcr(
    pcr: int,
    bank: PcrBank,
    log: ReplayedLog | None,
    references: ReferenceSet,
    policy: Policy,
) -> Judgement:
    found = Digest(bank.algorithm, bank.values[pcr])
    match = match_pcr(references, pcr, found)
    details: dict[str, JsonValue] = {"bank": bank.algorithm.label, "found": found.value.hex()}
    if isinstance(match, ReferenceValue):
        summary = f"PCR {pcr} is as predicted: {match.description}"
        sources = [match.provenance]
        return matched(
            f"boot.pcr.{pcr}", summary, details, sources, claim_of(pcr), policy.reference
        )
    usable = log is not None and pcr in log.explained
    explanation = explain(log, references, pcr, bank.algorithm) if log and usable else None
    if match.kind is DifferenceKind.OTHER_VALUE:
        return _not_as_predicted(pcr, details, match, explanation)
    if explanation is None:
        return _no_log(pcr, details, policy)
    return _by_events(pcr, details, explanation, policy)


def _not_as_predicted(
    pcr: int, details: dict[str, JsonValue], match: Difference, explanation: Explanation | None
) -> Judgement:
    summary = f"PCR {pcr} is none of the {len(match.expected)} predicted values"
    if explanation is not None:
        details = {**details, **_events(explanation)}
        summary += f": {_difference_in_words(explanation)}"
    finding = Finding(
        f"boot.pcr.{pcr}",
        Outcome.FAIL,
        summary,
        {**details, "expected": described(match.expected)},
        "; ".join(dict.fromkeys(str(value.provenance) for value in match.expected)),
    )
    return failed(finding, claim_of(pcr))


def _no_log(pcr: int, details: dict[str, JsonValue], policy: Policy) -> Judgement:
    finding = Finding(
        f"boot.pcr.{pcr}",
        Outcome.UNKNOWN,
        f"no value is predicted for PCR {pcr} and no event log accounts for it",
        details,
        SOURCE,
    )
    return failed(finding, claim_of(pcr), policy.boot.unknown)


def _by_events(
    pcr: int, details: dict[str, JsonValue], explanation: Explanation, policy: Policy
) -> Judgement:
    outcome, name = explanation.outcome, f"boot.pcr.{pcr}"
    if outcome is Outcome.PASS:
        count = len(explanation.explained)
        summary = f"each of the {count} events in PCR {pcr} is a known one"
        sources = [value.provenance for _, value in explanation.explained]
        whole = {**details, "events": [_known(event, v) for event, v in explanation.explained]}
        return matched(name, summary, whole, sources, claim_of(pcr), policy.reference)
    summary = f"PCR {pcr}: {_difference_in_words(explanation)}"
    finding = Finding(name, outcome, summary, {**details, **_events(explanation)}, SOURCE)
    action = Action.CONTRAINDICATE if outcome is Outcome.FAIL else policy.boot.unknown
    return failed(finding, claim_of(pcr), action)


def _known(event: Event, value: ReferenceValue) -> JsonValue:
    return {"event": event.index, "type": event.type_name, "is": value.description}


def _difference_in_words(explanation: Explanation) -> str:
    words = []
    if explanation.unexplained:
        event, difference = explanation.unexplained[0]
        said = describe(event)[0][:SHOWN_TEXT]
        what = f"event {event.index} ({event.type_name}: {said})"
        words.append(f"{what} measured {difference.found}")
        if more := len(explanation.unexplained) - 1:
            words.append(f"{more} more events are unexplained")
    if explanation.missing:
        names = dict.fromkeys(value.role for value in explanation.missing)
        words.append(f"nothing known was measured as {', '.join(names)}")
    if not words and explanation.explained:
        words.append("every event is known, but not in this number or order")
    return "; ".join(words) or "nothing was measured, and nothing is known of it"


def _events(explanation: Explanation) -> dict[str, JsonValue]:
    unexplained: list[JsonValue] = [
        {
            "event": event.index,
            "type": event.type_name,
            "says": describe(event)[0][:SHOWN_TEXT],
            "digest": difference.found,
            "why": difference.kind.value,
        }
        for event, difference in explanation.unexplained[:SHOWN_EVENTS]
    ]
    return {
        "unexplained": unexplained,
        "unexplained-count": len(explanation.unexplained),
        "missing": described(explanation.missing),
    }
