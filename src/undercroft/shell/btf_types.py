"""BTF as drgn types (Documentation/bpf/btf.rst): made when they are asked for, by id.

BTF tells types of functions and types, and variables only where they are per-CPU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import drgn

from undercroft.base import FormatError
from undercroft.formats.kernel import btf

_FORMAT = "BTF"
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_TRIPLE, _PAIR = struct.Struct("<III"), struct.Struct("<Ii")
_SIGNED, _BOOL = 1, 4  # BTF_INT_ENCODING
_WITH_TRIPLES = frozenset((btf.STRUCT, btf.UNION, btf.DATASEC, btf.ENUM64))
_WITH_PAIRS = frozenset((btf.ENUM, btf.FUNC_PROTO))
_WITH_WORD = frozenset((btf.INT, btf.VAR, btf.DECL_TAG))
_POINTER_SIZE = 8

_KINDS = {
    drgn.TypeKind.STRUCT: (btf.STRUCT,),
    drgn.TypeKind.UNION: (btf.UNION,),
    drgn.TypeKind.ENUM: (btf.ENUM, btf.ENUM64),
    drgn.TypeKind.TYPEDEF: (btf.TYPEDEF,),
    drgn.TypeKind.INT: (btf.INT,),
    drgn.TypeKind.BOOL: (btf.INT,),
    drgn.TypeKind.FLOAT: (btf.FLOAT,),
}


@dataclass(frozen=True, slots=True)
class _Raw:
    """One type as it stands in the section: ``value`` is a size or another type's id."""

    kind: int
    name: str
    flag: bool
    value: int
    parts: Sequence[tuple[int, ...]]


class BtfTypes:
    """A drgn type finder over one BTF section.  Raises FormatError if the section is damaged."""

    def __init__(self, prog: drgn.Program, data: bytes) -> None:
        self._prog = prog
        self._types: list[_Raw] = [_Raw(0, "", False, 0, ())]
        self._made: dict[int, drgn.Type] = {}
        self._by_name: dict[tuple[int, str], int] = {}
        self.enumerators: dict[str, tuple[int, int]] = {}
        self.variables: dict[str, int] = {}
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise FormatError(_FORMAT, 0, "the header is cut short")
        _, _, _, header, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
        types = data[header + types_at : header + types_at + types_size]
        strings = data[header + strings_at : header + strings_at + strings_size]
        at = 0
        while at < len(types):
            raw, at = _read_type(types, at, strings)
            number = len(self._types)
            self._types.append(raw)
            if raw.name:
                self._by_name.setdefault((raw.kind, raw.name), number)
            if raw.kind in (btf.ENUM, btf.ENUM64):
                for part in raw.parts:
                    name = _string(strings, part[0])
                    self.enumerators.setdefault(name, (number, _enumerator(raw.kind, part)))
            if raw.kind == btf.VAR:
                self.variables.setdefault(raw.name, raw.value)
        self._strings = strings

    def find(
        self, _: drgn.Program, kinds: drgn.TypeKindSet, name: str, filename: str | None
    ) -> drgn.Type | None:
        """Find a type by name; the callback that drgn wants."""
        if filename:
            return None
        for kind in kinds:
            for number in _KINDS.get(kind, ()):
                found = self._by_name.get((number, name))
                if found is not None:
                    made = self.type(found)
                    if made.kind == kind:
                        return made
        return None

    def type(self, number: int) -> drgn.Type:
        """Return the type with this id; 0 is void."""
        made = self._made.get(number)
        if made is None:
            made = self._made[number] = self._make(number)
        return made

    def _lazy(self, number: int, bits: int = 0) -> Callable[[], drgn.Object]:
        """Members are made when they are looked at: a struct may point to itself."""
        if bits:
            return lambda: drgn.Object(self._prog, self.type(number), bit_field_size=bits)
        return lambda: drgn.Object(self._prog, self.type(number))

    def _make(self, number: int) -> drgn.Type:
        raw, prog = self._types[number], self._prog
        match raw.kind:
            case 0:
                return prog.void_type()
            case btf.INT:
                encoding = raw.parts[0][0] >> 24
                if encoding & _BOOL:
                    return prog.bool_type(raw.name, raw.value)
                return prog.int_type(raw.name, raw.value, bool(encoding & _SIGNED))
            case btf.FLOAT:
                return prog.float_type(raw.name, raw.value)
            case btf.PTR:
                return prog.pointer_type(self.type(raw.value), _POINTER_SIZE)
            case btf.ARRAY:
                element, _, count = raw.parts[0]
                return prog.array_type(self.type(element), count)
            case btf.STRUCT | btf.UNION:
                make = prog.struct_type if raw.kind == btf.STRUCT else prog.union_type
                return make(raw.name or None, raw.value, self._members(raw))
            case btf.ENUM | btf.ENUM64:
                return self._enum(raw)
            case btf.FWD:
                make = prog.union_type if raw.flag else prog.struct_type
                return make(raw.name, None, None)
            case btf.TYPEDEF:
                return prog.typedef_type(raw.name, self.type(raw.value))
            case btf.FUNC_PROTO:
                return self._function(raw)
        return self._modified(raw)

    def _modified(self, raw: _Raw) -> drgn.Type:
        qualifiers = {
            btf.VOLATILE: drgn.Qualifiers.VOLATILE,
            btf.CONST: drgn.Qualifiers.CONST,
            btf.RESTRICT: drgn.Qualifiers.RESTRICT,
        }
        target = self.type(raw.value)
        extra = qualifiers.get(raw.kind)
        return target if extra is None else target.qualified(target.qualifiers | extra)

    def _members(self, raw: _Raw) -> list[drgn.TypeMember]:
        members = []
        for name, number, offset in raw.parts:
            bits = offset >> 24 if raw.flag else 0
            place = offset & 0xFFFFFF if raw.flag else offset
            named = _string(self._strings, name) or None
            members.append(drgn.TypeMember(self._lazy(number, bits), named, place))
        return members

    def _enum(self, raw: _Raw) -> drgn.Type:
        values = [_enumerator(raw.kind, part) for part in raw.parts]
        signed = any(value < 0 for value in values)
        compatible = self._prog.int_type("int" if signed else "unsigned int", raw.value, signed)
        enumerators = [
            drgn.TypeEnumerator(_string(self._strings, part[0]), value)
            for part, value in zip(raw.parts, values, strict=True)
        ]
        return self._prog.enum_type(raw.name or None, compatible, enumerators)

    def _function(self, raw: _Raw) -> drgn.Type:
        parameters = [
            drgn.TypeParameter(self._lazy(number), _string(self._strings, name) or None)
            for name, number in raw.parts
            if number
        ]
        variadic = any(number == 0 for _, number in raw.parts)
        return self._prog.function_type(self.type(raw.value), parameters, variadic)


def _read_type(types: bytes, at: int, strings: bytes) -> tuple[_Raw, int]:
    if len(types) - at < _TYPE.size:
        raise FormatError(_FORMAT, at, "a type is cut short")
    name, info, value = _TYPE.unpack_from(types, at)
    at += _TYPE.size
    kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
    layout = None
    if kind == btf.ARRAY:
        layout, count = _TRIPLE, 1
    elif kind in _WITH_TRIPLES:
        layout = _TRIPLE
    elif kind in _WITH_PAIRS:
        layout = _PAIR
    elif kind in _WITH_WORD:
        layout, count = struct.Struct("<I"), 1
    if layout is None:
        return _Raw(kind, _string(strings, name), flag, value, ()), at
    end = at + layout.size * count
    if end > len(types):
        raise FormatError(_FORMAT, at, "a type is cut short")
    parts = tuple(layout.iter_unpack(types[at:end]))
    return _Raw(kind, _string(strings, name), flag, value, parts), end


def _enumerator(kind: int, part: tuple[int, ...]) -> int:
    return part[1] if kind == btf.ENUM else part[1] | part[2] << 32


def _string(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if not 0 <= offset <= end:
        raise FormatError(_FORMAT, offset, "a name is out of range")
    return strings[offset:end].decode("latin-1")
