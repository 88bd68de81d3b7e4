"""Reference values from a machine that somebody trusts now.  Every one is marked as observed.

What a derived reference speaks of is never learned anew: a path that is known with another
content stays wrong, and is listed, and so is a kernel without a package.  Only verified evidence
has the type that is asked for here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from undercroft.appraise.ima_rules import ImaJudge
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Digest, Grade, HashAlgorithm, PcrBank
from undercroft.formats.ima import escape_path
from undercroft.reference.files import FileMatch
from undercroft.reference.match import Difference, KernelDifference, match_kernel, match_pcr
from undercroft.reference.model import (
    Provenance,
    ReferenceSet,
    ReferenceValue,
)
from undercroft.verify.ima import BOOT_AGGREGATE

BOOT_PCRS = (*range(10), 11, 12, 13, 14)
"""What can be learned as a value: 10 and 15 and above grow while the machine runs."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned, of grade OBSERVED, and what contradicts what is known and was not."""

    references: ReferenceSet
    contradicting: tuple[str, ...]


def learn(
    verified: VerifiedEvidence, references: ReferenceSet, judge: ImaJudge, now: int
) -> Learned:
    """Return what ``verified`` shows and ``references`` do not speak of.

    ``judge`` is compiled from ``references``; ``now`` (Unix s) is when somebody said that this
    machine is to be trusted.
    """
    day = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y-%m-%d")
    seen = Provenance(Grade.OBSERVED, note=f"seen on {verified.trust.guest}, {day}")
    contradicting: list[str] = []
    files: dict[str, list[ReferenceValue]] = {}
    for path, digest in _files(verified, judge, contradicting):
        values = files.setdefault(path, [])
        if all(digest not in value.digests for value in values):
            values.append(ReferenceValue((digest,), "a file", seen))
    contradicting += _kernel(verified, references)
    pcrs = {
        pcr: (ReferenceValue(digests, f"PCR {pcr} as it was", seen),)
        for pcr in BOOT_PCRS
        if (digests := _values(verified.quote.pcrs, references, pcr, contradicting))
    }
    return Learned(
        ReferenceSet(
            f"{references.name}, and {verified.trust.guest} as it was",
            pcrs=pcrs,
            files={path: tuple(values) for path, values in files.items()},
        ),
        tuple(dict.fromkeys(contradicting)),
    )


def _files(
    verified: VerifiedEvidence, judge: ImaJudge, contradicting: list[str]
) -> Iterator[tuple[str, Digest]]:
    if verified.ima is None:
        return
    violations = set(verified.ima.violations)
    for index in range(verified.ima.vouched):
        entry = verified.ima.measurements[index]
        digest = entry.digest
        if index in violations or digest is None or entry.name == BOOT_AGGREGATE:
            continue
        if entry.template.fields is None or "buf" in entry.template.fields:
            continue
        match = judge.references.compare(entry.name, digest).match
        if match is FileMatch.OTHER_CONTENT:
            contradicting.append(escape_path(entry.name))
        known = digest.digest if digest.kind == "ima" else None
        if match in (FileMatch.UNKNOWN, FileMatch.OTHER_PATH) and known is not None:
            yield entry.name.decode("utf-8", "surrogateescape"), known


def _values(
    banks: tuple[PcrBank, ...], references: ReferenceSet, pcr: int, contradicting: list[str]
) -> tuple[Digest, ...]:
    """Return the quoted values of a PCR of which nothing is known, neither value nor event."""
    found: dict[HashAlgorithm, Digest] = {
        bank.algorithm: Digest(bank.algorithm, bank.values[pcr])
        for bank in banks
        if pcr in bank.values
    }
    if pcr in references.events:
        return ()
    if pcr in references.pcrs:
        if any(isinstance(match_pcr(references, pcr, one), Difference) for one in found.values()):
            contradicting.append(f"PCR {pcr}")
        return ()
    return tuple(found.values())


def _kernel(verified: VerifiedEvidence, references: ReferenceSet) -> Iterator[str]:
    """Name a kernel that is not a known one: it is proven by its package, never learned."""
    record = verified.record
    if record is None or not record.kernel_build_id:
        return
    match = match_kernel(references, record.kernel_release, record.kernel_build_id)
    if isinstance(match, KernelDifference):
        yield f"kernel {record.kernel_release}"
