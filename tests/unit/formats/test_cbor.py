"""Deterministic CBOR: what is refused, and that nothing else escapes."""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.cbor import Limits, Tagged

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.binary(max_size=20)
)
keys = st.integers(-(1 << 64), (1 << 64) - 1) | st.text(st.characters(codec="utf-8"), max_size=8)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)


untagged = st.recursive(scalars, containers, max_leaves=20)
trees = st.recursive(
    scalars,
    lambda inner: containers(inner) | st.builds(Tagged, st.just(506), inner),
    max_leaves=20,
)
TAGS = frozenset({506})


@given(trees)
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    assert cbor.decode(cbor.encode(value), "test", tags=TAGS) == value


@given(untagged)
def test_another_decoder_reads_the_same(value: Any) -> None:
    assert cbor2.loads(cbor.encode(value)) == value


def check(data: bytes) -> None:
    """Either the bytes are refused, or they are the only encoding of their value."""
    try:
        value = cbor.decode(data, "test", tags=TAGS)
    except FormatError:
        return
    assert cbor.encode(value) == data


@given(st.binary(max_size=64))
def test_whatever_is_decoded_encodes_to_the_same_bytes(data: bytes) -> None:
    check(data)


@given(trees, st.integers(min_value=0), st.integers(0, 255))
def test_one_changed_byte_never_breaks_the_rules(value: Any, place: int, byte: int) -> None:
    data = bytearray(cbor.encode(value))
    data[place % len(data)] = byte
    check(bytes(data))


@pytest.mark.parametrize(
    ("name", "data", "offset", "reason"),
    [
        ("empty", "", 0, "an item is cut short"),
        ("leftover", "0000", 1, "left over"),
        ("long head 8", "1817", 0, "shortest"),
        ("long head 16", "1900ff", 0, "shortest"),
        ("long head 32", "1a0000ffff", 0, "shortest"),
        ("long head 64", "1b00000000ffffffff", 0, "shortest"),
        ("long text head", "780161", 0, "shortest"),
        ("cut head", "19ff", 1, "longer than the input"),
        ("reserved head", "1c", 0, "reserved"),
        ("indefinite array", "9fff", 0, "indefinite"),
        ("indefinite bytes", "5f4100ff", 0, "indefinite"),
        ("break", "ff", 0, "simple value"),
        ("undefined", "f7", 0, "simple value"),
        ("simple 32", "f820", 0, "simple value"),
        ("nan", "f97e00", 0, "finite"),
        ("infinity", "f97c00", 0, "finite"),
        ("long float", "fa3fc00000", 0, "shortest"),
        ("long double", "fb3ff8000000000000", 0, "shortest"),
        ("bytes past the end", "4201", 1, "longer than the input"),
        ("array past the end", "9bffffffffffffffff", 9, "an array is longer"),
        ("map past the end", "a20000", 1, "a map is longer"),
        ("bad utf-8", "6261ff", 2, "UTF-8"),
        ("duplicate key", "a201000100", 3, "each once"),
        ("unordered keys", "a202000100", 3, "each once"),
        ("byte key", "a1410000", 1, "integers or text"),
        ("array key", "a18000", 1, "integers or text"),
        ("true key", "a1f500", 1, "integers or text"),
        ("unknown tag", "c100", 1, "no place here"),
        ("bignum", "c249010000000000000000", 1, "no place here"),
        ("shared reference", "d81d00", 2, "no place here"),
        ("too deep", "81" * 17 + "00", 17, "deeply nested"),
        ("too deep maps", "a100" * 17 + "00", 33, "deeply nested"),
        ("too deep tags", "d901fa" * 17 + "00", 51, "deeply nested"),
    ],
)
def test_refused(name: str, data: str, offset: int, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        cbor.decode(bytes.fromhex(data), "test", tags=TAGS)
    assert (caught.value.format_name, caught.value.offset) == ("test", offset)


def test_depth_items_and_size_are_bounded() -> None:
    assert cbor.decode(bytes.fromhex("81" * 16 + "00"), "test")
    assert cbor.decode(b"\x82\0\0", "test", limits=Limits(items=3)) == [0, 0]
    with pytest.raises(FormatError, match="too many"):
        cbor.decode(b"\x82\0\0", "test", limits=Limits(items=2))
    with pytest.raises(FormatError, match="too large"):
        cbor.decode(b"\0\0\0", "test", limits=Limits(size=2))


def test_a_bomb_ends_in_bounded_time() -> None:
    nested = b"\x9a" + (8 << 20).to_bytes(4, "big") + b"\x80" * (8 << 20)
    start = time.perf_counter()
    with pytest.raises(FormatError, match="too many"):
        cbor.decode(nested, "bomb", limits=Limits(items=1 << 16))
    assert time.perf_counter() - start < 2


def test_a_known_tag_stays_a_tag() -> None:
    tags = frozenset({37})
    for value in (Tagged(37, bytes(16)), Tagged(37, "not a uuid")):
        assert cbor.decode(cbor.encode(value), "test", tags=tags) == value


@pytest.mark.parametrize("value", [1.5, 0.1, 1e300, -0.0, struct.unpack(">f", b"\x3f\x80\0\1")[0]])
def test_floats_take_their_shortest_form(value: float) -> None:
    decoded = cbor.decode(cbor.encode(value), "test")
    assert decoded == value
    assert math.copysign(1, decoded) == math.copysign(1, value)


@pytest.mark.parametrize(
    "value",
    [1 << 64, -(1 << 64) - 1, math.nan, math.inf, {True: 0}, {b"": 0}, {1}, bytearray(1), 1j],
    ids=repr,
)
def test_a_value_outside_the_subset_cannot_be_written(value: Any) -> None:
    with pytest.raises(ValueError, match="deterministic subset"):
        cbor.encode(value)


class _Shape(msgspec.Struct, forbid_unknown_fields=True):
    name: bytes


def test_values_are_converted_strictly() -> None:
    assert cbor.convert({"name": b"x"}, _Shape, "shape").name == b"x"
    for bad in ({"name": "eA=="}, {"name": b"", "more": 1}, {}, 5):
        with pytest.raises(FormatError):
            cbor.convert(bad, _Shape, "shape")
