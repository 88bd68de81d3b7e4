"""Every record of a BTF section, from one made by hand with a type of each kind."""

from __future__ import annotations

import struct

import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel import btf
from undercroft.formats.kernel.btf_types import BtfMember, BtfType, TypeSection
from undercroft.testing.btf import Section, every_kind, triples


def find(section: TypeSection, name: str) -> BtfType:
    return next(record for record in section.types if record.name == name)


def test_every_kind_is_read() -> None:
    made = every_kind()
    section = TypeSection(made.bytes())
    assert len(section.types) == made.count + 1
    assert {record.kind for record in section.types} == set(range(20))


def test_members_and_bit_fields() -> None:
    section = TypeSection(every_kind().bytes())
    node, flags = find(section, "node"), find(section, "flags")
    assert [(one.name, one.bit_offset) for one in section.members(node)] == [
        ("next", 0),
        ("values", 64),
    ]
    assert section.members(flags) == [BtfMember("low", 1, 0, 3), BtfMember("high", 1, 3, 5)]


@pytest.mark.parametrize(
    ("kind", "flag", "parts", "value"),
    [
        (btf.ENUM, 1, struct.pack("<Ii", 1, -2), -2),
        (btf.ENUM64, 0, triples((1, 0xFFFFFFFF, 0xFFFFFFFF)), (1 << 64) - 1),
        (btf.ENUM64, 1, triples((1, 0xFFFFFFFF, 0xFFFFFFFF)), -1),
        (btf.ENUM64, 1, triples((1, 1, 2)), 2 << 32 | 1),
    ],
)
def test_enumerators(kind: int, flag: int, parts: bytes, value: int) -> None:
    made = Section()
    made.name("ONE")
    made.add(kind, "e", 8, parts, count=1, flag=flag)
    section = TypeSection(made.bytes())
    assert section.enumerators(section.type(1)) == [("ONE", value)]


def test_numbers_and_parameters() -> None:
    section = TypeSection(every_kind().bytes())
    assert find(section, "int").is_signed
    assert not find(section, "unsigned long").is_signed
    assert find(section, "_Bool").is_bool
    prototype = next(one for one in section.types if one.kind == btf.FUNC_PROTO)
    assert section.parameters(prototype) == [("x", 1), ("", 0)]


def test_typedefs_and_qualifiers_are_followed() -> None:
    section = TypeSection(every_kind().bytes())
    number = next(n for n, one in enumerate(section.types) if one.name == "const_node")
    assert section.type(section.resolve(number)).name == "node"
    assert section.resolve(0) == 0


def test_a_typedef_of_itself_is_refused() -> None:
    made = Section()
    made.add(btf.TYPEDEF, "loop", 1)
    with pytest.raises(FormatError, match="itself"):
        TypeSection(made.bytes()).resolve(1)


@pytest.mark.parametrize("number", [-1, 2])
def test_an_id_out_of_range_is_refused(number: int) -> None:
    made = Section()
    made.integer("int", 4)
    with pytest.raises(FormatError, match="out of range"):
        TypeSection(made.bytes()).type(number)


@pytest.mark.parametrize("size", [0, 23])
def test_a_header_that_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="header"):
        TypeSection(every_kind().bytes()[:size])


def test_another_magic_is_refused() -> None:
    with pytest.raises(FormatError, match="version 1"):
        TypeSection(b"\0\0" + every_kind().bytes()[2:])


@pytest.mark.parametrize("extra", [b"\0" * 4, struct.pack("<III", 0, btf.STRUCT << 24 | 9, 8)])
def test_a_type_that_is_cut_short_is_refused(extra: bytes) -> None:
    made = every_kind()
    made.types += extra
    with pytest.raises(FormatError, match="cut short"):
        TypeSection(made.bytes())


def test_a_name_out_of_range_is_refused() -> None:
    made = every_kind()
    made.types += struct.pack("<III", 1 << 20, btf.FLOAT << 24, 8)
    with pytest.raises(FormatError, match="name"):
        TypeSection(made.bytes())
