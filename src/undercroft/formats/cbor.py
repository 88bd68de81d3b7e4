"""Deterministic CBOR, strictly: bounded before it is decoded, one encoding for one value.

The subset is RFC 8949 section 4.2.1 (core deterministic encoding: shortest heads, definite
lengths, map keys in bytewise order) with integers of 64 bits, text, bytes, arrays, maps whose
keys are integers or text, true, false, null, finite floats, and the tags that the caller names.
So equal values have equal bytes, and a signed byte string has one reading.

:func:`decode` first walks the whole input and only then lets cbor2 build values, so that cbor2
sees nothing that is too deep, too many, duplicated, indefinite or tagged in a way that makes it
run code.  Time and memory are linear in the input.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import cbor2
import msgspec

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader

_T = TypeVar("_T")

CborValue: TypeAlias = Any
"""None, bool, int, float, str, bytes, list, dict (int or str keys) or :class:`Tagged`."""

Tagged: TypeAlias = cbor2.CBORTag
"""A tagged value: ``Tagged(number, value)``."""


class _Major(enum.IntEnum):
    """RFC 8949 section 3.1."""

    UNSIGNED = 0
    NEGATIVE = 1
    BYTES = 2
    TEXT = 3
    ARRAY = 4
    MAP = 5
    TAG = 6
    SIMPLE = 7


_KEY_TYPES: Final = (_Major.UNSIGNED, _Major.NEGATIVE, _Major.TEXT)
_FALSE, _TRUE, _NULL, _HALF, _SINGLE, _DOUBLE = 20, 21, 22, 25, 26, 27
_LONGER_HEADS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_SMALLEST: Final = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}
"""The smallest argument that may be written in the longer head: anything less has a shorter."""
_FLOATS: Final = {_HALF: (">e", 2), _SINGLE: (">f", 4), _DOUBLE: (">d", 8)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an input may hold at most: nesting levels, data items, bytes in all."""

    depth: int = 16
    items: int = 1 << 20
    size: int = 128 << 20


DEFAULT_LIMITS: Final = Limits()


def _is_shorter_possible(value: float, kind: int) -> bool:
    """True if ``value``, written as float ``kind``, fits the next smaller float exactly."""
    if kind == _HALF:
        return False
    smaller, _ = _FLOATS[kind - 1]
    try:
        (again,) = struct.unpack(smaller, struct.pack(smaller, value))
    except OverflowError:
        return False
    return bool(again == value)


class _Scanner:
    """Walks one encoded item without building it; raises FormatError at the first fault."""

    def __init__(self, data: bytes, format_name: str, limits: Limits, tags: frozenset[int]) -> None:
        self.reader = BoundedReader(data, format_name, order="big")
        self._items_left = limits.items
        self._max_depth = limits.depth
        self._tags = tags

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        start = self.reader.offset - 1
        if info not in _LONGER_HEADS:
            self.reader.offset = start
            what = "an indefinite length" if info == 31 else "a reserved head"
            raise self.reader.fail(f"{what} is not deterministic CBOR", got=info)
        argument = int.from_bytes(self.reader.take(_LONGER_HEADS[info], "a head"), "big")
        if argument < _SMALLEST[info]:
            self.reader.offset = start
            raise self.reader.fail("a head is not in its shortest form", got=argument)
        return argument

    def _simple(self, info: int) -> None:
        if info in (_FALSE, _TRUE, _NULL):
            return
        start = self.reader.offset - 1
        if info not in _FLOATS:
            self.reader.offset = start
            raise self.reader.fail("a simple value other than false, true and null", got=info)
        pattern, size = _FLOATS[info]
        (value,) = struct.unpack(pattern, self.reader.take(size, "a float"))
        if not math.isfinite(value) or _is_shorter_possible(value, info):
            self.reader.offset = start
            raise self.reader.fail("a float is not finite or not in its shortest form", got=value)

    def _count(self, count: int, each: int, what: str) -> int:
        """Every element takes a byte at least: refuse a count that cannot be there."""
        if count * each > self.reader.remaining:
            raise self.reader.fail(f"{what} is longer than the input", got=count)
        return count

    def _text(self, size: int) -> None:
        start = self.reader.offset
        try:
            self.reader.take(size, "a text string").decode()
        except UnicodeDecodeError as error:
            self.reader.offset = start + error.start
            raise self.reader.fail("a text string is not UTF-8") from error

    def _map(self, count: int, depth: int) -> None:
        previous = b""
        for _ in range(self._count(count, 2, "a map")):
            start = self.reader.offset
            major = self.item(depth)
            key = self.reader.data[start : self.reader.offset]
            if major not in _KEY_TYPES or key <= previous:
                self.reader.offset = start
                raise self.reader.fail(
                    "map keys are integers or text, each once, in bytewise order",
                    expected=f"more than {previous[:32].hex()}",
                    got=key[:32].hex(),
                )
            previous = key
            self.item(depth)

    def _tag(self, number: int, depth: int) -> None:
        if number not in self._tags:
            raise self.reader.fail("a tag that has no place here", got=number)
        self.item(depth)

    def item(self, depth: int) -> int:
        """Walk one item with ``depth`` levels of containers above it; return its major type."""
        self._items_left -= 1
        if self._items_left < 0 or depth > self._max_depth:
            raise self.reader.fail("too many or too deeply nested items")
        head = self.reader.u8("an item")
        major, info = head >> 5, head & 31
        if major == _Major.SIMPLE:
            self._simple(info)
            return major
        argument = self._argument(info)
        match major:
            case _Major.BYTES:
                self.reader.take(argument, "a byte string")
            case _Major.TEXT:
                self._text(argument)
            case _Major.ARRAY:
                for _ in range(self._count(argument, 1, "an array")):
                    self.item(depth + 1)
            case _Major.MAP:
                self._map(argument, depth + 1)
            case _Major.TAG:
                self._tag(argument, depth + 1)
        return major


def decode(
    data: bytes,
    format_name: str,
    *,
    limits: Limits = DEFAULT_LIMITS,
    tags: frozenset[int] = frozenset(),
) -> CborValue:
    """Decode ``data``, which is exactly one deterministic item.  Raises FormatError.

    A tag in ``tags`` gives a :class:`Tagged` whatever cbor2 knows of it; any other is refused.
    ``encode(decode(data, ...)) == data``.
    """
    if len(data) > limits.size:
        raise FormatError(
            format_name, 0, "the input is too large", expected=f"at most {limits.size}"
        )
    scanner = _Scanner(data, format_name, limits, tags)
    scanner.item(0)
    scanner.reader.finish()

    def kept(number: int) -> Any:
        return lambda value, _immutable: Tagged(number, value)

    return cbor2.loads(data, semantic_decoders={number: kept(number) for number in tags})


def _head(major: int, argument: int) -> bytes:
    # cbor2 writes the shortest head of an unsigned integer; the major type is its top 3 bits.
    head = cbor2.dumps(argument)
    return bytes([head[0] | major << 5]) + head[1:]


def encode(value: CborValue) -> bytes:
    """Encode ``value`` deterministically.

    Lists and tuples become arrays, mappings maps.  Raises ValueError for a value outside the
    subset (an integer over 64 bits, a float that is not finite, a key that is no integer or
    text): our own mistake, not the peer's.
    """
    match value:
        case None | bool() | str() | bytes():
            return cbor2.dumps(value)
        case int() if -(1 << 64) <= value < 1 << 64:
            return cbor2.dumps(value)
        case float() if math.isfinite(value):
            return cbor2.dumps(value, canonical=True)
        case Tagged():
            return _head(_Major.TAG, value.tag) + encode(value.value)
        case Mapping() if not any(
            isinstance(k, bool) or not isinstance(k, int | str) for k in value
        ):
            pairs = sorted((encode(k), encode(v)) for k, v in value.items())
            return _head(_Major.MAP, len(pairs)) + b"".join(k + v for k, v in pairs)
        case list() | tuple():
            return _head(_Major.ARRAY, len(value)) + b"".join(map(encode, value))
    raise ValueError(f"not in the deterministic subset: {value!r}")


def convert(value: CborValue, kind: type[_T], format_name: str) -> _T:
    """Turn a decoded ``value`` into ``kind``, a type that msgspec understands.

    Raises FormatError, with the path of the field at fault, if it does not fit exactly.
    """
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise FormatError(format_name, 0, str(error)) from error
