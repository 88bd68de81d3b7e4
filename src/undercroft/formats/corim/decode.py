"""Deterministic CBOR to CoRIM values, strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from undercroft.base import Digest, FormatError
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

T = TypeVar("T")

LIMITS = cbor.Limits(depth=16, items=1 << 23, size=256 << 20)
"""Room for 100,000 files with provenance."""

_ALGORITHMS = {number: algorithm for algorithm, number in model.NAMED_INFORMATION.items()}
_UUID_SIZE = 16


def _fail(where: str, reason: str, got: object = "") -> FormatError:
    return FormatError(model.FORMAT, 0, f"{where}: {reason}", got=got)


class _Map:
    """One CBOR map: each known key is taken once, and none may be left over."""

    def __init__(self, value: CborValue, where: str) -> None:
        if not isinstance(value, dict):
            raise _fail(where, "not a map")
        self.where = where
        self._left = dict(value)

    def optional(self, key: int, read: Callable[[CborValue, str], T]) -> T | None:
        """Take and read the item under ``key`` if it is there."""
        if key not in self._left:
            return None
        return read(self._left.pop(key), f"{self.where}.{key}")

    def required(self, key: int, read: Callable[[CborValue, str], T]) -> T:
        """Take and read the item under ``key``."""
        value = self.optional(key, read)
        if value is None:
            raise _fail(self.where, f"{key} is missing")
        return value

    def extensions(self) -> dict[int, CborValue]:
        """Take everything under negative keys."""
        keys = [key for key in self._left if isinstance(key, int) and key < 0]
        return {key: self._left.pop(key) for key in keys}

    def finish(self) -> None:
        """Refuse what was not taken."""
        if self._left:
            raise _fail(self.where, "items that we do not understand", got=[*self._left][:10])


def _text(value: CborValue, where: str) -> str:
    if not isinstance(value, str):
        raise _fail(where, "not text")
    return value


def _uint(value: CborValue, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _fail(where, "not an unsigned integer")
    return int(value)


def _tagged(tag: int, read: Callable[[CborValue, str], T]) -> Callable[[CborValue, str], T]:
    def read_tagged(value: CborValue, where: str) -> T:
        if not isinstance(value, Tagged) or value.tag != tag:
            raise _fail(where, f"not tagged {tag}")
        return read(value.value, where)

    return read_tagged


def _bytes(value: CborValue, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise _fail(where, "not bytes")
    return value


def _id(value: CborValue, where: str) -> model.Id:
    if isinstance(value, str) or (isinstance(value, bytes) and len(value) == _UUID_SIZE):
        return value
    raise _fail(where, "neither text nor a UUID")


def _each(read: Callable[[CborValue, str], T]) -> Callable[[CborValue, str], tuple[T, ...]]:
    """Return a reader of arrays with at least one item."""

    def read_all(value: CborValue, where: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not value:
            raise _fail(where, "not an array with at least one item")
        return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(value))

    return read_all


def _digest(value: CborValue, where: str) -> Digest:
    match value:
        case [int() | str() as number, bytes() as digest] if type(number) is not bool:
            algorithm = _ALGORITHMS.get(number)
            if algorithm is None:
                raise _fail(where, "unknown hash algorithm", got=number)
            if len(digest) != algorithm.size:
                raise _fail(where, f"not a {algorithm} digest", got=len(digest))
            return Digest(algorithm, digest)
    raise _fail(where, "not [algorithm, digest]")


def _digests(value: CborValue, where: str) -> model.Digests:
    digests = _each(_digest)(value, where)
    if len({digest.algorithm for digest in digests}) != len(digests):
        raise _fail(where, "two digests of one algorithm")
    return digests


def _class_id(value: CborValue, where: str) -> Tagged:
    match value:
        case Tagged(tag=model.UUID, value=bytes() as uuid) if len(uuid) == _UUID_SIZE:
            return value
        case Tagged(tag=model.OID | model.BYTES, value=bytes()):
            return value
    raise _fail(where, "neither a UUID, an OID nor bytes")


def _class(value: CborValue, where: str) -> ClassMap:
    fields = _Map(value, where)
    result = ClassMap(
        fields.optional(0, _class_id),
        fields.optional(1, _text),
        fields.optional(2, _text),
        fields.optional(3, _uint),
        fields.optional(4, _uint),
    )
    fields.finish()
    if result == ClassMap():
        raise _fail(where, "an empty class")
    return result


def _environment(value: CborValue, where: str) -> ClassMap:
    fields = _Map(value, where)
    result = fields.required(0, _class)
    fields.finish()
    return result


def _registers(value: CborValue, where: str) -> dict[int | str, model.Digests]:
    if not isinstance(value, dict) or not value:
        raise _fail(where, "not a map of registers")
    if any(isinstance(key, int) and key < 0 for key in value):
        raise _fail(where, "a register with a negative number")
    return {key: _digests(item, f"{where}.{key}") for key, item in value.items()}


def _mkey(value: CborValue, where: str) -> str | int:
    return value if isinstance(value, str) else _uint(value, where)


def _measurement(value: CborValue, where: str) -> Measurement:
    outer = _Map(value, where)
    mkey = outer.optional(0, _mkey)
    inner = outer.required(1, _Map)
    outer.finish()
    result = Measurement(
        mkey,
        inner.optional(2, _digests) or (),
        inner.optional(4, _tagged(model.BYTES, _bytes)),
        inner.optional(11, _text),
        inner.optional(14, _registers) or {},
        inner.extensions(),
    )
    inner.finish()
    if result == Measurement(mkey):
        raise _fail(where, "a measurement without a value")
    return result


def _triple(value: CborValue, where: str) -> ReferenceTriple:
    if not isinstance(value, list) or len(value) != 2:
        raise _fail(where, "not [environment, measurements]")
    environment = _environment(value[0], f"{where}.environment")
    return ReferenceTriple(environment, _each(_measurement)(value[1], f"{where}.claims"))


def _triples(value: CborValue, where: str) -> tuple[ReferenceTriple, ...]:
    fields = _Map(value, where)
    result = fields.required(0, _each(_triple))
    fields.finish()
    return result


def _entity(value: CborValue, where: str) -> Entity:
    fields = _Map(value, where)
    name = fields.required(0, _text)
    reg_id = fields.optional(1, _tagged(model.URI, _text))
    roles = fields.required(2, _each(_uint))
    fields.finish()
    return Entity(name, roles, reg_id)


def _identity(value: CborValue, where: str) -> tuple[model.Id, int | None]:
    fields = _Map(value, where)
    result = fields.required(0, _id), fields.optional(1, _uint)
    fields.finish()
    return result


def _comid(value: CborValue, where: str) -> Comid:
    data = _tagged(model.COMID, _bytes)(value, where)
    fields = _Map(cbor.decode(data, "CoMID", limits=LIMITS, tags=model.TAGS), where)
    tag_id, tag_version = fields.required(1, _identity)
    result = Comid(
        tag_id,
        fields.required(4, _triples),
        tag_version,
        fields.optional(0, _text),
        fields.optional(2, _each(_entity)) or (),
        fields.extensions(),
    )
    fields.finish()
    return result


def _validity(value: CborValue, where: str) -> Validity:
    fields = _Map(value, where)
    start = fields.optional(0, _tagged(model.EPOCH_TIME, _uint))
    end = fields.required(1, _tagged(model.EPOCH_TIME, _uint))
    fields.finish()
    return Validity(end, start)


def _profile(value: CborValue, where: str) -> model.Id:
    match value:
        case Tagged(tag=model.URI, value=str() as uri):
            return uri
        case Tagged(tag=model.OID, value=bytes() as oid):
            return oid
    raise _fail(where, "neither a URI nor an OID")


def parse_corim(data: bytes) -> Corim:
    """Parse a ``tagged-unsigned-corim-map`` in deterministic CBOR.

    Raises FormatError; ``encode_corim`` of the result gives back ``data``.
    """
    value = cbor.decode(data, model.FORMAT, limits=LIMITS, tags=model.TAGS)
    fields = _tagged(model.CORIM, _Map)(value, "corim")
    result = Corim(
        fields.required(0, _id),
        fields.required(1, _each(_comid)),
        fields.optional(3, _profile),
        fields.optional(4, _validity),
        fields.optional(5, _each(_entity)) or (),
    )
    fields.finish()
    return result
