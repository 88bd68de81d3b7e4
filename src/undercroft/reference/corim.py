"""Reference sets as CoRIM, out and in.

Our profile (:data:`PROFILE`) has one CoMID.  Its reference triples are told apart by
``class.model``: ``boot-events`` (one triple for each PCR, ``class.index``), ``pcrs``
(integrity registers), ``files`` (``mkey`` is the path), ``kernels`` (``mkey`` is the release,
``raw-value`` the build id, the digest that of vmlinuz).  Provenance, which CoMID has no place
for, stands under private-use keys: a table in the CoMID, an index and a role in a measurement.

A CoRIM without a profile is read as far as its meaning is plain: integrity registers 0 to 23
are PCRs, digests under an absolute path are files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from undercroft.base import PCR_COUNT, Digest, FormatError, Grade
from undercroft.formats import cbor
from undercroft.formats.corim import (
    ClassMap,
    Comid,
    Corim,
    Measurement,
    ReferenceTriple,
    encode_corim,
    parse_corim,
)
from undercroft.formats.corim.model import FORMAT
from undercroft.reference.model import (
    KernelReference,
    Provenance,
    ReferenceSet,
    ReferenceValue,
)

PROFILE = "tag:undercroft.example,2026:corim/1"
VENDOR = "undercroft"

_EVENTS, _PCRS, _FILES, _KERNELS = "boot-events", "pcrs", "files", "kernels"
_PROVENANCE, _ROLE = -1, -2


class _Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    grade: Grade
    package: str = ""
    version: str = ""
    origin: str = ""
    release_sha256: str = ""
    signer: str = ""
    note: str = ""


def _fail(reason: str, got: object = "") -> FormatError:
    return FormatError(FORMAT, 0, reason, got=got)


class _Writer:
    def __init__(self) -> None:
        self.table: dict[Provenance, int] = {}

    def _extensions(self, provenance: Provenance, role: str = "") -> dict[int, object]:
        index = self.table.setdefault(provenance, len(self.table))
        return {_PROVENANCE: index, **({_ROLE: role} if role else {})}

    def digests(self, value: ReferenceValue, mkey: str | None = None) -> Measurement:
        extensions = self._extensions(value.provenance, value.role)
        return Measurement(mkey, value.digests, None, value.description, {}, extensions)

    def register(self, pcr: int, value: ReferenceValue) -> Measurement:
        extensions = self._extensions(value.provenance, value.role)
        registers: dict[int | str, tuple[Digest, ...]] = {pcr: value.digests}
        return Measurement(None, (), None, value.description, registers, extensions)

    def kernel(self, kernel: KernelReference) -> Measurement:
        extensions = self._extensions(kernel.provenance)
        vmlinuz = (kernel.vmlinuz,)
        return Measurement(kernel.release, vmlinuz, kernel.build_id, None, {}, extensions)


def _triple(
    model: str, measurements: Iterable[Measurement], index: int | None = None
) -> Iterator[ReferenceTriple]:
    found = tuple(measurements)
    if found:
        yield ReferenceTriple(ClassMap(vendor=VENDOR, model=model, index=index), found)


def _triples(references: ReferenceSet, writer: _Writer) -> Iterator[ReferenceTriple]:
    for pcr, values in references.events.items():
        yield from _triple(_EVENTS, map(writer.digests, values), pcr)
    pcrs = ((pcr, value) for pcr, values in references.pcrs.items() for value in values)
    yield from _triple(_PCRS, (writer.register(pcr, value) for pcr, value in pcrs))
    files = ((path, value) for path, values in references.files.items() for value in values)
    yield from _triple(_FILES, (writer.digests(value, path) for path, value in files))
    yield from _triple(_KERNELS, map(writer.kernel, references.kernels))


def to_corim(references: ReferenceSet) -> Corim:
    """Return ``references`` as a CoRIM.

    Raises ValueError if the set is empty, or has tables of packaged files.
    """
    if references.archives or references.states:
        raise ValueError("tables of files and states of packages have no form in a CoRIM")
    if references.is_empty:
        raise ValueError("an empty reference set has no CoRIM: one tag needs one triple")
    writer = _Writer()
    triples = tuple(_triples(references, writer))
    table = [
        msgspec.to_builtins(
            _Provenance(p.grade, p.package, p.version, p.origin, p.release_sha256, p.signer, p.note)
        )
        for p in writer.table
    ]
    comid = Comid(references.name, triples, extensions={_PROVENANCE: table})
    return Corim(references.name, (comid,), PROFILE)


class _Reader:
    """Collects a reference set.  ``table`` is the CoMID's provenances, or the one for all."""

    def __init__(self, table: list[Provenance] | Provenance) -> None:
        self.table = table
        self.events: dict[int, list[ReferenceValue]] = {}
        self.pcrs: dict[int, list[ReferenceValue]] = {}
        self.files: dict[str, list[ReferenceValue]] = {}
        self.kernels: list[KernelReference] = []

    def _extensions(self, measurement: Measurement) -> tuple[Provenance, str]:
        extensions = dict(measurement.extensions)
        if isinstance(self.table, Provenance):
            if extensions:
                raise _fail("private-use items without a profile", got=[*extensions])
            return self.table, ""
        index, role = extensions.pop(_PROVENANCE, None), extensions.pop(_ROLE, "")
        if type(index) is not int or not 0 <= index < len(self.table):
            raise _fail("a measurement without a provenance", got=index)
        if not isinstance(role, str) or extensions:
            raise _fail("private-use items that our profile does not have", got=[*extensions])
        return self.table[index], role

    def value(self, measurement: Measurement, digests: tuple[Digest, ...]) -> ReferenceValue:
        provenance, role = self._extensions(measurement)
        return ReferenceValue(digests, measurement.name or "", provenance, role)

    def add_event(self, pcr: int | None, measurement: Measurement) -> None:
        if pcr is None or measurement.mkey is not None:
            raise _fail("a boot event without its PCR or with a key")
        self.events.setdefault(pcr, []).append(self.value(measurement, measurement.digests))

    def add_registers(self, measurement: Measurement) -> None:
        if measurement.digests or measurement.mkey is not None:
            raise _fail("PCR values with digests or a key of their own", got=measurement.mkey)
        for pcr, digests in measurement.integrity_registers.items():
            if not isinstance(pcr, int) or pcr >= PCR_COUNT:
                raise _fail("an integrity register that is no PCR", got=pcr)
            self.pcrs.setdefault(pcr, []).append(self.value(measurement, digests))

    def add_file(self, measurement: Measurement) -> None:
        path = measurement.mkey
        if not isinstance(path, str):
            raise _fail("a file without its path", got=path)
        self.files.setdefault(path, []).append(self.value(measurement, measurement.digests))

    def add_kernel(self, measurement: Measurement) -> None:
        release, build_id = measurement.mkey, measurement.raw_value
        if not isinstance(release, str) or build_id is None or len(measurement.digests) != 1:
            raise _fail("a kernel has a release, a build id and one digest", got=release)
        provenance, _ = self._extensions(measurement)
        vmlinuz = measurement.digests[0]
        self.kernels.append(KernelReference(release, vmlinuz, build_id, provenance))

    def result(self, name: str) -> ReferenceSet:
        return ReferenceSet(
            name,
            {pcr: tuple(values) for pcr, values in self.events.items()},
            {pcr: tuple(values) for pcr, values in self.pcrs.items()},
            {path: tuple(values) for path, values in self.files.items()},
            tuple(self.kernels),
        )


def _read_ours(triple: ReferenceTriple, reader: _Reader) -> None:
    environment = triple.environment
    if environment.vendor != VENDOR:
        raise _fail("an environment that our profile does not have", got=environment.vendor)
    for measurement in triple.measurements:
        match environment.model:
            case "boot-events":
                reader.add_event(environment.index, measurement)
            case "pcrs":
                reader.add_registers(measurement)
            case "files":
                reader.add_file(measurement)
            case "kernels":
                reader.add_kernel(measurement)
            case other:
                raise _fail("a kind of value that our profile does not have", got=other)


def _read_plain(triple: ReferenceTriple, reader: _Reader) -> None:
    for measurement in triple.measurements:
        path = measurement.mkey
        if measurement.integrity_registers:
            reader.add_registers(measurement)
        elif isinstance(path, str) and path.startswith("/") and measurement.digests:
            reader.add_file(measurement)
        else:
            raise _fail("a measurement whose meaning no profile gives", got=path)


def _table(comid: Comid) -> list[Provenance]:
    extensions = dict(comid.extensions)
    table = cbor.convert(extensions.pop(_PROVENANCE, None), list[_Provenance], FORMAT)
    if extensions:
        raise _fail("private-use items that our profile does not have", got=[*extensions])
    return [Provenance(**msgspec.structs.asdict(one)) for one in table]


def from_corim(corim: Corim, provenance: Provenance) -> ReferenceSet:
    """Return the reference values in ``corim``.

    ``provenance`` is given to values of a CoRIM without a profile, which does not say where they
    come from; values of our profile bring their own.  Raises FormatError for any other profile
    and for whatever has no place in a reference set.
    """
    if corim.profile not in (None, PROFILE):
        raise _fail("a CoRIM profile that we do not know", got=corim.profile)
    ours = corim.profile == PROFILE
    if ours and len(corim.comids) != 1:
        raise _fail("our profile has one CoMID", got=len(corim.comids))
    reader = _Reader(_table(corim.comids[0]) if ours else provenance)
    try:
        for comid in corim.comids:
            if comid.extensions and not ours:
                raise _fail("private-use items without a profile", got=[*comid.extensions])
            for triple in comid.triples:
                (_read_ours if ours else _read_plain)(triple, reader)
        return reader.result(corim.id if isinstance(corim.id, str) else corim.id.hex())
    except ValueError as error:
        raise _fail(str(error)) from error


def encode_reference_corim(references: ReferenceSet) -> bytes:
    """Write ``references`` as a CoRIM file.  Raises ValueError if the set is empty."""
    return encode_corim(to_corim(references))


def parse_reference_corim(data: bytes, provenance: Provenance) -> ReferenceSet:
    """Read a CoRIM file; see :func:`from_corim`.  Raises FormatError."""
    return from_corim(parse_corim(data), provenance)
