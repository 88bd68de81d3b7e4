"""BTF, the kernel's compact type information: sizes and member offsets by name.

Source: Documentation/bpf/btf.rst.  The section is walked once to index its types; members are
decoded when they are asked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.base import FormatError

_FORMAT = "BTF"
_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ENUMERATOR = struct.Struct("<Ii")

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19
_MODIFIERS = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_NAMED = frozenset((STRUCT, UNION, ENUM, ENUM64, TYPEDEF, INT))
_MAX_DEPTH = 32

# Bytes behind a type's header: (fixed, per element of vlen).
_EXTRA: dict[int, tuple[int, int]] = {
    INT: (4, 0),
    PTR: (0, 0),
    ARRAY: (12, 0),
    STRUCT: (0, 12),
    UNION: (0, 12),
    ENUM: (0, 8),
    FWD: (0, 0),
    TYPEDEF: (0, 0),
    VOLATILE: (0, 0),
    CONST: (0, 0),
    RESTRICT: (0, 0),
    FUNC: (0, 0),
    FUNC_PROTO: (0, 8),
    VAR: (4, 0),
    DATASEC: (0, 12),
    FLOAT: (0, 0),
    DECL_TAG: (4, 0),
    TYPE_TAG: (0, 0),
    ENUM64: (0, 12),
}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union.  ``name`` is "" for an anonymous one."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int
    """0 unless the member is a bit field."""

    @property
    def offset(self) -> int:
        """The member's offset in bytes."""
        return self.bit_offset // 8


class Btf:
    """Types by name.  Names and ids that do not exist raise FormatError."""

    __slots__ = ("_at", "_by_name", "_members", "_paths", "_strings", "_types")

    def __init__(self, data: bytes) -> None:
        """Index the BTF section ``data``."""
        if len(data) < _HEADER.size:
            raise FormatError(_FORMAT, 0, "the header is cut short", expected=24, got=len(data))
        magic, version, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise FormatError(
                _FORMAT, 0, "not BTF version 1", expected="0xeb9f, 1", got=f"{magic:#x}, {version}"
            )
        if header + max(type_off + type_len, str_off + str_len) > len(data):
            raise FormatError(_FORMAT, 0, "the types or strings are longer than the section")
        self._types = data[header + type_off : header + type_off + type_len]
        self._strings = data[header + str_off : header + str_off + str_len]
        self._members: dict[int, tuple[Member, ...]] = {}
        self._paths: dict[tuple[str, str], tuple[Member, int]] = {}
        self._at, self._by_name = self._index()

    def _index(self) -> tuple[list[int], dict[tuple[int, str], int]]:
        """Walk every type once: where each stands, and the named ones by (kind, name)."""
        types, at, end = self._types, 0, len(self._types)
        starts = [-1]  # type 0 is void
        named: list[tuple[int, int, int]] = []
        unpack = _TYPE.unpack_from
        while at < end:
            if end - at < 12:
                raise FormatError(_FORMAT, at, "a type is cut short")
            name, info, _ = unpack(types, at)
            kind = info >> 24 & 0x1F
            extra = _EXTRA.get(kind)
            if extra is None:
                raise FormatError(_FORMAT, at, "an unknown kind of type", got=kind)
            if name and kind in _NAMED:
                named.append((kind, name, len(starts)))
            starts.append(at)
            at += 12 + extra[0] + extra[1] * (info & 0xFFFF)
        if at != end:
            raise FormatError(_FORMAT, at, "the last type is cut short")
        by_name: dict[tuple[int, str], int] = {}
        for kind, name, index in named:
            by_name.setdefault((kind, self._string(name)), index)
        return starts, by_name

    def __len__(self) -> int:
        return len(self._at)

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise FormatError(_FORMAT, offset, "a string is not terminated")
        return self._strings[offset:end].decode("latin-1")

    def _header(self, type_id: int) -> tuple[int, int, int]:
        """Return (kind, vlen with kind_flag in bit 31, size or type) of a type."""
        if not 0 < type_id < len(self._at):
            raise FormatError(_FORMAT, 0, "a type id is out of range", got=type_id)
        _, info, size = _TYPE.unpack_from(self._types, self._at[type_id])
        return info >> 24 & 0x1F, info & 0x8000FFFF, size

    def _aggregate(self, name: str) -> int:
        for kind in (STRUCT, UNION):
            found = self._by_name.get((kind, name))
            if found is not None:
                return found
        found = self._by_name.get((TYPEDEF, name))
        if found is not None:
            return self.resolve(found)
        raise FormatError(_FORMAT, 0, f"there is no struct or union {name}")

    def __contains__(self, name: str) -> bool:
        return any((kind, name) in self._by_name for kind in (STRUCT, UNION, TYPEDEF))

    def resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers to the type itself."""
        for _ in range(_MAX_DEPTH):
            if not type_id:
                return 0
            kind, _, target = self._header(type_id)
            if kind not in _MODIFIERS:
                return type_id
            type_id = target
        raise FormatError(_FORMAT, 0, "a type refers to itself", got=type_id)

    def size_of(self, name: str) -> int:
        """Return the size in bytes of the struct or union ``name``."""
        return self._header(self._aggregate(name))[2]

    def kind(self, type_id: int) -> int:
        """Return the BTF_KIND of a type after typedefs and qualifiers (0: void)."""
        resolved = self.resolve(type_id)
        return self._header(resolved)[0] if resolved else 0

    def pointee(self, type_id: int) -> int:
        """Return what a pointer type points to, resolved; 0 for void."""
        kind, _, target = self._header(self.resolve(type_id))
        if kind != PTR:
            raise FormatError(_FORMAT, 0, "the type is not a pointer", got=kind)
        return self.resolve(target)

    def array(self, type_id: int) -> tuple[int, int]:
        """Return (element type id, number of elements) of an array type."""
        resolved = self.resolve(type_id)
        if self._header(resolved)[0] != ARRAY:
            raise FormatError(_FORMAT, 0, "the type is not an array", got=type_id)
        element, _, count = _MEMBER.unpack_from(self._types, self._at[resolved] + 12)
        return element, count

    def members(self, name: str) -> tuple[Member, ...]:
        """Return the members of the struct or union ``name``."""
        return self.members_of(self._aggregate(name))

    def members_of(self, type_id: int) -> tuple[Member, ...]:
        """Return the members of the struct or union with this id."""
        cached = self._members.get(type_id)
        if cached is not None:
            return cached
        kind, flags, _ = self._header(type_id)
        if kind not in (STRUCT, UNION):
            raise FormatError(_FORMAT, 0, "the type is not a struct or union", got=kind)
        bit_fields, at = bool(flags >> 31), self._at[type_id] + 12
        members = []
        for index in range(flags & 0xFFFF):
            name, member_type, offset = _MEMBER.unpack_from(self._types, at + 12 * index)
            size = offset >> 24 if bit_fields else 0
            place = offset & 0xFFFFFF if bit_fields else offset
            members.append(Member(self._string(name), member_type, place, size))
        self._members[type_id] = tuple(members)
        return self._members[type_id]

    def member(self, name: str, path: str) -> tuple[Member, int]:
        """Return the member at ``path`` ("a.b.c") in struct ``name`` and its offset in bytes."""
        known = self._paths.get((name, path))
        if known is not None:
            return known
        type_id, offset = self._aggregate(name), 0
        found: Member | None = None
        for part in path.split("."):
            step = self._find(type_id, part, 0)
            if step is None:
                raise FormatError(_FORMAT, 0, f"struct {name} has no member {path}")
            found, bits = step
            offset += bits
            type_id = self.resolve(found.type_id)
        assert found is not None  # split() yields at least one part
        self._paths[name, path] = found, offset // 8
        return found, offset // 8

    def enumerators(self, name: str) -> dict[str, int]:
        """Return the names and values of the 32-bit enum ``name``."""
        found = self._by_name.get((ENUM, name))
        if found is None:
            raise FormatError(_FORMAT, 0, f"there is no enum {name}")
        _, flags, _ = self._header(found)
        at = self._at[found] + 12
        rows = (_ENUMERATOR.unpack_from(self._types, at + 8 * n) for n in range(flags & 0xFFFF))
        return {self._string(name): value for name, value in rows}

    def offset_of(self, name: str, path: str) -> int:
        """Return the offset in bytes of member ``path`` ("a.b.c") in struct ``name``."""
        return self.member(name, path)[1]

    def has_member(self, name: str, path: str) -> bool:
        """Tell whether struct ``name`` exists and has the member ``path``."""
        try:
            self.member(name, path)
        except FormatError:
            return False
        return True

    def _find(self, type_id: int, name: str, depth: int) -> tuple[Member, int] | None:
        """Find ``name`` among the members, looking into anonymous ones: (member, bit offset)."""
        if depth > _MAX_DEPTH:
            raise FormatError(_FORMAT, 0, "types are nested too deeply")
        for member in self.members_of(type_id):
            if member.name == name:
                return member, member.bit_offset
            if not member.name:
                inner = self._find(self.resolve(member.type_id), name, depth + 1)
                if inner is not None:
                    return inner[0], inner[1] + member.bit_offset
        return None
