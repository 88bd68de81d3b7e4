"""A kernel's symbols and types in volatility3's intermediate format, from its package alone.

That tool wants debug symbols, which distributions ship apart, if at all.  The vmlinuz has what it
needs: types are in BTF, addresses in kallsyms.  The format is that of volatility3's
``schemas/schema-6.2.0.json``.  Nothing of ours rests on the result.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from undercroft.base import FormatError
from undercroft.formats.kernel import KernelImage, btf
from undercroft.formats.kernel.btf_types import BtfMember, BtfType, TypeSection
from undercroft.formats.kernel.variables import VARIABLES, declaration

FORMAT = "6.2.0"
PRODUCER: Mapping[str, str] = {"name": "dwarf2json", "version": "0.8.0"}
"""The tool whose files volatility3 knows, and the version that this file is like.

Some of its plugins (``linux.malware.hidden_modules``) refuse a file of another name outright; who
really made the file is told beside it, in ``metadata.linux``.
"""
MADE_BY = "kallsyms and BTF of the vmlinuz, by undercroft"
_MAX_BANNER = 1 << 12
_INT_BASES = {1: ("unsigned char", "signed char"), 2: ("short unsigned int", "short int"),
              4: ("unsigned int", "int"), 8: ("long unsigned int", "long int")}  # fmt: skip
_C_NAMES = {"unsigned long": "long unsigned int"}

Json = dict[str, Any]
_VOID: Json = {"kind": "base", "name": "void"}
"""The type of what has none: of plain symbols too, as volatility3 asks for one."""


def write_isf(image: KernelImage) -> bytes:
    """Return the symbol file of a kernel, as JSON."""
    return msgspec.json.encode(symbol_file(image))


def symbol_file(image: KernelImage) -> Json:
    """Return the symbol file of a kernel as what JSON is made of."""
    section = image.sections[".BTF"]
    types = _Types(TypeSection(image.read(section.address - image.link_base, section.size)))
    digest = {"hash_type": "sha256", "hash_value": image.sha256}
    return {
        "metadata": {
            "format": FORMAT,
            "producer": dict(PRODUCER),
            "linux": {"symbols": [{"kind": "symtab", "name": MADE_BY, **digest}], "types": []},
        },
        "base_types": types.base_types(),
        "user_types": types.user_types(),
        "enums": types.enums(),
        "symbols": _symbols(image, types),
    }


def _symbols(image: KernelImage, types: _Types) -> Json:
    """Return every symbol at its link address; of two with one name, the first."""
    symbols: Json = {}
    for name, address in zip(image.symbols.names, image.symbols.addresses.tolist(), strict=True):
        symbols.setdefault(name, {"address": address, "type": _VOID})
    for name, number in types.variables.items():
        if name in symbols:
            symbols[name]["type"] = types.describe(number)
    for name, text in VARIABLES.items():
        known = types.declared(text) if name in symbols else None
        if known is not None:
            symbols[name]["type"] = known
    banner = _banner(image)
    character = {"kind": "base", "name": "unsigned char"}
    symbols["linux_banner"]["type"] = {"kind": "array", "count": len(banner), "subtype": character}
    symbols["linux_banner"]["constant_data"] = base64.b64encode(banner).decode()
    return symbols


def _banner(image: KernelImage) -> bytes:
    start = image.offset("linux_banner")
    end = image.memory.find(b"\0", start, start + _MAX_BANNER)
    if end < 0:
        raise FormatError("kernel image", start, "linux_banner does not end")
    return image.read(start, end + 1 - start)


class _Types:
    """BTF in the format's terms: everything by name, typedefs replaced by what they stand for."""

    def __init__(self, section: TypeSection) -> None:
        self._section = section
        self._names: dict[tuple[int, str], int] = {}
        for number, record in enumerate(section.types):
            if record.name:
                self._names.setdefault((record.kind, record.name), number)
        self.variables = {
            name: section.type(number).value
            for (kind, name), number in self._names.items()
            if kind == btf.VAR
        }

    def _numbered(self, *kinds: int) -> Iterator[tuple[int, BtfType]]:
        """Yield the types of some kinds that their name stands for, and those without a name."""
        for number, record in enumerate(self._section.types):
            if record.kind in kinds and (
                not record.name or self._names[record.kind, record.name] == number
            ):
                yield number, record

    def _aliases(self, *kinds: int) -> Iterator[tuple[str, BtfType]]:
        """Yield the typedefs of types of some kinds, with what they stand for."""
        for number, record in self._numbered(btf.TYPEDEF):
            target = self._section.type(self._section.resolve(number))
            if target.kind in kinds:
                yield record.name, target

    def base_types(self) -> Json:
        """Return what is not made of anything else."""
        made: Json = {
            "void": {"size": 0, "signed": False, "kind": "void", "endian": "little"},
            "pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"},
        }
        for size, (unsigned, signed) in _INT_BASES.items():
            made[unsigned] = _base("char" if size == 1 else "int", size, signed=False)
            made[signed] = _base("char" if size == 1 else "int", size, signed=True)
        for _, record in self._numbered(btf.INT, btf.FLOAT):
            made[record.name] = _base_type(record)
        for name, record in self._aliases(btf.INT, btf.FLOAT):
            made.setdefault(name, _base_type(record))
        return made

    def user_types(self) -> Json:
        """Return structs and unions; one that is only declared has no size."""
        made: Json = {}
        for number, record in self._numbered(btf.STRUCT, btf.UNION):
            made.setdefault(_name(number, record), self._user_type(record))
        for _, record in self._numbered(btf.FWD):
            kind = "union" if record.flag else "struct"
            made.setdefault(record.name, {"kind": kind, "size": 0, "fields": {}})
        for name, record in self._aliases(btf.STRUCT, btf.UNION):
            made.setdefault(name, self._user_type(record))
        return made

    def _user_type(self, record: BtfType) -> Json:
        fields: Json = {}
        for index, member in enumerate(self._section.members(record)):
            name = member.name or f"unnamed_field_{index}"
            fields[name] = self._field(member)
        kind = "struct" if record.kind == btf.STRUCT else "union"
        return {"kind": kind, "size": record.value, "fields": fields}

    def _field(self, member: BtfMember) -> Json:
        described = self.describe(member.type)
        if not member.bit_size:
            field: Json = {"type": described, "offset": member.bit_offset // 8}
            if not member.name:
                field["anonymous"] = True
            return field
        unit = 8 * max(1, self._section.type(self._section.resolve(member.type)).value)
        start = member.bit_offset // unit * unit
        bits = {
            "kind": "bitfield",
            "bit_position": member.bit_offset - start,
            "bit_length": member.bit_size,
            "type": described,
        }
        return {"type": bits, "offset": start // 8}

    def enums(self) -> Json:
        """Return enumerations."""
        made: Json = {}
        for number, record in self._numbered(btf.ENUM, btf.ENUM64):
            made.setdefault(_name(number, record), self._enum(record))
        for name, record in self._aliases(btf.ENUM, btf.ENUM64):
            made.setdefault(name, self._enum(record))
        return made

    def _enum(self, record: BtfType) -> Json:
        constants = dict(self._section.enumerators(record))
        signed = any(value < 0 for value in constants.values())
        base = _INT_BASES.get(record.value, _INT_BASES[4])[signed]
        return {"size": record.value, "base": base, "constants": constants}

    def describe(self, number: int) -> Json:
        """Return the format's descriptor of a type."""
        number = self._section.resolve(number)
        record = self._section.type(number)
        match record.kind:
            case btf.PTR:
                return {"kind": "pointer", "subtype": self.describe(record.value)}
            case btf.ARRAY:
                element, _, count = record.parts[0]
                return {"kind": "array", "count": count, "subtype": self.describe(element)}
            case btf.STRUCT:
                return {"kind": "struct", "name": _name(number, record)}
            case btf.UNION:
                return {"kind": "union", "name": _name(number, record)}
            case btf.FWD:
                return {"kind": "union" if record.flag else "struct", "name": record.name}
            case btf.ENUM | btf.ENUM64:
                return {"kind": "enum", "name": _name(number, record)}
            case btf.FUNC_PROTO:
                return {"kind": "function"}
            case btf.INT | btf.FLOAT:
                return {"kind": "base", "name": record.name}
        return _VOID

    def declared(self, text: str) -> Json | None:
        """Return the descriptor of a type of the table of variables; None if there is none."""
        known = declaration(text)
        word, _, name = known.base.partition(" ")
        described: Json
        if word in ("struct", "union"):
            kind = btf.STRUCT if word == "struct" else btf.UNION
            if (kind, name) not in self._names:
                return None
            described = {"kind": word, "name": name}
        else:
            described = {"kind": "base", "name": _C_NAMES.get(known.base, known.base)}
        for _ in range(known.pointers):
            described = {"kind": "pointer", "subtype": described}
        if known.count is not None:
            described = {"kind": "array", "count": known.count, "subtype": described}
        return described


def _name(number: int, record: BtfType) -> str:
    return record.name or f"unnamed_{number}"


def _base_type(record: BtfType) -> Json:
    if record.kind == btf.FLOAT:
        return _base("float", record.value, signed=True)
    if record.is_bool:
        return _base("bool", record.value, signed=False)
    return _base("char" if record.value == 1 else "int", record.value, signed=record.is_signed)


def _base(kind: str, size: int, *, signed: bool) -> Json:
    return {"size": size, "signed": signed, "kind": kind, "endian": "little"}
