"""Matching against a reference set.  A match gives the value; no match gives the difference."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from undercroft.base import Digest
from undercroft.reference.model import KernelReference, ReferenceSet, ReferenceValue


class DifferenceKind(enum.Enum):
    """Why nothing matched.  Only OTHER_VALUE says that the machine differs from what is known."""

    NO_REFERENCE = "no-reference"
    """Nothing is known about this place: could not tell."""
    OTHER_ALGORITHM = "other-algorithm"
    """Values are known, none in the algorithm that was found: could not tell."""
    OTHER_VALUE = "other-value"
    """Values are known in this algorithm, and none of them is the one found."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What was found where, and what would have been right (in the algorithm found, if any)."""

    kind: DifferenceKind
    where: str
    found: str
    expected: tuple[ReferenceValue, ...] = ()


def match_value(
    values: Iterable[ReferenceValue], found: Digest, where: str
) -> ReferenceValue | Difference:
    """Return the one of ``values`` that has the digest ``found``, or the difference.

    ``where`` names the place for a person (``PCR 4``, ``/usr/bin/true``).  Reference values are
    public, so the comparison need not take constant time.
    """
    known = tuple(values)
    comparable = tuple(v for v in known if v.digest(found.algorithm) is not None)
    for value in comparable:
        if found in value.digests:
            return value
    if not known:
        return Difference(DifferenceKind.NO_REFERENCE, where, str(found))
    if not comparable:
        return Difference(DifferenceKind.OTHER_ALGORITHM, where, str(found), known)
    return Difference(DifferenceKind.OTHER_VALUE, where, str(found), comparable)


def match_event(references: ReferenceSet, pcr: int, found: Digest) -> ReferenceValue | Difference:
    """Match a digest that was extended into ``pcr`` against the events known for that PCR."""
    return match_value(references.events.get(pcr, ()), found, f"PCR {pcr} event")


def match_pcr(references: ReferenceSet, pcr: int, found: Digest) -> ReferenceValue | Difference:
    """Match the value of ``pcr`` against the values predicted for it."""
    return match_value(references.pcrs.get(pcr, ()), found, f"PCR {pcr}")


def match_file(references: ReferenceSet, path: str, found: Digest) -> ReferenceValue | Difference:
    """Match a file's content digest against the contents known for ``path``."""
    return match_value(references.files.get(path, ()), found, path)


@dataclass(frozen=True, slots=True)
class KernelDifference:
    """No kernel reference has both the release and the build id; ``nearest`` has one of them."""

    kind: DifferenceKind
    release: str
    build_id: bytes
    nearest: tuple[KernelReference, ...] = ()


def match_kernel(
    references: ReferenceSet, release: str, build_id: bytes
) -> KernelReference | KernelDifference:
    """Match a running kernel, by release and build id together, against the kernels known."""
    for kernel in references.kernels:
        if (kernel.release, kernel.build_id) == (release, build_id):
            return kernel
    nearest = tuple(k for k in references.kernels if k.release == release or k.build_id == build_id)
    kind = DifferenceKind.OTHER_VALUE if references.kernels else DifferenceKind.NO_REFERENCE
    return KernelDifference(kind, release, build_id, nearest)


def missing_roles(references: ReferenceSet, pcr: int, seen: Iterable[ReferenceValue]) -> list[str]:
    """Return the roles known for ``pcr`` that no value in ``seen`` fills, sorted."""
    required = {value.role for value in references.events.get(pcr, ()) if value.role}
    return sorted(required - {value.role for value in seen})
