"""One entry that no reference explains at first sight: what it is, and how that is told.

Classifying is cheap and done for every such entry; telling is done for the few that are told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from undercroft.appraise.ima_rules import ImaJudge
from undercroft.appraise.ima_signed import WrongSignature, signature_of
from undercroft.appraise.model import Judgement, failed
from undercroft.base import Finding, JsonValue, Outcome, PcrBank, VerificationError
from undercroft.formats.ear import TrustClaim
from undercroft.formats.ima import (
    FileDigest,
    ImaEntry,
    decode_buffer,
    describe_buffer,
    escape_path,
)
from undercroft.policy import Action
from undercroft.reference.files import FileComparison, FileMatch
from undercroft.verify.ima import BOOT_AGGREGATE
from undercroft.verify.ima_boot import I9_BOOT_AGGREGATE, verify_boot_aggregate

CLAIM = TrustClaim.EXECUTABLES
SOURCE = "Linux security/integrity/ima"

KNOWN, SIGNED, EXCLUDED = "known", "signed", "excluded"
FIRST = "boot-aggregate"
VIOLATION, VIOLATION_STATED = "violation", "violation-stated"
BUFFER, BUFFER_KNOWN, BUFFER_STATED = "buffer", "buffer-known", "buffer-stated"
BUFFER_DIGEST, KEXEC, TEMPLATE = "buffer-digest", "kexec", "unknown-template"
BAD_SIGNATURE = "bad-signature"
CONFFILE, UNKNOWN_STATED = "changed-conffile", "unknown-stated"
_KEXEC_EVENTS = frozenset({b"kexec-cmdline", b"kexec_load", b"kexec_execute"})


@dataclass(frozen=True, slots=True)
class EntryVerdict:
    """What an entry is, and what that does: ``action`` None means nothing, it only counts.

    ``label`` is that of the reference that explains it, empty if none does.
    """

    kind: str
    action: Action | None = None
    outcome: Outcome = Outcome.PASS
    label: str = ""
    comparison: FileComparison | None = None
    note: str = ""
    details: dict[str, JsonValue] = field(default_factory=dict)


def classify(
    entry: ImaEntry, index: int, judge: ImaJudge, boot_pcrs: Sequence[PcrBank]
) -> EntryVerdict:
    """Return what the entry is; ``index`` is its place in the boot's whole list."""
    if entry.is_violation:
        # First of all: nothing else that the entry says is vouched for.
        action = judge.violation_action(entry.name)
        kind = VIOLATION if action else VIOLATION_STATED
        return EntryVerdict(kind, action, Outcome.FAIL)
    if entry.template.fields is None:
        return EntryVerdict(TEMPLATE, judge.rules.unknown, Outcome.UNKNOWN)
    if "buf" in entry.template.fields:
        return _buffer(entry, judge)
    if index == 0:
        return EntryVerdict(FIRST)
    if entry.name == BOOT_AGGREGATE:
        return _later_boot(entry, judge, boot_pcrs)
    if judge.excludes(entry.name):
        return EntryVerdict(EXCLUDED)
    digest = entry.digest
    if digest is None:
        note = "the entry's template has no digest of the content"
        return EntryVerdict(
            FileMatch.UNKNOWN.value, judge.rules.unknown, Outcome.UNKNOWN, note=note
        )
    return _file(entry, digest, judge)


def _buffer(entry: ImaEntry, judge: ImaJudge) -> EntryVerdict:
    data, digest = entry.fields()["buf"], entry.digest
    known = digest.digest if digest else None
    if known is not None and known.algorithm.hash(data) != known.value:
        note = "the entry's digest is not that of its buffer"
        return EntryVerdict(BUFFER_DIGEST, Action.CONTRAINDICATE, Outcome.FAIL, note=note)
    sha256 = hashlib.sha256(data).digest()
    details: dict[str, JsonValue] = {"sha256": sha256.hex()}
    if sha256 in judge.rules.known_buffers:
        return EntryVerdict(BUFFER_KNOWN)
    if entry.name in _KEXEC_EVENTS:
        note = "a kernel was loaded for kexec"
        return EntryVerdict(KEXEC, judge.rules.kexec, Outcome.UNKNOWN, note=note, details=details)
    action = judge.buffer_action(entry.name)
    kind = BUFFER if action else BUFFER_STATED
    return EntryVerdict(kind, action, Outcome.UNKNOWN, details=details)


def _later_boot(entry: ImaEntry, judge: ImaJudge, boot_pcrs: Sequence[PcrBank]) -> EntryVerdict:
    """Judge a boot_aggregate that is not the first: the list was carried over a kexec."""
    digest = entry.digest
    note = "another kernel was started by kexec; the event log says nothing of it"
    try:
        if digest is not None:
            verify_boot_aggregate(digest, boot_pcrs)
    except VerificationError as error:
        if error.check == I9_BOOT_AGGREGATE.id:
            return EntryVerdict(KEXEC, Action.CONTRAINDICATE, Outcome.FAIL, note=error.what)
    return EntryVerdict(KEXEC, judge.rules.kexec, Outcome.UNKNOWN, note=note)


def _file(entry: ImaEntry, digest: FileDigest, judge: ImaJudge) -> EntryVerdict:
    comparison = judge.references.compare(entry.name, digest)
    kind = comparison.match.value
    if comparison.match is FileMatch.KNOWN:
        return EntryVerdict(KNOWN, label=judge.references.label(comparison.expected[0].provenance))
    if comparison.elsewhere and judge.takes_copies(entry.name):
        return EntryVerdict(KNOWN, label=judge.references.label(comparison.elsewhere[0].provenance))
    if comparison.match is FileMatch.OTHER_CONTENT:
        if all(expected.conffile for expected in comparison.expected):
            # Changing it is allowed, so what it holds is unknown rather than wrong.
            action = judge.rules.conffiles
            return EntryVerdict(CONFFILE, action, Outcome.UNKNOWN, comparison=comparison)
        # A signature says who made the content, not that it belongs at this path.
        return EntryVerdict(kind, Action.CONTRAINDICATE, Outcome.FAIL, comparison=comparison)
    signed = signature_of(entry, digest, judge.rules.keyring)
    if isinstance(signed, WrongSignature):
        why = signed.why
        return EntryVerdict(BAD_SIGNATURE, Action.CONTRAINDICATE, Outcome.FAIL, note=why)
    if signed:
        return EntryVerdict(SIGNED)
    action_here = judge.unknown_action(entry.name)
    if action_here is None:
        return EntryVerdict(UNKNOWN_STATED)
    return EntryVerdict(kind, action_here, Outcome.UNKNOWN, comparison=comparison)


def tell(
    entry: ImaEntry, index: int, verdict: EntryVerdict, action: Action, judge: ImaJudge
) -> Judgement:
    """Return the judgement on a deviation, which does ``action``."""
    details: dict[str, JsonValue] = {"kind": verdict.kind, "entry": index, **verdict.details}
    summary = _TOLD.get(verdict.kind, _tell_file)(entry, index, verdict, judge, details)
    expected = verdict.comparison.expected if verdict.comparison else ()
    source = "; ".join(dict.fromkeys(str(one.provenance) for one in expected)) or SOURCE
    name = _IDS.get(verdict.kind, "ima.file")
    return failed(Finding(name, verdict.outcome, summary, details, source), CLAIM, action)


_Details = dict[str, JsonValue]


PATH_MAX = 4096
"""No path is longer in Linux (include/uapi/linux/limits.h); of longer names the start is shown."""


def _shown(name: bytes) -> str:
    return escape_path(name[:PATH_MAX]) + ("…" if len(name) > PATH_MAX else "")


def _tell_violation(
    entry: ImaEntry, index: int, _verdict: EntryVerdict, _judge: ImaJudge, details: _Details
) -> str:
    path = _shown(entry.name)
    details["claimed-path"] = path
    return (
        f"entry {index} is a violation (claimed: {path}): a file was open for writing while it was "
        "measured, or the reverse"
    )


def _tell_template(
    entry: ImaEntry, index: int, _verdict: EntryVerdict, _judge: ImaJudge, details: _Details
) -> str:
    name = entry.template.name.decode()
    details["template"] = name
    return f"entry {index} has a template that we do not know: {name}"


def _tell_buffer(
    entry: ImaEntry, _index: int, verdict: EntryVerdict, _judge: ImaJudge, details: _Details
) -> str:
    event = _shown(entry.name)
    details["event"] = event
    buffer = entry.fields().get("buf")
    if buffer is not None:
        details["says"] = describe_buffer(decode_buffer(entry.name, buffer))[:SAYS_SIZE]
    return f"{event}: {verdict.note or 'a kernel buffer that no rule calls good'}"


def _tell_file(
    entry: ImaEntry, _index: int, verdict: EntryVerdict, judge: ImaJudge, details: _Details
) -> str:
    path = _shown(entry.name)
    details["path"], details["digest"] = path, str(entry.digest)
    comparison = verdict.comparison
    if comparison is None:
        return f"{path}: {verdict.note}"
    details["expected"] = [
        {"digest": f"{e.algorithm}:{e.digest.hex()}", "source": str(e.provenance)}
        for e in comparison.expected
    ]
    details["content-of"] = [
        {"path": escape_path(e.path), "source": str(e.provenance)} for e in comparison.elsewhere
    ]
    if comparison.match is FileMatch.OTHER_ALGORITHM:
        return f"{path}: no reference for it is in the algorithm that was measured"
    same = _same_content(entry, comparison)
    if verdict.kind == CONFFILE:
        return f"{path} was changed by an administrator, as its package allows{same}"
    if comparison.match is FileMatch.OTHER_CONTENT:
        known = "; ".join(dict.fromkeys(str(e.provenance) for e in comparison.expected))
        return f"{path} is not what it should be ({known}){same}"
    nearest = [escape_path(known) for known in judge.references.nearest(entry.name)]
    details["nearest"] = list(nearest)
    near = f"; the nearest known one is {nearest[0]}" if nearest else ""
    return f"{path} is not a known path{same}{near}"


def _same_content(entry: ImaEntry, comparison: FileComparison) -> str:
    if _is_empty(entry.digest):
        return "; the file is empty"  # it equals every other empty file, which means nothing
    if comparison.elsewhere:
        return f"; it has the content of {escape_path(comparison.elsewhere[0].path)}"
    return ""


_TOLD = {
    VIOLATION: _tell_violation,
    TEMPLATE: _tell_template,
    BUFFER: _tell_buffer,
    BUFFER_DIGEST: _tell_buffer,
    KEXEC: _tell_buffer,
}
_IDS = {
    VIOLATION: "ima.violation",
    TEMPLATE: "ima.template",
    BUFFER: "ima.buffer",
    BUFFER_DIGEST: "ima.buffer",
    KEXEC: "ima.kexec",
    BAD_SIGNATURE: "ima.signature",
}
SAYS_SIZE = 500
"""How many characters of what a buffer says a finding repeats at most."""


def _is_empty(digest: FileDigest | None) -> bool:
    known = digest.digest if digest else None
    return known is not None and known.algorithm.hash(b"") == known.value
