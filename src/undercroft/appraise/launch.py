"""Which secure kernel speaks, when did it start to, and for which machine?

A launch is demanded as soon as the references know one.  Without any it is only stated: a guest
whose TPM nobody stands beside is still appraised by its boot and its files, and the result shows
what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.graded import described, matched, outcome_of
from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.base import (
    Digest,
    Finding,
    FormatError,
    HashAlgorithm,
    JsonValue,
    Outcome,
    VerificationError,
)
from undercroft.formats.descriptor import parse_descriptor
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import SecureKernelRecord
from undercroft.formats.launch import (
    FINDING,
    PCR_IDENTITY,
    PCR_MANIFEST,
    VM_DESCRIPTOR,
    LaunchEvent,
)
from undercroft.formats.tpm import TpmRh
from undercroft.policy import Action, Policy
from undercroft.reference.match import Difference, match_event, missing_roles
from undercroft.reference.model import ReferenceSet, ReferenceValue
from undercroft.verify.epochs import W5_EPOCHS
from undercroft.verify.launch import W4_KEY, VerifiedLaunch, verify_launch_key
from undercroft.verify.quote import VerifiedQuote

CLAIM = TrustClaim.CONFIGURATION
SOURCE = "TPM 2.0 Part 1, 34.2; PC Client Platform TPM Profile 1.05, 4.6.2"
MACHINE_FACTS = ("descriptor.machine", "descriptor.devices", "descriptor.network")
"""What the record says of a machine whose descriptor is known (judged as every fact is)."""
SHOWN_RECORDS = 16
FROM_THE_START = ("power-on", "reset")
"""Reasons of launches that came before the machine's first instruction."""


def appraise_launch(
    launch: VerifiedLaunch | None,
    quote: VerifiedQuote,
    record: SecureKernelRecord | None,
    references: ReferenceSet,
    policy: Policy,
) -> Iterator[Judgement]:
    """Judge the launch: that there was one, when, and each thing that it measured.

    Where the machine has a known descriptor, the record must say how the running one compares.
    """
    known = references.events.get(PCR_MANIFEST, ())
    if launch is None:
        what = "no launch of the secure kernel is shown: PCR 17 to 19 say nothing"
        finding = Finding("launch.manifest", Outcome.UNKNOWN, what, {}, SOURCE)
        yield failed(finding, CLAIM, Action.INSUFFICIENT) if known else stated(finding)
        return
    yield _when(launch, demanded=bool(known))
    yield _key(quote, demanded=bool(known))
    algorithm = launch.banks[-1]
    yield _event("launch.manifest", PCR_MANIFEST, launch.manifest, algorithm, references, policy)
    if PCR_IDENTITY in references.events:
        yield from _identities(launch, algorithm, references, policy)
        yield from _not_compared(record, references)
    yield _records(launch)
    yield from _epochs(launch)


def _when(launch: VerifiedLaunch, *, demanded: bool) -> Judgement:
    details: dict[str, JsonValue] = {"reason": launch.reason, "number": launch.number}
    if launch.reason in FROM_THE_START:
        what = f"the secure kernel was launched before the first instruction ({launch.reason})"
        return passed(Finding("launch.start", Outcome.PASS, what, details, SOURCE), CLAIM)
    what = f"launch {launch.number} was made at a machine that ran already ({launch.reason})"
    finding = Finding("launch.start", Outcome.UNKNOWN, what, details, SOURCE)
    return failed(finding, CLAIM, Action.INSUFFICIENT) if demanded else stated(finding)


def _key(quote: VerifiedQuote, *, demanded: bool) -> Judgement:
    """Judge whose key signed: that no one in the guest can use it, nor take it away."""
    name, source = "launch.key", W4_KEY.source
    hierarchy = quote.hierarchy.name.lower() if quote.hierarchy else "unknown"
    details: dict[str, JsonValue] = {"hierarchy": hierarchy}
    try:
        verify_launch_key(quote.ak.public)
    except VerificationError as error:
        finding = Finding(name, Outcome.FAIL, error.what, details, source)
        return failed(finding, CLAIM) if demanded else stated(finding)
    if quote.hierarchy is TpmRh.PLATFORM:
        what = "only the secure kernel can sign with the key, and the guest cannot evict it"
        return passed(Finding(name, Outcome.PASS, what, details, source), CLAIM)
    what = f"the key is in the {hierarchy} hierarchy: it was not made by a launch before the guest"
    finding = Finding(name, Outcome.UNKNOWN, what, details, source)
    return failed(finding, CLAIM, Action.INSUFFICIENT) if demanded else stated(finding)


def _identities(
    launch: VerifiedLaunch, algorithm: HashAlgorithm, references: ReferenceSet, policy: Policy
) -> Iterator[Judgement]:
    seen = []
    for name, event in launch.identities.items():
        value = match_event(references, PCR_IDENTITY, _digest(event, algorithm))
        if isinstance(value, ReferenceValue):
            seen.append(value)
        yield _event(f"launch.{name}", PCR_IDENTITY, event, algorithm, references, policy)
    for role in missing_roles(references, PCR_IDENTITY, seen):
        if role not in launch.identities:
            what = f"the launch did not measure {role}"
            yield failed(Finding(f"launch.{role}", Outcome.FAIL, what, {}, SOURCE), CLAIM)


def _not_compared(
    record: SecureKernelRecord | None, references: ReferenceSet
) -> Iterator[Judgement]:
    if not any(value.role == VM_DESCRIPTOR for value in references.events[PCR_IDENTITY]):
        return
    found = {fact.id for fact in record.facts} if record else set()
    for fact in MACHINE_FACTS:
        if fact not in found:
            what = "nobody compared the running machine with its descriptor"
            finding = Finding(fact, Outcome.UNKNOWN, what, {}, SOURCE)
            yield failed(finding, CLAIM, Action.INSUFFICIENT)


def _digest(event: LaunchEvent, algorithm: HashAlgorithm) -> Digest:
    return Digest(algorithm, algorithm.hash(event.encode()))


def _event(
    name: str,
    pcr: int,
    event: LaunchEvent,
    algorithm: HashAlgorithm,
    references: ReferenceSet,
    policy: Policy,
) -> Judgement:
    found = _digest(event, algorithm)
    details: dict[str, JsonValue] = {"pcr": pcr, "found": str(found), "bytes": len(event.data)}
    match = match_event(references, pcr, found)
    if isinstance(match, ReferenceValue):
        summary = f"PCR {pcr} has the {event.name} that is known: {match.description}"
        if event.name == VM_DESCRIPTOR:
            details |= _devices(event.data)
        return matched(name, summary, details, [match.provenance], CLAIM, policy.reference)
    return _unmatched(name, pcr, event, match, details)


def _devices(descriptor: bytes) -> dict[str, JsonValue]:
    try:
        return {"devices": dict(parse_descriptor(descriptor).devices)}
    except FormatError:
        return {}  # known by its digest, of a form that is not: a rule about devices cannot pass


def _unmatched(
    name: str, pcr: int, event: LaunchEvent, match: Difference, details: dict[str, JsonValue]
) -> Judgement:
    outcome = outcome_of(match)
    if outcome is not Outcome.FAIL:
        what = f"nothing is known of the {event.name} in PCR {pcr}"
        return stated(Finding(name, outcome, what, details, SOURCE))
    what = f"the {event.name} in PCR {pcr} is another one than is known"
    details = {**details, "expected": described(match.expected)}
    return failed(Finding(name, outcome, what, details, SOURCE), CLAIM)


def _records(launch: VerifiedLaunch) -> Judgement:
    """Judge PCR 19: something that was once wrong stays wrong until the machine starts again."""
    found = [record.data for record in launch.records if record.name == FINDING]
    if found:
        shown: list[JsonValue] = [data.decode(errors="replace") for data in found[:SHOWN_RECORDS]]
        ids = dict.fromkeys(str(text).partition("\n")[0] for text in shown)
        what = f"since it was launched, the secure kernel found {', '.join(ids)} to be wrong"
        whole: dict[str, JsonValue] = {"count": len(found), "findings": shown}
        return failed(Finding("launch.records", Outcome.FAIL, what, whole, SOURCE), CLAIM)
    what = f"PCR 19 has {len(launch.records)} records of the secure kernel"
    names: list[JsonValue] = [record.name for record in launch.records[-16:]]
    details: dict[str, JsonValue] = {"count": len(launch.records), "last": names}
    return stated(Finding("launch.records", Outcome.PASS, what, details, SOURCE))


def _epochs(launch: VerifiedLaunch) -> Iterator[Judgement]:
    """State what PCR 19 says of the write traps: how many epochs, and if there is a hole."""
    if not launch.runs:
        return
    count = launch.runs[-1].epochs[-1].sequence
    details: dict[str, JsonValue] = {
        "epochs": count,
        "sessions": [run.session.hex() for run in launch.runs],
    }
    name, source = W5_EPOCHS.id, W5_EPOCHS.source
    if len(launch.runs) == 1:
        what = f"PCR 19 names the write traps' epochs to number {count}, of one run"
        yield stated(Finding(name, Outcome.PASS, what, details, source))
        return
    what = (
        f"the secure kernel was started {len(launch.runs)} times since the launch: between its "
        "runs the write traps covered nothing"
    )
    yield stated(Finding(name, Outcome.UNKNOWN, what, details, source))
