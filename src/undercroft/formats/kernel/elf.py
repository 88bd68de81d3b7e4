"""ELF64 for x86-64, as far as a kernel and its modules use it.

Source: System V ABI, "Object Files" (gABI 4.1) and the x86-64 psABI.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from undercroft.base import FormatError

_FORMAT = "ELF64"
_IDENT = b"\x7fELF\x02\x01\x01"
EM_X86_64 = 62
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_LOAD = 1
SHT_SYMTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS = 2, 4, 7, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True, slots=True)
class Section:
    """A section header, with its name resolved.  ``offset`` and ``size`` are in bytes."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int

    @property
    def end(self) -> int:
        """One past the section's last address."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A parsed ELF file.  ``by_name`` has the first section of each name.

    ``end`` is where the ELF ends in ``data``: a kernel's relocation tables begin there.
    """

    data: bytes
    type: int
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    by_name: Mapping[str, Section]
    end: int

    def section(self, name: str) -> Section:
        """Return the section ``name``; raise FormatError if the file has none."""
        section = self.by_name.get(name)
        if section is None:
            raise FormatError(_FORMAT, 0, f"there is no section {name}")
        return section

    def contents(self, section: Section) -> bytes:
        """Return the section's bytes (zeros for SHT_NOBITS are not made up: it has none)."""
        if section.type == SHT_NOBITS:
            return b""
        return self.data[section.offset : section.offset + section.size]


def parse_elf(data: bytes) -> Elf:
    """Parse an x86-64 ELF file with section headers; raise FormatError if it is not one."""
    if len(data) < _HEADER.size:
        raise FormatError(_FORMAT, 0, "the header is cut short", expected=64, got=len(data))
    ident, kind, machine, _, _, phoff, shoff, _, _, phsize, phnum, shsize, shnum, shstrndx = (
        _HEADER.unpack_from(data)
    )
    if not ident.startswith(_IDENT):
        raise FormatError(
            _FORMAT, 0, "not a 64-bit little-endian ELF", expected=_IDENT.hex(), got=ident[:7].hex()
        )
    if machine != EM_X86_64:
        raise FormatError(
            _FORMAT,
            18,
            "the file is for another architecture",
            expected="EM_X86_64 (62)",
            got=machine,
        )
    if not shoff or not shnum:
        raise FormatError(_FORMAT, 40, "there are no section headers")
    segments = tuple(
        _segment(data, index, *fields)
        for index, fields in enumerate(_table(data, phoff, phnum, phsize, _SEGMENT, "program"))
    )
    raw = _table(data, shoff, shnum, shsize, _SECTION, "section")
    if shstrndx >= shnum:
        raise FormatError(_FORMAT, 62, "e_shstrndx is out of range", expected=shnum, got=shstrndx)
    sections = _sections(data, raw, shstrndx)
    ends = [s.offset + s.size for s in sections if s.type not in (0, SHT_NOBITS)]
    ends += [segment.offset + segment.file_size for segment in segments]
    by_name: dict[str, Section] = {}
    for section in sections:
        by_name.setdefault(section.name, section)
    return Elf(
        data=data,
        type=kind,
        sections=sections,
        segments=segments,
        by_name=MappingProxyType(by_name),
        end=max([shoff + shnum * shsize, *ends]),
    )


def _table(
    data: bytes, offset: int, count: int, size: int, entry: struct.Struct, what: str
) -> list[tuple[int, ...]]:
    if count and size != entry.size:
        raise FormatError(
            _FORMAT, offset, f"a {what} header has the wrong size", expected=entry.size, got=size
        )
    if offset + count * size > len(data):
        raise FormatError(_FORMAT, offset, f"the {what} headers are cut short")
    return [entry.unpack_from(data, offset + index * size) for index in range(count)]


def _segment(  # the fields of Elf64_Phdr, in order
    data: bytes,
    index: int,
    kind: int,
    flags: int,
    offset: int,
    vaddr: int,
    paddr: int,
    file_size: int,
    memory_size: int,
    _alignment: int,
) -> Segment:
    if offset + file_size > len(data) or memory_size < file_size:
        raise FormatError(_FORMAT, offset, f"segment {index} is longer than the file")
    return Segment(kind, flags, offset, vaddr, paddr, file_size, memory_size)


def _sections(data: bytes, raw: list[tuple[int, ...]], shstrndx: int) -> tuple[Section, ...]:
    for index, fields in enumerate(raw):
        if fields[1] not in (0, SHT_NOBITS) and fields[4] + fields[5] > len(data):
            raise FormatError(_FORMAT, fields[4], f"section {index} is longer than the file")
    names_at, names_size = raw[shstrndx][4], raw[shstrndx][5]
    names = data[names_at : names_at + names_size]
    sections = []
    for index, fields in enumerate(raw):
        end = names.find(b"\0", fields[0]) if fields[0] < len(names) else -1
        name = names[fields[0] : end]
        if end < 0 or not name.isascii():
            raise FormatError(_FORMAT, names_at, f"section {index} has no valid name")
        sections.append(Section(index, name.decode("ascii"), *fields[1:]))
    return tuple(sections)
