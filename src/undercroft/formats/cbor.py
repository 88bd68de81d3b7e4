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

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import cbor2
import msgspec

from undercroft.base import FormatError

_T = TypeVar("_T")

CborValue: TypeAlias = Any
"""None, bool, int, float, str, bytes, list, dict (int or str keys) or :class:`Tagged`."""

Tagged: TypeAlias = cbor2.CBORTag
"""A tagged value: ``Tagged(number, value)``."""


# Major types, RFC 8949 section 3.1.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_KEY_TYPES: Final = (_UNSIGNED, _NEGATIVE, _TEXT)
_FALSE, _TRUE, _NULL, _HALF, _SINGLE, _DOUBLE = 20, 21, 22, 25, 26, 27
_ONE_BYTE: Final = 24
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
    """Walks one encoded item without building it; raises FormatError at the first fault.

    Positions are passed along instead of kept in a BoundedReader: this loop bounds how fast
    evidence is read.  Every read of more than one byte is checked against ``end`` first; a head
    past the end is an IndexError, which :meth:`scan` turns into the format's error.
    """

    __slots__ = ("data", "end", "format_name", "items_left", "max_depth", "tags")

    def __init__(self, data: bytes, format_name: str, limits: Limits, tags: frozenset[int]) -> None:
        self.data = data
        self.end = len(data)
        self.format_name = format_name
        self.items_left = limits.items
        self.max_depth = limits.depth
        self.tags = tags

    def fail(self, at: int, reason: str, *, expected: object = "", got: object = "") -> FormatError:
        return FormatError(self.format_name, at, reason, expected=expected, got=got)

    def scan(self) -> None:
        """Walk the whole input, which is exactly one item."""
        try:
            at = self.item(0, 0)
        except IndexError:
            raise self.fail(self.end, "an item is cut short") from None
        if at != self.end:
            raise self.fail(at, "bytes are left over", expected=0, got=self.end - at)

    def past(self, at: int, size: int, what: str) -> int:
        """Return the position after ``size`` bytes at ``at``, which have to be there."""
        after = at + size
        if after > self.end:
            raise self.fail(at, f"{what} is longer than the input", expected=size)
        return after

    def argument(self, at: int, info: int) -> tuple[int, int]:
        """Read the argument of the head before ``at``; return it and the position after it."""
        size = _LONGER_HEADS.get(info)
        if size is None:
            what = "an indefinite length" if info == 31 else "a reserved head"
            raise self.fail(at - 1, f"{what} is not deterministic CBOR", got=info)
        after = self.past(at, size, "a head")
        argument = int.from_bytes(self.data[at:after], "big")
        if argument < _SMALLEST[info]:
            raise self.fail(at - 1, "a head is not in its shortest form", got=argument)
        return argument, after

    def simple(self, at: int, info: int) -> int:
        if info in (_FALSE, _TRUE, _NULL):
            return at
        if info not in _FLOATS:
            raise self.fail(at - 1, "a simple value other than false, true and null", got=info)
        pattern, size = _FLOATS[info]
        after = self.past(at, size, "a float")
        (value,) = struct.unpack(pattern, self.data[at:after])
        if not math.isfinite(value) or _is_shorter_possible(value, info):
            raise self.fail(at - 1, "a float is not finite or not in its shortest form", got=value)
        return after

    def text(self, at: int, after: int) -> None:
        try:
            self.data[at:after].decode()
        except UnicodeDecodeError as error:
            raise self.fail(at + error.start, "a text string is not UTF-8") from error

    def array(self, at: int, count: int, depth: int) -> int:
        # Every element takes a byte at least: refuse a count that cannot be there.
        self.past(at, count, "an array")
        for _ in range(count):
            at = self.item(at, depth)
        return at

    def map(self, at: int, count: int, depth: int) -> int:
        self.past(at, 2 * count, "a map")
        data, previous = self.data, b""
        for _ in range(count):
            start, at = at, self.item(at, depth)
            key = data[start:at]
            if data[start] >> 5 not in _KEY_TYPES or key <= previous:
                raise self.fail(
                    start,
                    "map keys are integers or text, each once, in bytewise order",
                    expected=f"more than {previous[:32].hex()}",
                    got=key[:32].hex(),
                )
            previous = key
            at = self.item(at, depth)
        return at

    def item(self, at: int, depth: int) -> int:
        """Walk the item at ``at`` under ``depth`` containers; return the position after it."""
        self.items_left -= 1
        if self.items_left < 0 or depth > self.max_depth:
            raise self.fail(at, "too many or too deeply nested items")
        data = self.data
        head = data[at]
        at += 1
        major, argument = head >> 5, head & 31
        if major == _SIMPLE:
            return self.simple(at, argument)
        if argument == _ONE_BYTE and data[at] > 23:  # most strings: not worth a call
            argument = data[at]
            at += 1
        elif argument > 23:
            argument, at = self.argument(at, argument)
        if major <= _NEGATIVE:
            return at
        if major <= _TEXT:
            after = at + argument
            if after > self.end:
                raise self.fail(at, "a string is longer than the input", expected=argument)
            if major == _TEXT and not data[at:after].isascii():
                self.text(at, after)
            return after
        if major == _MAP:
            return self.map(at, argument, depth + 1)
        if major == _ARRAY:
            return self.array(at, argument, depth + 1)
        if argument not in self.tags:
            raise self.fail(at, "a tag that has no place here", got=argument)
        return self.item(at, depth + 1)


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
    _Scanner(data, format_name, limits, tags).scan()
    if not tags:
        return cbor2.loads(data)

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
            return _head(_TAG, value.tag) + encode(value.value)
        case Mapping() if not any(
            isinstance(k, bool) or not isinstance(k, int | str) for k in value
        ):
            pairs = sorted((encode(k), encode(v)) for k, v in value.items())
            return _head(_MAP, len(pairs)) + b"".join(k + v for k, v in pairs)
        case list() | tuple():
            return _head(_ARRAY, len(value)) + b"".join(map(encode, value))
    raise ValueError(f"not in the deterministic subset: {value!r}")


def convert(value: CborValue, kind: type[_T], format_name: str) -> _T:
    """Turn a decoded ``value`` into ``kind``, a type that msgspec understands.

    Raises FormatError, with the path of the field at fault, if it does not fit exactly.
    """
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise FormatError(format_name, 0, str(error)) from error
