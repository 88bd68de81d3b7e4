"""CoRIM values to deterministic CBOR."""

from __future__ import annotations

from collections.abc import Iterable

from undercroft.base import Digest
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue, Tagged
from undercroft.formats.corim import model
from undercroft.formats.corim.model import (
    ClassMap,
    Comid,
    Corim,
    Entity,
    Measurement,
    ReferenceTriple,
    Validity,
)


def _present(pairs: dict[int, CborValue]) -> dict[int, CborValue]:
    return {key: value for key, value in pairs.items() if value not in (None, [], {}, ())}


def _digests(digests: Iterable[Digest]) -> list[CborValue]:
    return [[model.NAMED_INFORMATION[d.algorithm], d.value] for d in digests]


def _class(environment: ClassMap) -> dict[int, CborValue]:
    return _present(
        {
            0: environment.class_id,
            1: environment.vendor,
            2: environment.model,
            3: environment.layer,
            4: environment.index,
        }
    )


def _measurement(measurement: Measurement) -> dict[int, CborValue]:
    raw = measurement.raw_value
    registers = {k: _digests(v) for k, v in measurement.integrity_registers.items()}
    values = {
        2: _digests(measurement.digests),
        4: None if raw is None else Tagged(model.BYTES, raw),
        11: measurement.name,
        14: registers,
    }
    return _present({0: measurement.mkey, 1: {**_present(values), **measurement.extensions}})


def _triple(triple: ReferenceTriple) -> list[CborValue]:
    return [{0: _class(triple.environment)}, [_measurement(m) for m in triple.measurements]]


def _entity(entity: Entity) -> dict[int, CborValue]:
    reg_id = None if entity.reg_id is None else Tagged(model.URI, entity.reg_id)
    return _present({0: entity.name, 1: reg_id, 2: list(entity.roles)})


def _comid(comid: Comid) -> Tagged:
    value = _present(
        {
            0: comid.language,
            1: _present({0: comid.tag_id, 1: comid.tag_version}),
            2: [_entity(entity) for entity in comid.entities],
            4: {0: [_triple(triple) for triple in comid.triples]},
        }
    )
    return Tagged(model.COMID, cbor.encode({**value, **comid.extensions}))


def _validity(validity: Validity | None) -> dict[int, CborValue] | None:
    if validity is None:
        return None
    start = validity.not_before
    return _present(
        {
            0: None if start is None else Tagged(model.EPOCH_TIME, start),
            1: Tagged(model.EPOCH_TIME, validity.not_after),
        }
    )


def _profile(profile: model.Id | None) -> Tagged | None:
    if profile is None:
        return None
    return Tagged(model.URI if isinstance(profile, str) else model.OID, profile)


def encode_corim(corim: Corim) -> bytes:
    """Encode ``corim`` as ``tagged-unsigned-corim-map``.

    The draft wants at least one tag, triple and measurement in each list; ``parse_corim`` refuses
    what this writes for values that have none.
    """
    value = _present(
        {
            0: corim.id,
            1: [_comid(comid) for comid in corim.comids],
            3: _profile(corim.profile),
            4: _validity(corim.validity),
            5: [_entity(entity) for entity in corim.entities],
        }
    )
    return cbor.encode(Tagged(model.CORIM, value))
