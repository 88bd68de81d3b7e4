"""The JSON form of a reference set.  Strict, versioned, each provenance written once.

::

    {"format": "undercroft.reference/1", "name": ...,
     "provenances": [{"grade": "package", "package": ...}, ...],
     "events": {"4": [{"digests": ["sha256:<hex>"], "description": ..., "provenance": 0}]},
     "pcrs": {...}, "files": {"/usr/bin/true": [...]},
     "kernels": [{"release": ..., "vmlinuz": "sha256:<hex>", "build_id": "<hex>", ...}],
     "archives": ["<hex>"],
     "states": [{"package": ..., "version": ..., "superseded": ..., "successor": ...}]}

Empty parts and fields may be left out, and are when written.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from undercroft.base import PCR_COUNT, Digest, FormatError, HashAlgorithm
from undercroft.formats import strict_json
from undercroft.reference.model import (
    Grade,
    KernelReference,
    PackageState,
    Provenance,
    ReferenceSet,
    ReferenceValue,
)

FORMAT = "undercroft.reference/1"
MAX_SIZE = 256 << 20
"""Bytes of the largest set we read; 100,000 files take about 25 MB."""

_NAME = "reference set"


class _Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    grade: Grade
    package: str = ""
    version: str = ""
    origin: str = ""
    release_sha256: str = ""
    signer: str = ""
    note: str = ""


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    digests: list[str]
    description: str
    provenance: int
    role: str = ""


class _Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    release: str
    vmlinuz: str
    build_id: str
    provenance: int


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    package: str
    version: str
    superseded: int = 0
    successor: str = ""
    advisories: tuple[str, ...] = ()


class _Set(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    name: str
    provenances: list[_Provenance] = []
    events: dict[str, list[_Value]] = {}
    pcrs: dict[str, list[_Value]] = {}
    files: dict[str, list[_Value]] = {}
    kernels: list[_Kernel] = []
    archives: list[str] = []
    states: list[_State] = []


def _fail(reason: str, *, expected: object = "", got: object = "") -> FormatError:
    return FormatError(_NAME, 0, reason, expected=expected, got=got)


def parse_digest(text: str) -> Digest:
    """Decode ``sha256:<hex>``.  Raises FormatError."""
    name, _, value = text.partition(":")
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise _fail("unknown hash algorithm", got=repr(name[:40]))
    try:
        return Digest(algorithm, strict_json.unhex(value))
    except ValueError as error:
        raise _fail(str(error)) from error


class _Reader:
    """Turns wire structs into model values, with the document's provenance table at hand."""

    def __init__(self, provenances: list[_Provenance]) -> None:
        self._provenances = [Provenance(**msgspec.structs.asdict(p)) for p in provenances]

    def _provenance(self, index: int) -> Provenance:
        if not 0 <= index < len(self._provenances):
            raise _fail(
                "no such provenance", expected=f"0..{len(self._provenances) - 1}", got=index
            )
        return self._provenances[index]

    def values(self, wire: list[_Value]) -> tuple[ReferenceValue, ...]:
        return tuple(
            ReferenceValue(
                tuple(parse_digest(text) for text in value.digests),
                value.description,
                self._provenance(value.provenance),
                value.role,
            )
            for value in wire
        )

    def per_pcr(self, wire: dict[str, list[_Value]]) -> dict[int, tuple[ReferenceValue, ...]]:
        if unknown := wire.keys() - set(map(str, range(PCR_COUNT))):
            raise _fail("not a PCR index", expected="0..23", got=repr(min(unknown)[:40]))
        return {int(index): self.values(values) for index, values in wire.items()}

    def kernel(self, wire: _Kernel) -> KernelReference:
        return KernelReference(
            wire.release,
            parse_digest(wire.vmlinuz),
            strict_json.unhex(wire.build_id),
            self._provenance(wire.provenance),
        )


def parse_reference_set(data: bytes) -> ReferenceSet:
    """Parse a reference set from JSON.  Raises FormatError."""
    wire = strict_json.parse(data, _Set, _NAME, limit=MAX_SIZE)
    if wire.format != FORMAT:
        raise _fail("another format or version", expected=FORMAT, got=repr(wire.format[:80]))
    reader = _Reader(wire.provenances)
    try:
        return ReferenceSet(
            wire.name,
            reader.per_pcr(wire.events),
            reader.per_pcr(wire.pcrs),
            {path: reader.values(values) for path, values in wire.files.items()},
            tuple(reader.kernel(kernel) for kernel in wire.kernels),
            tuple(wire.archives),
            tuple(PackageState(**msgspec.structs.asdict(state)) for state in wire.states),
        )
    except ValueError as error:
        raise _fail(str(error)) from error


class _Writer:
    def __init__(self) -> None:
        self.table: dict[Provenance, int] = {}

    def _index(self, provenance: Provenance) -> int:
        return self.table.setdefault(provenance, len(self.table))

    def values(self, values: tuple[ReferenceValue, ...]) -> list[_Value]:
        return [
            _Value([str(d) for d in v.digests], v.description, self._index(v.provenance), v.role)
            for v in values
        ]

    def per_pcr(self, values: Mapping[int, tuple[ReferenceValue, ...]]) -> dict[str, list[_Value]]:
        return {str(index): self.values(group) for index, group in values.items()}

    def kernel(self, kernel: KernelReference) -> _Kernel:
        return _Kernel(
            kernel.release,
            str(kernel.vmlinuz),
            kernel.build_id.hex(),
            self._index(kernel.provenance),
        )


def encode_reference_set(references: ReferenceSet) -> bytes:
    """Write ``references`` as JSON; equal sets give equal bytes."""
    writer = _Writer()
    events, pcrs = writer.per_pcr(references.events), writer.per_pcr(references.pcrs)
    files = {path: writer.values(values) for path, values in references.files.items()}
    kernels = [writer.kernel(kernel) for kernel in references.kernels]
    provenances = [
        _Provenance(p.grade, p.package, p.version, p.origin, p.release_sha256, p.signer, p.note)
        for p in writer.table
    ]
    states = [
        _State(s.package, s.version, s.superseded, s.successor, s.advisories)
        for s in references.states
    ]
    archives = list(references.archives)
    return strict_json.encode(
        _Set(FORMAT, references.name, provenances, events, pcrs, files, kernels, archives, states)
    )
