"""A guest that was dumped to a file: QEMU's ELF core, LiME, or raw physical memory.

An ELF core from ``dump-guest-memory`` (``docs/specs/vmcoreinfo.txt``, ``target/i386/arch_dump.c``
in QEMU) also has registers: one ``QEMU`` note for each vCPU, without MSRs and debug registers.
LiME (github.com/504ensicsLabs/LiME, doc/README.md) and raw dumps have none, so nothing there
leads to the kernel by hardware: what needs it is UNKNOWN.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.hypervisor.monitor import RamRange
from undercroft.securekernel.hypervisor.ram import GuestRam, SharedBlock
from undercroft.securekernel.vcpu import DescriptorTable, VcpuState

_BLOCK = "file"
_PAGE = 4096
_MAX_SEGMENTS = 4096
_MAX_NOTES = 64 << 20

_ELF_MAGIC = b"\x7fELF\x02\x01\x01"
_ET_CORE, _EM_X86_64 = 4, 62
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")

_LIME_MAGIC = 0x4C694D45
_LIME_HEADER = struct.Struct("<IIQQ8s")

_REFUSED = {
    b"KDUMP   ": "kdump-compressed",
    b"makedumpfile": "flattened makedumpfile",
    b"PAGEDU": "Windows crash dump",
    b"\xd2\xbe\xd2\xbe": "VMware snapshot",
}


class DumpGuest:
    """A dumped guest.  Implements :class:`undercroft.securekernel.guest.Guest`; never changes.

    Raises EnvironmentFault if the file cannot be read, FormatError if it is malformed or of a
    kind that we do not know.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        size, head = _open(path)
        kind, ranges, self._vcpus = _parse(path, size, head)
        self._kind = kind
        self.memory = GuestRam(ranges, {_BLOCK: SharedBlock(path, size)})

    @property
    def channels(self) -> tuple[str, ...]:
        """How this guest is seen."""
        return (f"dump:{self._kind}",)

    def vcpus(self) -> tuple[VcpuState, ...]:
        """Return the registers that the dump holds; empty if it holds none."""
        return self._vcpus

    def cpuid(self) -> tuple[Mapping[tuple[int, int, str], int], ...]:
        """A dump does not tell."""
        return ()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A dump stands still."""
        yield

    def check_alive(self) -> None:
        """A dump neither lives nor ends."""


def _open(path: Path) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(64)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read the dump: {error.strerror or error}", where=str(path)
        ) from error


def _parse(
    path: Path, size: int, head: bytes
) -> tuple[str, tuple[RamRange, ...], tuple[VcpuState, ...]]:
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise FormatError(
                "memory dump", 0, f"this is a {name} file", expected="ELF core, LiME or raw"
            )
    if head.startswith(_ELF_MAGIC[:4]):
        return _parse_elf(path, size, head)
    if head[:4] == struct.pack("<I", _LIME_MAGIC):
        return "lime", _parse_lime(path, size), ()
    if not size or size % _PAGE:
        raise FormatError(
            "memory dump", 0, "not an ELF core, not LiME, and not whole pages", got=size
        )
    return "raw", (RamRange(0, size, _BLOCK, 0),), ()


def _sorted(ranges: list[RamRange], format_name: str) -> tuple[RamRange, ...]:
    """Return the ranges in order; refuse none at all, and ones that overlap."""
    ordered = tuple(sorted(ranges, key=lambda entry: entry.paddr))
    if not ordered:
        raise FormatError(format_name, 0, "the dump holds no memory")
    for before, after in itertools.pairwise(ordered):
        if after.paddr < before.paddr + before.size:
            raise FormatError(format_name, after.offset, "memory ranges overlap")
    return ordered


# LiME


def _parse_lime(path: Path, size: int) -> tuple[RamRange, ...]:
    """Walk the headers: magic, version, first and last address, 8 bytes reserved."""
    ranges: list[RamRange] = []
    at = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            data = file.read(_LIME_HEADER.size)
            if len(data) < _LIME_HEADER.size:
                raise FormatError("LiME", at, "a header is cut short")
            magic, version, first, last, _reserved = _LIME_HEADER.unpack(data)
            if magic != _LIME_MAGIC or version != 1:
                raise FormatError("LiME", at, "not a LiME header, version 1", got=hex(magic))
            start, length = at + _LIME_HEADER.size, last - first + 1
            if not 0 < length <= size - start:
                raise FormatError("LiME", at, "a range is longer than the file", got=length)
            ranges.append(RamRange(first, length, _BLOCK, start))
            if len(ranges) > _MAX_SEGMENTS:
                raise FormatError("LiME", at, "there are too many ranges")
            at = start + length
    return _sorted(ranges, "LiME")


# ELF core


def _parse_elf(
    path: Path, size: int, head: bytes
) -> tuple[str, tuple[RamRange, ...], tuple[VcpuState, ...]]:
    reader = BoundedReader(head, "ELF core", order="little")
    if reader.take(7, "e_ident") != _ELF_MAGIC:
        raise reader.fail("not a 64-bit little-endian ELF file")
    reader.take(9, "e_ident")
    kind, machine = reader.u16("e_type"), reader.u16("e_machine")
    if kind != _ET_CORE or machine != _EM_X86_64:
        raise reader.fail("not a core of an x86-64 machine", got=f"type {kind}, machine {machine}")
    reader.take(12, "e_version, e_entry")
    table = reader.u64("e_phoff")
    reader.take(14, "e_shoff, e_flags, e_ehsize")
    entry_size, count = reader.u16("e_phentsize"), reader.u16("e_phnum")
    if entry_size != _PROGRAM_HEADER.size or not 0 < count <= _MAX_SEGMENTS or count == _PN_XNUM:
        raise reader.fail("program headers of another shape", got=f"{count} of {entry_size}")
    if table > size:
        raise FormatError("ELF core", table, "the program headers lie behind the file's end")
    ranges: list[RamRange] = []
    vcpus: list[VcpuState] = []
    with path.open("rb") as file:
        file.seek(table)
        headers = file.read(count * entry_size)
        if len(headers) < count * entry_size:
            raise FormatError("ELF core", table, "the program headers are cut short")
        for fields in _PROGRAM_HEADER.iter_unpack(headers):
            segment, _flags, offset, _vaddr, paddr, file_size, memory_size, _align = fields
            if offset + file_size > size:
                raise FormatError("ELF core", table, "a segment is longer than the file")
            if segment == _PT_LOAD and file_size:
                if file_size != memory_size:
                    raise FormatError("ELF core", table, "a segment is not whole")
                ranges.append(RamRange(paddr, file_size, _BLOCK, offset))
            elif segment == _PT_NOTE:
                if file_size > _MAX_NOTES:
                    raise FormatError("ELF core", table, "the notes are too long", got=file_size)
                file.seek(offset)
                vcpus += _parse_notes(file.read(file_size), offset)
    return "elf-core", _sorted(ranges, "ELF core"), tuple(vcpus)


def _parse_notes(data: bytes, base: int) -> Iterator[VcpuState]:
    """Yield a vCPU for each note of QEMU's, in the order in which they stand."""
    reader = BoundedReader(data, "ELF core notes", order="little", base=base)
    index = 0
    while reader.remaining >= 12:
        name_size, size = reader.u32("n_namesz"), reader.u32("n_descsz")
        reader.u32("n_type")
        name = reader.take(name_size, "a note's name")
        reader.take(-name_size % 4, "padding")
        description = reader.take(size, "a note")
        reader.take(min(-size % 4, reader.remaining), "padding")
        if name == b"QEMU\0":
            yield _parse_cpu(description, reader.base + reader.offset - size, index)
            index += 1


def _parse_cpu(data: bytes, base: int, index: int) -> VcpuState:
    """Parse ``struct QEMUCPUState`` of x86-64, version 1."""
    reader = BoundedReader(data, "QEMUCPUState", order="little", base=base)
    version, size = reader.u32("version"), reader.u32("size")
    if version != 1 or size != len(data):
        raise reader.fail("not a state of version 1", got=f"version {version}, {size} bytes")
    reader.take(16 * 8, "general registers")
    rip = reader.u64("rip")
    reader.u64("rflags")
    code = _segment(reader)
    for _ in range(5 + 2):
        _segment(reader)
    gdt, idt = _segment(reader), _segment(reader)
    cr = [reader.u64(f"cr{number}") for number in range(5)]
    return VcpuState(
        index=index,
        rip=rip,
        cpl=code.selector & 3,
        cr0=cr[0],
        cr3=cr[3],
        cr4=cr[4],
        efer=None,
        idtr=DescriptorTable(idt.base, idt.limit),
        gdtr=DescriptorTable(gdt.base, gdt.limit),
        dr=None,
        lstar=None,
        cstar=None,
        sysenter_eip=None,
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    selector: int
    base: int
    limit: int


def _segment(reader: BoundedReader) -> _Segment:
    """Read a ``struct QEMUCPUSegment``."""
    selector, limit = reader.u32("selector"), reader.u32("limit")
    reader.take(8, "flags, pad")
    return _Segment(selector, reader.u64("base"), limit)
