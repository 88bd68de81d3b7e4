"""Types are found by name; a damaged section is refused, not walked past its end."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.kernel import Btf, btf

STRINGS = b"\0u64\0outer\0inner\0a\0b\0alias\0arr\0ptr\0bits\0flag\0"


def at(name: str) -> int:
    return STRINGS.index(b"\0" + name.encode() + b"\0") + 1


def section(types: bytes, strings: bytes = STRINGS) -> bytes:
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def header(name: str, kind: int, vlen: int, size: int, flag: int = 0) -> bytes:
    name_at = at(name) if name else 0
    return struct.pack("<III", name_at, flag << 31 | kind << 24 | vlen, size)


def member(name: str, type_id: int, bits: int) -> bytes:
    return struct.pack("<III", at(name) if name else 0, type_id, bits)


TYPES = (
    header("u64", btf.INT, 0, 8)  # 1
    + struct.pack("<I", 64)
    + header("", btf.UNION, 2, 8)  # 2, anonymous
    + member("a", 1, 0)
    + member("b", 1, 0)
    + header("inner", btf.STRUCT, 1, 16)  # 3
    + member("", 2, 64)
    + header("outer", btf.STRUCT, 2, 32)  # 4
    + member("inner", 5, 128)
    + member("arr", 6, 0)
    + header("alias", btf.TYPEDEF, 0, 3)  # 5 -> inner
    + header("", btf.ARRAY, 0, 0)  # 6
    + struct.pack("<III", 1, 1, 2)
    + header("", btf.PTR, 0, 5)  # 7
    + header("", btf.CONST, 0, 7)  # 8
    + header("bits", btf.STRUCT, 1, 8, flag=1)  # 9
    + member("flag", 1, 3 << 24 | 10)
)


def test_offsets_go_through_typedefs_and_anonymous_members() -> None:
    types = Btf(section(TYPES))
    assert types.offset_of("outer", "inner.b") == 16 + 8
    assert types.offset_of("alias", "a") == 8
    assert types.size_of("outer") == 32
    assert types.has_member("outer", "inner.a")
    assert not types.has_member("outer", "inner.z")
    assert not types.has_member("nothing", "a")
    assert "alias" in types
    assert len(types) == 10


def test_kinds_arrays_pointers_and_bit_fields() -> None:
    types = Btf(section(TYPES))
    assert types.kind(8) == btf.PTR
    assert types.kind(0) == 0
    assert types.pointee(8) == 3
    assert types.array(6) == (1, 2)
    (field,) = types.members("bits")
    assert (field.bit_offset, field.bit_size, field.offset) == (10, 3, 1)
    for wrong in (types.pointee, types.array, types.members_of):
        with pytest.raises(FormatError):
            wrong(1)


@pytest.mark.parametrize(
    ("types", "what"),
    [
        (header("u64", btf.INT, 0, 8), "last type is cut short"),
        (header("u64", 31, 0, 8), "unknown kind"),
        (header("outer", btf.STRUCT, 9, 8), "last type is cut short"),
        (TYPES + b"\0" * 5, "cut short"),
    ],
)
def test_damaged_types(types: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        Btf(section(types))


def test_damaged_headers() -> None:
    whole = section(TYPES)
    with pytest.raises(FormatError, match="not BTF"):
        Btf(b"\0" + whole[1:])
    with pytest.raises(FormatError, match="cut short"):
        Btf(whole[:20])
    with pytest.raises(FormatError, match="longer than the section"):
        Btf(whole[:-1])
    with pytest.raises(FormatError, match="not terminated"):
        Btf(section(TYPES, STRINGS[:-1])).members("bits")


def test_a_type_that_refers_to_itself() -> None:
    types = Btf(section(header("alias", btf.TYPEDEF, 0, 1)))
    with pytest.raises(FormatError, match="refers to itself"):
        types.resolve(1)
    nested = Btf(section(header("outer", btf.STRUCT, 1, 8) + member("", 1, 0)))
    with pytest.raises(FormatError, match="too deeply"):
        nested.offset_of("outer", "a")


def test_a_type_id_out_of_range() -> None:
    with pytest.raises(FormatError, match="out of range"):
        Btf(section(TYPES)).kind(99)


@given(st.binary(max_size=200))
def test_only_format_errors_escape(noise: bytes) -> None:
    try:
        types = Btf(section(noise))
        for type_id in range(len(types)):
            types.kind(type_id)
    except FormatError:
        pass


def test_enumerators() -> None:
    types = Btf(section(header("outer", btf.ENUM, 2, 4) + struct.pack("<IiIi", 1, 7, at("a"), -1)))
    assert types.enumerators("outer") == {"u64": 7, "a": -1}
    with pytest.raises(FormatError, match="no enum inner"):
        types.enumerators("inner")
