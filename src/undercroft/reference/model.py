"""The reference model: values that a good machine shows, and where each one came from.

A :class:`ReferenceSet` is a value: it is derived (from packages, from a firmware run), merged,
written as JSON (:mod:`undercroft.reference.serialise`) or CoRIM (:mod:`undercroft.formats.corim`)
and matched against (:mod:`undercroft.reference.match`).  Nothing here decides what a mismatch
means for the machine (``appraise``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from undercroft.base import PCR_COUNT, Digest, Grade, HashAlgorithm

__all__ = [
    "MAX_BUILD_ID_SIZE",
    "Grade",
    "KernelReference",
    "PackageState",
    "Provenance",
    "ReferenceSet",
    "ReferenceValue",
    "merge",
]

MAX_BUILD_ID_SIZE = 64
"""Longest GNU build id in bytes that we take: ld writes 16 or 20, ``--build-id=0x`` any."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a reference value came from.  Empty text means that there is nothing to say.

    ``origin`` names the archive (suite, component) and file; ``release_sha256`` is the digest of
    the signed Release file, in hexadecimal, at the root of the chain; ``signer`` is the
    fingerprint of the key that signed it.
    """

    grade: Grade
    package: str = ""
    version: str = ""
    origin: str = ""
    release_sha256: str = ""
    signer: str = ""
    note: str = ""

    def __str__(self) -> str:
        subject = f"{self.package} {self.version}".strip() or self.origin or self.note
        return f"{self.grade.value}: {subject}" if subject else self.grade.value


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """One thing that may be measured: its digest in one or more algorithms, and its provenance.

    ``role`` names what must be measured at this place (``kernel``, ``shim``).  Values of one role
    are alternatives, and at least one of them has to be seen: an allowed event that never
    happened is not noticed otherwise.  An empty role means that the value may be absent.
    """

    digests: tuple[Digest, ...]
    description: str
    provenance: Provenance
    role: str = ""

    def __post_init__(self) -> None:
        if not self.digests:
            raise ValueError("a reference value needs at least one digest")
        algorithms = [digest.algorithm for digest in self.digests]
        if len(set(algorithms)) != len(algorithms):
            raise ValueError("a reference value has one digest for each algorithm")

    def digest(self, algorithm: HashAlgorithm) -> Digest | None:
        """Return the digest in ``algorithm``, or None."""
        return next((d for d in self.digests if d.algorithm is algorithm), None)


@dataclass(frozen=True, slots=True)
class KernelReference:
    """A kernel that may run: its release (``uname -r``), its image and its GNU build id.

    ``vmlinuz`` is the digest of the packaged bzImage file.  ``build_id`` is the build id note
    (``NT_GNU_BUILD_ID``) of the ELF inside, in raw bytes.
    """

    release: str
    vmlinuz: Digest
    build_id: bytes
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.release:
            raise ValueError("a kernel reference needs a release")
        if not 1 <= len(self.build_id) <= MAX_BUILD_ID_SIZE:
            raise ValueError(f"a build id has 1 to {MAX_BUILD_ID_SIZE} bytes")


@dataclass(frozen=True, slots=True)
class PackageState:
    """A package's version that is not the one of today.

    ``superseded`` is since when there is a newer one (Unix s), the ``successor``; ``advisories``
    name the security advisories that ``version`` is without.  At least one of both is there.
    """

    package: str
    version: str
    superseded: int = 0
    successor: str = ""
    advisories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.package or not self.version:
            raise ValueError("the state of a package needs its name and version")
        if self.superseded < 0 or not (self.superseded or self.advisories):
            raise ValueError(f"{self.package} {self.version}: superseded by nothing, at no time")


_PerPcr = Mapping[int, tuple[ReferenceValue, ...]]


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """Everything known to be good for one kind of machine.

    ``events``: for each PCR, the measured-boot events that may appear there; a value's digests
    are what is extended.  ``pcrs``: for each PCR, the values it may have at the time of the
    quote; a value's digests are one PCR value in each bank.  ``files``: for each absolute path,
    the contents it may have.  ``kernels``: the kernels that may run.

    ``archives`` names (SHA-256, hexadecimal) tables of packaged files that belong to the set and
    are kept beside it (:mod:`undercroft.reference.archive`).  ``states`` says which versions of
    packages are superseded or known to be vulnerable; every other one is current.
    """

    name: str
    events: _PerPcr = field(default_factory=dict)
    pcrs: _PerPcr = field(default_factory=dict)
    files: Mapping[str, tuple[ReferenceValue, ...]] = field(default_factory=dict)
    kernels: tuple[KernelReference, ...] = ()
    archives: tuple[str, ...] = ()
    states: tuple[PackageState, ...] = ()

    def __post_init__(self) -> None:
        for name in self.archives:
            if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
                raise ValueError(f"{name[:80]!r} is not the SHA-256 of a file table")
        for index in (*self.events, *self.pcrs):
            if not 0 <= index < PCR_COUNT:
                raise ValueError(f"PCR {index} is not one of 0..{PCR_COUNT - 1}")
        for path in self.files:
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"{path[:80]!r} is not an absolute path")
        for attribute in ("events", "pcrs", "files"):
            # An empty group says no more than an absent one: equal sets look equal.
            values = {k: v for k, v in sorted(getattr(self, attribute).items()) if v}
            object.__setattr__(self, attribute, MappingProxyType(values))

    @property
    def is_empty(self) -> bool:
        """True if the set holds no reference value at all; nothing passes against it."""
        return not (self.events or self.pcrs or self.files or self.kernels or self.archives)

    def grades(self) -> frozenset[Grade]:
        """Return every grade that occurs in the set."""
        groups = (*self.events.values(), *self.pcrs.values(), *self.files.values())
        values = {value.provenance.grade for group in groups for value in group}
        return frozenset(values | {kernel.provenance.grade for kernel in self.kernels})


_Item = TypeVar("_Item", ReferenceValue, KernelReference, str, PackageState)
_Key = TypeVar("_Key", int, str)


def _union(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(items))


def _merged(
    maps: Iterable[Mapping[_Key, tuple[ReferenceValue, ...]]],
) -> dict[_Key, tuple[ReferenceValue, ...]]:
    collected: dict[_Key, list[ReferenceValue]] = {}
    for one in maps:
        for key, values in one.items():
            collected.setdefault(key, []).extend(values)
    return {key: _union(values) for key, values in collected.items()}


def merge(name: str, sets: Iterable[ReferenceSet]) -> ReferenceSet:
    """Return the union of ``sets``, in order, each value once, as a set called ``name``.

    Merge what describes the same machine (its firmware, its packages before and after an
    update).  Roles add up: a role that one set knows has to be filled in the merged set too.
    """
    parts = tuple(sets)
    return ReferenceSet(
        name=name,
        events=_merged(part.events for part in parts),
        pcrs=_merged(part.pcrs for part in parts),
        files=_merged(part.files for part in parts),
        kernels=_union(kernel for part in parts for kernel in part.kernels),
        archives=_union(name for part in parts for name in part.archives),
        states=_union(state for part in parts for state in part.states),
    )
