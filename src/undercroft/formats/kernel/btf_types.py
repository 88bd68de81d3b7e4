"""BTF whole, type by type, for those who translate it into another form.

Source: Documentation/bpf/btf.rst.  :class:`~undercroft.formats.kernel.btf.Btf` answers questions
about a few types by name and reads no more than it must; here every record is decoded.  BTF tells
types of functions and types, and variables only where they are per-CPU.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.kernel import btf

_FORMAT = "BTF"
_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_WORD, _TRIPLE, _PAIR = struct.Struct("<I"), struct.Struct("<III"), struct.Struct("<Ii")
_SIGNED, _BOOL = 1, 4  # BTF_INT_ENCODING

_PARTS = {
    **dict.fromkeys((btf.STRUCT, btf.UNION, btf.DATASEC, btf.ENUM64, btf.ARRAY), _TRIPLE),
    **dict.fromkeys((btf.ENUM, btf.FUNC_PROTO), _PAIR),
    **dict.fromkeys((btf.INT, btf.VAR, btf.DECL_TAG), _WORD),
}
"""What follows a type's header: ``vlen`` of these, or one (see ``_ONE``)."""
_ONE = frozenset((btf.ARRAY, btf.INT, btf.VAR, btf.DECL_TAG))
_MODIFIERS = frozenset((btf.TYPEDEF, btf.VOLATILE, btf.CONST, btf.RESTRICT, btf.TYPE_TAG))


@dataclass(frozen=True, slots=True)
class BtfType:
    """One type as it stands in the section: ``value`` is a size or another type's id.

    ``parts`` are the words behind it, by kind: members, enumerators, parameters.
    """

    kind: int
    name: str
    flag: bool
    value: int
    parts: Sequence[tuple[int, ...]]

    @property
    def is_signed(self) -> bool:
        """Whether an INT is signed."""
        return bool(self.parts[0][0] >> 24 & _SIGNED)

    @property
    def is_bool(self) -> bool:
        """Whether an INT is a truth value."""
        return bool(self.parts[0][0] >> 24 & _BOOL)


@dataclass(frozen=True, slots=True)
class BtfMember:
    """A member of a struct or union; ``bit_size`` is 0 unless it is a bit field."""

    name: str
    type: int
    bit_offset: int
    bit_size: int


class TypeSection:
    """Every type of a BTF section by id; 0 is void.  Raises FormatError if it is damaged."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise FormatError(_FORMAT, 0, "the header is cut short", expected=24, got=len(data))
        magic, version, _, header, types_at, types_size, strings_at, strings_size = (
            _HEADER.unpack_from(data)
        )
        if (magic, version) != (_MAGIC, 1):
            raise FormatError(_FORMAT, 0, "not BTF version 1", got=f"{magic:#x}, {version}")
        self._strings = data[header + strings_at : header + strings_at + strings_size]
        self.types: list[BtfType] = [BtfType(0, "", False, 0, ())]
        types = data[header + types_at : header + types_at + types_size]
        at = 0
        while at < len(types):
            record, at = self._read(types, at)
            self.types.append(record)

    def _read(self, types: bytes, at: int) -> tuple[BtfType, int]:
        if len(types) - at < _TYPE.size:
            raise FormatError(_FORMAT, at, "a type is cut short")
        name, info, value = _TYPE.unpack_from(types, at)
        at += _TYPE.size
        kind, flag = info >> 24 & 0x1F, bool(info >> 31)
        layout = _PARTS.get(kind)
        if layout is None:
            return BtfType(kind, self._string(name), flag, value, ()), at
        end = at + layout.size * (1 if kind in _ONE else info & 0xFFFF)
        if end > len(types):
            raise FormatError(_FORMAT, at, "a type is cut short")
        parts = tuple(layout.iter_unpack(types[at:end]))
        return BtfType(kind, self._string(name), flag, value, parts), end

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise FormatError(_FORMAT, offset, "a name is out of range")
        return self._strings[offset:end].decode("latin-1")

    def type(self, number: int) -> BtfType:
        """Return the type with this id; raise FormatError if there is none."""
        if not 0 <= number < len(self.types):
            raise FormatError(_FORMAT, 0, "a type id is out of range", got=number)
        return self.types[number]

    def resolve(self, number: int) -> int:
        """Follow typedefs and qualifiers to the type itself; return its id."""
        for _ in range(32):
            found = self.type(number)
            if found.kind not in _MODIFIERS:
                return number
            number = found.value
        raise FormatError(_FORMAT, 0, "a type refers to itself", got=number)

    def members(self, record: BtfType) -> list[BtfMember]:
        """Return the members of a STRUCT or UNION."""
        members = []
        for name, number, offset in record.parts:
            bits = offset >> 24 if record.flag else 0
            place = offset & 0xFFFFFF if record.flag else offset
            members.append(BtfMember(self._string(name), number, place, bits))
        return members

    def enumerators(self, record: BtfType) -> list[tuple[str, int]]:
        """Return names and values of an ENUM or ENUM64."""
        if record.kind == btf.ENUM:
            return [(self._string(name), value) for name, value in record.parts]
        wide = ((name, low | high << 32) for name, low, high in record.parts)
        signed = record.flag
        return [
            (self._string(name), value - (1 << 64) if signed and value >> 63 else value)
            for name, value in wide
        ]

    def parameters(self, record: BtfType) -> list[tuple[str, int]]:
        """Return names and type ids of a FUNC_PROTO's parameters; id 0 stands for ``...``."""
        return [(self._string(name), number) for name, number in record.parts]
