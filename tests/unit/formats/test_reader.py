"""The bounded reader never reads past its end and says where it stopped."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader


def test_integers_follow_the_byte_order() -> None:
    data = bytes(range(1, 16))
    big = BoundedReader(data, "X", order="big")
    assert (big.u8("a"), big.u16("b"), big.u32("c")) == (1, 0x0203, 0x04050607)
    assert big.u64("d") == 0x08090A0B0C0D0E0F
    little = BoundedReader(data, "X", order="little")
    assert (little.u8("a"), little.u16("b")) == (1, 0x0302)


def test_a_length_beyond_the_input_is_an_error_before_it_is_a_slice() -> None:
    reader = BoundedReader(b"\xff\xff\xff\xffab", "X", order="big", base=100)
    with pytest.raises(FormatError) as caught:
        reader.sized(4, "the name")
    assert (caught.value.format_name, caught.value.offset) == ("X", 104)
    assert caught.value.expected == str(2**32 - 1)
    assert caught.value.got == "2"


def test_a_limit_is_checked_at_the_size_field() -> None:
    reader = BoundedReader(b"\x00\x05hello", "X", order="big")
    with pytest.raises(FormatError, match="too large") as caught:
        reader.sized(2, "the name", limit=4)
    assert caught.value.offset == 0
    assert reader.sized(2, "the name", limit=5) == b"hello"
    reader.finish()


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(FormatError):
        BoundedReader(b"abc", "X", order="big").take(-1, "a")


def test_a_cut_integer_is_refused() -> None:
    with pytest.raises(FormatError, match="cut short"):
        BoundedReader(b"abc", "X", order="big").u32("a")


def test_leftovers_are_refused() -> None:
    reader = BoundedReader(b"abc", "X", order="big")
    reader.u8("a")
    with pytest.raises(FormatError, match="left over"):
        reader.finish()
    assert reader.rest() == b"bc"
    reader.finish()


def test_a_layout_is_read_whole_or_not_at_all() -> None:
    reader = BoundedReader(b"\x01\x02\x03\x04\x05", "X", order="little")
    layout = struct.Struct("<BH")
    assert reader.unpack(layout, "the header") == (1, 0x0302)
    with pytest.raises(FormatError, match="the header is cut short") as caught:
        reader.unpack(layout, "the header")
    assert (caught.value.offset, reader.rest()) == (3, b"\x04\x05")


@given(st.binary(max_size=40), st.sampled_from([1, 2, 4]))
def test_sized_gives_back_what_was_written(payload: bytes, prefix: int) -> None:
    data = len(payload).to_bytes(prefix, "little") + payload
    reader = BoundedReader(data, "X", order="little")
    assert reader.sized(prefix, "payload") == payload  # type: ignore[arg-type]
    assert reader.remaining == 0
