"""A kernel as its package ships it: memory image, relocations, symbols, types, patch sites."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from undercroft.base import FormatError
from undercroft.formats.kernel.btf import Btf
from undercroft.formats.kernel.bzimage import parse_bzimage
from undercroft.formats.kernel.elf import PT_LOAD, SHT_NOBITS, Elf, Section, parse_elf
from undercroft.formats.kernel.kallsyms import SymbolTable, parse_kallsyms
from undercroft.formats.kernel.kaslr import RelocationTables, parse_relocation_tables
from undercroft.formats.kernel.payload import decompress_payload
from undercroft.formats.kernel.sites import (
    Offsets,
    RuntimeConst,
    Sites,
    parse_altinstructions,
    parse_jump_table,
    parse_ksymtab,
    parse_mcount_loc,
    parse_parainstructions,
    parse_pc_relative,
    parse_static_call_sites,
    parse_tramp_keys,
)

_FORMAT = "kernel image"
_PAGE = 4096
_NT_GNU_BUILD_ID = 3
_RUNTIME_CONST = {"runtime_ptr_": 8, "runtime_shift_": 1}


@dataclass(frozen=True, slots=True)
class KernelImage:
    """What one vmlinuz says the kernel is, before it is placed anywhere.

    ``memory`` is what the decompressor leaves behind from ``link_base`` up to the end of the
    initialised data, before relocation: the loaded segments, and between them the residue of
    the ELF file that was decompressed to the same place (parse_elf in
    arch/x86/boot/compressed/misc.c moves the segments within that buffer).  Every position in
    ``sites`` and every value of :meth:`offset` is an offset into it.
    """

    sha256: str
    release: str
    version: str
    build_id: str
    link_base: int
    memory: bytes
    text_size: int
    sections: Mapping[str, Section]
    relocations: RelocationTables
    symbols: SymbolTable
    btf: Btf
    sites: Sites
    exports: Mapping[str, int]
    """Exported symbols: name to link address (a per-CPU symbol's is small)."""

    @property
    def executable_size(self) -> int:
        """The size of the code up to the end of its last page, which is executable as a whole.

        What lies behind _etext is what the decompressor left there (see ``memory``).
        """
        return min(-(-self.text_size // _PAGE) * _PAGE, len(self.memory))

    def offset(self, symbol: str) -> int:
        """Return a symbol's offset from the link base; FormatError if there is no such symbol."""
        return self.symbols.address(symbol) - self.link_base

    def find(self, symbol: str) -> int | None:
        """Return a symbol's offset from the link base, or None."""
        address = self.symbols.get(symbol)
        return None if address is None else address - self.link_base

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the unrelocated memory image; FormatError if outside."""
        if not 0 <= offset <= len(self.memory) - size:
            raise FormatError(_FORMAT, offset, "the image holds no such bytes", expected=size)
        return self.memory[offset : offset + size]


def load_kernel(vmlinuz: bytes) -> KernelImage:
    """Parse a distribution's vmlinuz; raise FormatError naming what is missing or damaged.

    The signature is not checked here.  What must be there: section headers, kallsyms, BTF and
    ``.altinstructions``.
    """
    boot = parse_bzimage(vmlinuz)
    elf = decompress_payload(boot.payload)
    return load_elf(elf, boot.kernel_version, hashlib.sha256(vmlinuz).hexdigest())


def load_elf(data: bytes, version: str, sha256: str) -> KernelImage:
    """Parse the ELF inside a vmlinuz; ``version`` and ``sha256`` are those of the vmlinuz."""
    elf = parse_elf(data)
    text = elf.section(".text")
    link_base = text.address
    symbols = parse_kallsyms(elf.contents(elf.section(".rodata")), link_base)
    memory = _memory(elf, link_base)
    text_size = symbols.address("_etext") - link_base
    if not 0 < text_size <= text.size:
        raise FormatError(_FORMAT, 0, "_etext is not the end of .text", got=hex(text_size))
    tables = _Tables(elf, memory, link_base, symbols)
    return KernelImage(
        sha256=sha256,
        release=version.partition(" ")[0],
        version=version,
        build_id=_build_id(elf),
        link_base=link_base,
        memory=memory,
        text_size=text_size,
        sections=elf.by_name,
        relocations=parse_relocation_tables(elf.data[elf.end :], link_base, len(elf.data)),
        symbols=symbols,
        btf=Btf(elf.contents(elf.section(".BTF"))),
        sites=tables.sites(),
        exports=tables.exports(),
    )


def _memory(elf: Elf, link_base: int) -> bytes:
    """Lay the segments out as the decompressor does, up to the end of the initialised data."""
    loaded = [segment for segment in elf.segments if segment.type == PT_LOAD]
    if not loaded or loaded[0].vaddr != link_base:
        raise FormatError(_FORMAT, 0, "the first segment does not start with .text")
    physical_base = loaded[0].paddr
    buffer = bytearray(elf.data)
    for segment in loaded:
        at = segment.paddr - physical_base
        if at < 0 or at + segment.file_size > len(elf.data):
            raise FormatError(_FORMAT, 0, "a segment lies outside the image", got=hex(at))
        buffer[at : at + segment.file_size] = buffer[
            segment.offset : segment.offset + segment.file_size
        ]
    bss = elf.section(".bss").address - link_base
    if not 0 < bss <= len(buffer):
        raise FormatError(_FORMAT, 0, ".bss lies outside the image", got=hex(bss))
    return bytes(memoryview(buffer)[:bss])


def _build_id(elf: Elf) -> str:
    """Return the NT_GNU_BUILD_ID note's value in hexadecimal; "" if there is none."""
    notes = elf.contents(elf.section(".notes"))
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        value_at = name_at + -(-name_size // 4) * 4
        if value_at + size > len(notes):
            raise FormatError(_FORMAT, at, "a note is cut short")
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0":
            return notes[value_at : value_at + size].hex()
        at = value_at + -(-size // 4) * 4
    return ""


class _Tables:
    """Reads the site tables: by section where it is kept, by kallsyms where it was merged."""

    def __init__(self, elf: Elf, memory: bytes, link_base: int, symbols: SymbolTable) -> None:
        self.elf = elf
        self.memory = memory
        self.link_base = link_base
        self.symbols = symbols

    def section(self, name: str) -> tuple[bytes, int]:
        """Return a section's bytes and offset; (b"", 0) if the kernel has none."""
        section = self.elf.by_name.get(name)
        if section is None or section.type == SHT_NOBITS:
            return b"", 0
        return self.elf.contents(section), section.address - self.link_base

    def between(self, start: str, stop: str) -> tuple[bytes, int]:
        """Return the bytes between two symbols and their offset; (b"", 0) without symbols."""
        low, high = self.symbols.get(start), self.symbols.get(stop)
        if low is None or high is None:
            return b"", 0
        at, end = low - self.link_base, high - self.link_base
        if not 0 <= at <= end <= len(self.memory):
            raise FormatError(_FORMAT, at, f"{start} .. {stop} lies outside the image")
        return self.memory[at:end], at

    def sites(self) -> Sites:
        """Parse every table."""
        replacement = self.elf.section(".altinstr_replacement")
        first = replacement.address - self.link_base
        return Sites(
            alternatives=parse_altinstructions(
                *self.section(".altinstructions"),
                len(self.memory),
                range(first, first + replacement.size),
            ),
            paravirt=parse_parainstructions(self.section(".parainstructions")[0], self.link_base),
            retpolines=self.pc_relative(".retpoline_sites"),
            returns=self.pc_relative(".return_sites"),
            calls=self.pc_relative(".call_sites"),
            endbr_seal=self.pc_relative(".ibt_endbr_seal"),
            smp_locks=self.pc_relative(".smp_locks", padded=True),
            jump_table=parse_jump_table(
                *self.between("__start___jump_table", "__stop___jump_table")
            ),
            static_calls=parse_static_call_sites(
                *self.between("__start_static_call_sites", "__stop_static_call_sites")
            ),
            tramp_keys=MappingProxyType(
                dict(
                    parse_tramp_keys(
                        *self.between(
                            "__start_static_call_tramp_key", "__stop_static_call_tramp_key"
                        )
                    )
                )
            ),
            mcount=parse_mcount_loc(
                self.between("__start_mcount_loc", "__stop_mcount_loc")[0], self.link_base
            ),
            runtime_const=self.runtime_const(),
        )

    def pc_relative(self, name: str, *, padded: bool = False) -> Offsets:
        """Parse one list of self-relative s32."""
        return parse_pc_relative(*self.section(name), name, padded=padded)

    def runtime_const(self) -> tuple[RuntimeConst, ...]:
        """Parse the runtime_ptr_* and runtime_shift_* sections (since 6.11)."""
        found = []
        for name in self.elf.by_name:
            for prefix, size in _RUNTIME_CONST.items():
                if name.startswith(prefix):
                    found.append(
                        RuntimeConst(name.removeprefix(prefix), size, self.pc_relative(name))
                    )
        return tuple(found)

    def exports(self) -> Mapping[str, int]:
        """Parse __ksymtab and __ksymtab_gpl: name to link address."""
        strings, strings_at = self.section("__ksymtab_strings")
        exports: dict[str, int] = {}
        for table in ("__ksymtab", "__ksymtab_gpl"):
            data, at = self.section(table)
            for name, value in parse_ksymtab(data, at, strings, strings_at):
                exports[name] = (value + self.link_base) % (1 << 64)
        return MappingProxyType(exports)
