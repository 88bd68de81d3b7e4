"""A kernel module of a few bytes in a real .ko: sections, symbols, relocations, a signature."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ALLOC, WRITE, EXEC = 2, 1, 4
SIGNATURE_MAGIC = b"~Module signature appended~\n"


@dataclass(slots=True)
class _Section:
    name: str
    flags: int
    data: bytearray
    alignment: int
    kind: int = 1
    relocations: list[tuple[int, int, str, int]] = field(default_factory=list)


class TinyModule:
    """A module under construction; sections keep the order in which they are made."""

    def __init__(self, name: str = "tiny") -> None:
        self.name = name
        self.sections: list[_Section] = []
        self.symbols: list[tuple[str, str, int, bool]] = []
        self.section(".modinfo", ALLOC, b"license=GPL\0depends=\0name=" + name.encode() + b"\0")

    def section(
        self, name: str, flags: int, data: bytes, *, alignment: int = 1, kind: int = 1
    ) -> None:
        """Add a section (``kind`` 8 is NOBITS: ``data`` only says how large it is)."""
        self.sections.append(_Section(name, flags, bytearray(data), alignment, kind))

    def symbol(self, name: str, section: str = "", value: int = 0, *, weak: bool = False) -> None:
        """Add a symbol; without a section it is undefined."""
        self.symbols.append((name, section, value, weak))

    def relocation(
        self, section: str, offset: int, kind: int, symbol: str, addend: int = 0
    ) -> None:
        """Add a relocation of a symbol that was added before, or will be."""
        next(each for each in self.sections if each.name == section).relocations.append(
            (offset, kind, symbol, addend)
        )

    def build(self, *, kind: int = 1) -> bytes:
        """Return the .ko, without a signature; ``kind`` is e_type."""
        indices = {section.name: index for index, section in enumerate(self.sections, 1)}
        names = [name for name, *_ in self.symbols]
        strings, symbols = b"\0", bytes(24)
        for name, section, value, weak in self.symbols:
            info = (2 if weak else 1) << 4 | (2 if section == ".text" else 1 if section else 0)
            shndx = indices.get(section, 0)
            symbols += struct.pack("<IBBHQQ", len(strings), info, 0, shndx, value, 0)
            strings += name.encode() + b"\0"
        first_table = len(self.sections) + 1
        rows: list[tuple[str, int, int, bytes, int, int, int, int]] = [
            (each.name, each.kind, each.flags, bytes(each.data), 0, 0, each.alignment, 0)
            for each in self.sections
        ]
        rows.append((".symtab", 2, 0, symbols, first_table + 1, 1, 8, 24))
        rows.append((".strtab", 3, 0, strings, 0, 0, 1, 0))
        for each in self.sections:
            if each.relocations:
                data = b"".join(
                    struct.pack("<QQq", offset, (names.index(symbol) + 1) << 32 | number, addend)
                    for offset, number, symbol, addend in each.relocations
                )
                rows.append(
                    (".rela" + each.name, 4, 0x40, data, first_table, indices[each.name], 8, 24)
                )
        return _elf(rows, kind)


def _elf(rows: list[tuple[str, int, int, bytes, int, int, int, int]], kind: int) -> bytes:
    names = b"\0"
    body = bytearray(64)
    headers = [bytes(64)]
    for name, section_kind, flags, data, link, info, alignment, entry in rows:
        body += bytes(-len(body) % 8)
        headers.append(
            struct.pack(
                "<IIQQQQIIQQ",
                len(names),
                section_kind,
                flags,
                0,
                len(body),
                len(data),
                link,
                info,
                alignment,
                entry,
            )
        )
        names += name.encode() + b"\0"
        if section_kind != 8:
            body += data
    start = len(names)
    names += b".shstrtab\0"
    headers.append(struct.pack("<IIQQQQIIQQ", start, 3, 0, 0, len(body), len(names), 0, 0, 1, 0))
    body += names
    body += bytes(-len(body) % 8)
    body[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        kind,
        62,
        1,
        0,
        0,
        len(body),
        0,
        64,
        0,
        0,
        64,
        len(headers),
        len(headers) - 1,
    )
    return bytes(body) + b"".join(headers)


def signed(content: bytes, signature: bytes, *, id_type: int = 2) -> bytes:
    """Append a signature as scripts/sign-file does."""
    trailer = struct.pack(">BBBBB3xI", 0, 0, id_type, 0, 0, len(signature))
    return content + signature + trailer + SIGNATURE_MAGIC
