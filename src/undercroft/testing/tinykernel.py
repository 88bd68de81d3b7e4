"""A kernel of four pages in a real vmlinuz: ELF, kallsyms, BTF, relocations, patch sites.

A test says what code and which sites it has and gets the file that a distribution would ship.
The layout is fixed (offsets from the link base): code from 0, constants from RODATA, variables
from DATA, what is freed after boot from INIT.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Mapping
from typing import Literal

import lz4.block
import zstandard

LINK_BASE = 0xFFFF_FFFF_8100_0000
PHYSICAL_BASE = 0x100_0000
TEXT_SIZE = 0x4000
RODATA, HOLE, HOLE_END, RODATA_END = 0x4000, 0x8000, 0x9000, 0xB000
DATA, DATA_END = 0xB000, 0xE000
INIT, INIT_END = 0xE000, 0x14000
BSS_SIZE = 0x1000
IMAGE_SIZE = INIT_END + BSS_SIZE
_FILE_OFFSET = 0x1000
_KALLSYMS = RODATA + 0x400
_NOTES, _BTF = HOLE_END, HOLE_END + 0x100
_REPLACEMENTS = INIT + 0x2000
_TABLES = INIT + 0x3000

Compression = Literal["gzip", "bzip2", "lzma", "xz", "lz4", "zstd"]
BUILD_ID = bytes(range(20))
VERSION = "6.1.0-tiny-amd64 (test@example.org) #1 SMP"


class TinyKernel:
    """A kernel under construction.  Positions are offsets from the link base.

    ``wide`` chooses the layouts of recent kernels (14-byte alternatives, kallsyms order since
    6.4) over those of 6.1.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self.wide = wide
        self.memory = bytearray(INIT_END)
        self.memory[:TEXT_SIZE] = b"\xcc" * TEXT_SIZE
        self.symbols: dict[str, tuple[int, str]] = {}
        self.r64: list[int] = []
        self.r32: list[int] = []
        self.inverse32: list[int] = []
        self.structs: dict[str, tuple[int, Mapping[str, int]]] = {}
        self.lists: dict[str, list[int]] = {}
        self.alternatives: list[tuple[int, int, int, int, int, int]] = []
        self.paravirt: list[tuple[int, int, int]] = []
        self.jump_labels: list[tuple[int, int, int, int]] = []
        self.static_calls: list[tuple[int, int, int]] = []
        self.mcount: list[int] = []
        self.extra_sections: list[tuple[str, int, int]] = []
        """(name, position, size) of sections over bytes that are there already."""
        self._replacements = _REPLACEMENTS
        for name, at in (
            ("_text", 0),
            ("_stext", 0),
            ("_etext", TEXT_SIZE),
            ("__start_rodata", RODATA),
            ("__start_ro_after_init", HOLE),
            ("__end_ro_after_init", HOLE_END),
            ("__end_rodata", RODATA_END),
        ):
            self.symbols[name] = (at, "T")

    def code(self, at: int, code: bytes | str, name: str = "") -> int:
        """Put code (bytes or hexadecimal) at ``at``; name it if ``name`` is given."""
        raw = bytes.fromhex(code) if isinstance(code, str) else code
        self.memory[at : at + len(raw)] = raw
        if name:
            self.symbols[name] = (at, "t")
        return at

    def branch(self, at: int, opcode: str, target: int) -> int:
        """Put ``opcode`` rel32 at ``at`` so that it reaches ``target``."""
        return self.code(at, rel32(opcode, at, target))

    def variable(self, name: str, at: int, value: int = 0, size: int = 8) -> int:
        """Put a little-endian variable at ``at``."""
        self.memory[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        self.symbols[name] = (at, "D")
        return at

    def pointer(self, name: str, at: int, target: int) -> int:
        """Put a pointer to position ``target`` at ``at``, with its relocation."""
        self.r64.append(at)
        return self.variable(name, at, LINK_BASE + target)

    def site(self, section: str, at: int) -> None:
        """Add a site to a section of self-relative words (``.return_sites`` ...)."""
        self.lists.setdefault(section, []).append(at)

    def alternative(
        self, at: int, size: int, cpuid: int, replacement: bytes, *, flags: int = 0
    ) -> int:
        """Add an alternative; ``flags``: 1 inverted, 2 direct call.  Return its replacement."""
        where = self._replacements
        self.memory[where : where + len(replacement)] = replacement
        self._replacements += len(replacement)
        self.alternatives.append((at, where, cpuid, flags, size, len(replacement)))
        return where

    @property
    def next_replacement(self) -> int:
        """Where the next alternative's replacement will stand."""
        return self._replacements

    def vmlinuz(self, compression: Compression = "gzip") -> bytes:
        """Return the bzImage."""
        return bzimage(compress(self.elf(), compression))

    def elf(self) -> bytes:
        """Return the kernel ELF with the relocation tables behind it."""
        memory, sections = self._laid_out()
        names = b"\0"
        headers = [bytes(64)]
        listed = [*sections, (".shstrtab", 3, 0, None, b"")]
        body_end = _FILE_OFFSET + len(memory)
        for name, kind, flags, at, size in listed:
            start = len(names)
            names += name.encode() + b"\0"
            if at is None:
                headers.append(
                    struct.pack("<IIQQQQIIQQ", start, kind, 0, 0, body_end, len(names), 0, 0, 1, 0)
                )
                continue
            length = size if isinstance(size, int) else len(size)
            headers.append(
                struct.pack(
                    "<IIQQQQIIQQ",
                    start,
                    kind,
                    flags,
                    LINK_BASE + at,
                    _FILE_OFFSET + at,
                    length,
                    0,
                    0,
                    1,
                    0,
                )
            )
        headers[-1] = headers[-1][:32] + struct.pack("<Q", len(names)) + headers[-1][40:]
        table_at = body_end + len(names)
        table_at += -table_at % 8
        out = bytearray(table_at)
        out[:64] = struct.pack(
            "<16sHHIQQQIHHHHHH",
            b"\x7fELF\x02\x01\x01",
            2,
            62,
            1,
            PHYSICAL_BASE,
            64,
            table_at,
            0,
            64,
            56,
            1,
            64,
            len(headers),
            len(headers) - 1,
        )
        out[64:120] = struct.pack(
            "<IIQQQQQQ",
            1,
            7,
            _FILE_OFFSET,
            LINK_BASE,
            PHYSICAL_BASE,
            len(memory),
            len(memory) + BSS_SIZE,
            0x1000,
        )
        out[_FILE_OFFSET : _FILE_OFFSET + len(memory)] = memory
        out[body_end : body_end + len(names)] = names
        return bytes(out) + b"".join(headers) + self._relocations()

    def _relocations(self) -> bytes:
        words = []
        for table in (self.r64, self.inverse32, self.r32):
            words += [0, *((LINK_BASE + at) & 0xFFFFFFFF for at in table)]
        return struct.pack(f"<{len(words)}I", *words)

    def _laid_out(
        self,
    ) -> tuple[bytes, list[tuple[str, int, int, int | None, int | bytes]]]:
        """Place every table; return the memory and the sections: (name, type, flags, at, size)."""
        memory = bytearray(self.memory)
        tables: dict[str, tuple[int, bytes]] = {
            "__jump_table": (HOLE, self._jump_table(HOLE)),
            "__static_call_sites": (HOLE + 0x400, self._static_calls(HOLE + 0x400)),
            "__mcount_loc": (
                _TABLES,
                struct.pack(f"<{len(self.mcount)}Q", *(LINK_BASE + at for at in self.mcount)),
            ),
        }
        symbols = dict(self.symbols)
        for name, stops in (
            ("__jump_table", ("__start___jump_table", "__stop___jump_table")),
            ("__static_call_sites", ("__start_static_call_sites", "__stop_static_call_sites")),
            ("__mcount_loc", ("__start_mcount_loc", "__stop_mcount_loc")),
        ):
            at, data = tables[name]
            symbols[stops[0]] = (at, "D")
            symbols[stops[1]] = (at + len(data), "D")
        at = _TABLES + 0x400
        sections: list[tuple[str, int, int, int | None, int | bytes]] = []
        for name, data in self._sections(at):
            tables[name] = (at, data)
            sections.append((name, 1, 2, at, len(data)))
            at += len(data) + (-len(data) % 16)
        tables["kallsyms"] = (_KALLSYMS, kallsyms(symbols, after=self.wide))
        tables["notes"] = (_NOTES, struct.pack("<III4s", 4, 20, 3, b"GNU\0") + BUILD_ID)
        tables["btf"] = (_BTF, btf(self.structs))
        for at, data in tables.values():
            memory[at : at + len(data)] = data
        return bytes(memory), [
            (".text", 1, 6, 0, TEXT_SIZE),
            (".rodata", 1, 3, RODATA, HOLE - RODATA),
            (".notes", 7, 2, _NOTES, 36),
            (".BTF", 1, 2, _BTF, len(tables["btf"][1])),
            (".data", 1, 3, DATA, DATA_END - DATA),
            (".altinstr_replacement", 1, 6, _REPLACEMENTS, 0x1000),
            *sections,
            *((name, 1, 2, at, size) for name, at, size in self.extra_sections),
            (".bss", 8, 3, INIT_END, BSS_SIZE),
        ]

    def _sections(self, at: int) -> list[tuple[str, bytes]]:
        """Return the section tables; self-relative ones as they stand from ``at`` on."""
        found: list[tuple[str, bytes]] = []
        alternatives = b""
        for place, where, cpuid, flags, size, length in self.alternatives:
            here = at + len(alternatives)
            head = struct.pack("<ii", place - here, where - here - 4)
            if self.wide:
                alternatives += head + struct.pack("<HHBB", cpuid, flags, size, length)
            else:
                alternatives += head + struct.pack("<HBB", cpuid | flags << 15, size, length)
        found.append((".altinstructions", alternatives))
        if self.paravirt:
            found.append(
                (
                    ".parainstructions",
                    b"".join(
                        struct.pack("<QBB6x", LINK_BASE + place, slot, length)
                        for place, slot, length in self.paravirt
                    ),
                )
            )
        at += sum(len(data) + (-len(data) % 16) for _, data in found)
        for name, sites in self.lists.items():
            data = b"".join(
                struct.pack("<i", site - (at + 4 * index)) for index, site in enumerate(sites)
            )
            found.append((name, data))
            at += len(data) + (-len(data) % 16)
        return found

    def _jump_table(self, at: int) -> bytes:
        return b"".join(
            struct.pack(
                "<iiq",
                code - (at + 16 * index),
                target - (at + 16 * index + 4),
                (key - (at + 16 * index + 8)) | flag,
            )
            for index, (code, target, key, flag) in enumerate(self.jump_labels)
        )

    def _static_calls(self, at: int) -> bytes:
        return b"".join(
            struct.pack("<ii", site - (at + 8 * index), (key - (at + 8 * index + 4)) | flag)
            for index, (site, key, flag) in enumerate(self.static_calls)
        )


def rel32(opcode: str, at: int, target: int) -> bytes:
    """Return ``opcode`` followed by the 32-bit distance from its end to ``target``."""
    raw = bytes.fromhex(opcode)
    return raw + struct.pack("<i", target - at - len(raw) - 4)


def kallsyms(symbols: Mapping[str, tuple[int, str]], *, after: bool) -> bytes:
    """Return the kallsyms tables; ``after`` puts offsets behind the token index (since 6.4).

    Positions below the image are per-CPU symbols and are kept absolute.
    """
    ordered = sorted(symbols.items(), key=lambda symbol: symbol[1][0])
    names, markers = b"", []
    for index, (name, (_, kind)) in enumerate(ordered):
        if index % 256 == 0:
            markers.append(len(names))
        text = (kind + name).encode("latin-1")
        long = len(text) >= 128
        size = bytes((len(text) & 127 | 128, len(text) >> 7)) if long else bytes((len(text),))
        names += size + text
    tokens = [bytes((value,)) if 32 < value < 127 else b"" for value in range(256)]
    tokens[0] = b"\x01"
    table = b"".join(token + b"\0" for token in tokens)
    index16, place = b"", 0
    for token in tokens:
        index16 += struct.pack("<H", place)
        place += len(token) + 1
    offsets = struct.pack(f"<{len(ordered)}i", *(_offset(at) for _, (at, _) in ordered))
    base, count = struct.pack("<Q", LINK_BASE), struct.pack("<I", len(ordered))
    marks = struct.pack(f"<{len(markers)}I", *markers)
    sequences = b"".join(index.to_bytes(3, "big") for index in range(len(ordered)))
    parts = (
        [count, names, marks, table, index16, offsets, base, sequences]
        if after
        else [offsets, base, count, names, marks, sequences, table, index16]
    )
    return b"".join(part + bytes(-len(part) % 8) for part in parts)


def _offset(at: int) -> int:
    return at - 0x1_0000_0000 if at >= 0x1_0000_0000 else -1 - at


def btf(structs: Mapping[str, tuple[int, Mapping[str, int]]]) -> bytes:
    """Return a BTF section with an 8-byte integer and structs of such integers.

    A member "a.b" is member b of an embedded struct a; offsets count from the outer struct.
    """
    strings, types = b"\0", b""

    def name(text: str) -> int:
        nonlocal strings
        strings += text.encode() + b"\0"
        return len(strings) - len(text) - 1

    count = 1
    types += struct.pack("<IIII", name("unsigned long"), 1 << 24, 8, 64)

    def aggregate(text: str, size: int, rows: list[tuple[str, int, int]]) -> int:
        """Add a struct of (member, type id, offset); return its type id."""
        nonlocal types, count
        types += struct.pack("<III", name(text) if text else 0, 4 << 24 | len(rows), size)
        for member, type_id, offset in rows:
            types += struct.pack("<III", name(member), type_id, 8 * offset)
        count += 1
        return count

    for struct_name, (size, members) in structs.items():
        rows = [(member, 1, offset) for member, offset in members.items() if "." not in member]
        inner: dict[str, list[tuple[str, int, int]]] = {}
        for path, offset in members.items():
            outer, dot, member = path.partition(".")
            if dot:
                inner.setdefault(outer, []).append((member, 1, offset))
        # an embedded struct begins where its parent begins: offsets stay as they were given
        rows += [(outer, aggregate("", size, parts), 0) for outer, parts in inner.items()]
        aggregate(struct_name, size, rows)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def compress(elf: bytes, compression: Compression) -> bytes:
    """Return the payload that a kernel build makes of ``elf``."""
    size = struct.pack("<I", len(elf))
    match compression:
        case "gzip":
            return gzip.compress(elf, 1, mtime=0)
        case "bzip2":
            return bz2.compress(elf) + size
        case "lzma":
            return lzma.compress(elf, lzma.FORMAT_ALONE, preset=0) + size
        case "xz":
            return lzma.compress(elf, lzma.FORMAT_XZ, preset=0) + size
        case "zstd":
            return bytes(zstandard.compress(elf, 1)) + size
        case "lz4":
            block: bytes = lz4.block.compress(elf, store_size=False)
            return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + size


def bzimage(payload: bytes, version: str = VERSION) -> bytes:
    """Return a bzImage with one setup sector around ``payload``."""
    header = bytearray(0x400)
    header[0x1F1] = 1
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x20F)
    struct.pack_into("<H", header, 0x20E, 0x100)
    struct.pack_into("<I", header, 0x230, 0x20_0000)
    struct.pack_into("<H", header, 0x236, 0x3F)
    struct.pack_into("<II", header, 0x248, 0, len(payload))
    struct.pack_into("<QI", header, 0x258, PHYSICAL_BASE, IMAGE_SIZE)
    header[0x300 : 0x300 + len(version) + 1] = version.encode() + b"\0"
    return bytes(header) + payload
