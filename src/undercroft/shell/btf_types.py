"""BTF as drgn types (Documentation/bpf/btf.rst): made when they are asked for, by id."""

from __future__ import annotations

from collections.abc import Callable

import drgn

from undercroft.formats.kernel import btf
from undercroft.formats.kernel.btf_types import BtfType, TypeSection

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


class BtfTypes:
    """A drgn type finder over one BTF section.  Raises FormatError if the section is damaged."""

    def __init__(self, prog: drgn.Program, data: bytes) -> None:
        self._prog = prog
        self._section = TypeSection(data)
        self._made: dict[int, drgn.Type] = {}
        self._by_name: dict[tuple[int, str], int] = {}
        self.enumerators: dict[str, tuple[int, int]] = {}
        self.variables: dict[str, int] = {}
        for number, record in enumerate(self._section.types):
            if record.name:
                self._by_name.setdefault((record.kind, record.name), number)
            if record.kind in (btf.ENUM, btf.ENUM64):
                for name, value in self._section.enumerators(record):
                    self.enumerators.setdefault(name, (number, value))
            if record.kind == btf.VAR:
                self.variables.setdefault(record.name, record.value)

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
            made = self._made[number] = self._make(self._section.type(number))
        return made

    def _lazy(self, number: int, bits: int = 0) -> Callable[[], drgn.Object]:
        """Members are made when they are looked at: a struct may point to itself."""
        if bits:
            return lambda: drgn.Object(self._prog, self.type(number), bit_field_size=bits)
        return lambda: drgn.Object(self._prog, self.type(number))

    def _make(self, record: BtfType) -> drgn.Type:
        prog = self._prog
        match record.kind:
            case 0:
                return prog.void_type()
            case btf.INT:
                if record.is_bool:
                    return prog.bool_type(record.name, record.value)
                return prog.int_type(record.name, record.value, record.is_signed)
            case btf.FLOAT:
                return prog.float_type(record.name, record.value)
            case btf.PTR:
                return prog.pointer_type(self.type(record.value), _POINTER_SIZE)
            case btf.ARRAY:
                element, _, count = record.parts[0]
                return prog.array_type(self.type(element), count)
            case btf.STRUCT | btf.UNION:
                make = prog.struct_type if record.kind == btf.STRUCT else prog.union_type
                return make(record.name or None, record.value, self._members(record))
            case btf.ENUM | btf.ENUM64:
                return self._enum(record)
            case btf.FWD:
                make = prog.union_type if record.flag else prog.struct_type
                return make(record.name, None, None)
            case btf.TYPEDEF:
                return prog.typedef_type(record.name, self.type(record.value))
            case btf.FUNC_PROTO:
                return self._function(record)
        return self._modified(record)

    def _modified(self, record: BtfType) -> drgn.Type:
        qualifiers = {
            btf.VOLATILE: drgn.Qualifiers.VOLATILE,
            btf.CONST: drgn.Qualifiers.CONST,
            btf.RESTRICT: drgn.Qualifiers.RESTRICT,
        }
        target = self.type(record.value)
        extra = qualifiers.get(record.kind)
        return target if extra is None else target.qualified(target.qualifiers | extra)

    def _members(self, record: BtfType) -> list[drgn.TypeMember]:
        return [
            drgn.TypeMember(
                self._lazy(member.type, member.bit_size), member.name or None, member.bit_offset
            )
            for member in self._section.members(record)
        ]

    def _enum(self, record: BtfType) -> drgn.Type:
        values = self._section.enumerators(record)
        signed = any(value < 0 for _, value in values)
        compatible = self._prog.int_type("int" if signed else "unsigned int", record.value, signed)
        enumerators = [drgn.TypeEnumerator(name, value) for name, value in values]
        return self._prog.enum_type(record.name or None, compatible, enumerators)

    def _function(self, record: BtfType) -> drgn.Type:
        listed = self._section.parameters(record)
        parameters = [
            drgn.TypeParameter(self._lazy(number), name or None)
            for name, number in listed
            if number
        ]
        variadic = any(number == 0 for _, number in listed)
        return self._prog.function_type(self.type(record.value), parameters, variadic)
