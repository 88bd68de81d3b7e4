"""What of a located kernel is protected against writes, and which of its bytes matter.

======================  ====================================================================
region                  what may write to it
======================  ====================================================================
kernel.text             the kernel's own patching, at the places that ``sites`` knows
kernel.rodata           nothing
kernel.ro-after-init    nothing, from the end of boot on: the IDT is there, and the vDSO's pages
kernel.page-tables      nothing, of the entries that lead to the above; the rest of such a page
                        is let through
======================  ====================================================================

The GDT is not among them: the kernel writes thread-local segments to it at every switch
between tasks (native_load_tls), in the same page.  It is polled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.arch.x86_64.paging import CR3_ADDRESS, level_shifts
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.linux.mapped import Extent, map_range
from undercroft.securekernel.memory import PhysicalMemory

PAGE = 4096
TEXT = "kernel.text"
RODATA = "kernel.rodata"
RO_AFTER_INIT = "kernel.ro-after-init"
PAGE_TABLES = "kernel.page-tables"

MAX_REQUEST = 64 << 20
"""Bytes that one request may ask for."""
_PRESENT, _LARGE = 1, 0x80
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ENTRY = 8


@dataclass(frozen=True, slots=True)
class Region:
    """A named set of guest-physical extents whose bytes must not change unexplained.

    ``vaddr`` of an extent is where the kernel sees it; ``patched`` says that lawful patching
    happens there (text), ``entries`` that it consists of page-table entries.  Bytes of a page
    outside every extent are nobody's: writes to them are let through.
    """

    name: str
    extents: tuple[Extent, ...]
    patched: bool = False
    entries: bool = False

    @property
    def size(self) -> int:
        """Bytes covered."""
        return sum(extent.size for extent in self.extents)


def kernel_regions(
    memory: PhysicalMemory, image: KernelImage, kernel: LocatedKernel
) -> tuple[Region, ...]:
    """Return the regions of a running kernel.  Raises MemoryFault if one is not mapped."""

    def mapped(start: int, stop: int) -> tuple[Extent, ...]:
        vaddr = kernel.base + start
        return map_range(memory, kernel.cr3, kernel.la57, vaddr, stop - start).extents

    first, last = image.offset("__start_rodata"), image.offset("__end_rodata")
    low, high = image.offset("__start_ro_after_init"), image.offset("__end_ro_after_init")
    ro_after_init = mapped(low, high)
    regions = [
        Region(TEXT, mapped(0, image.text_size), patched=True),
        Region(RODATA, mapped(first, low) + mapped(high, last)),
        Region(RO_AFTER_INIT, ro_after_init + _idt(memory, image, kernel, low, high)),
    ]
    covered = [extent for region in regions for extent in region.extents]
    entries = page_table_entries(memory, kernel, covered)
    return (*regions, Region(PAGE_TABLES, entries, entries=True))


def _idt(
    memory: PhysicalMemory, image: KernelImage, kernel: LocatedKernel, low: int, high: int
) -> tuple[Extent, ...]:
    """Return the IDT's page if it does not lie in .data..ro_after_init already.

    It is in .bss..page_aligned and made read-only by idt_setup_apic_and_irq_gates()
    (arch/x86/kernel/idt.c).
    """
    table = image.find("idt_table")
    if table is None or low <= table < high:
        return ()
    vaddr = kernel.base + table
    return map_range(memory, kernel.cr3, kernel.la57, vaddr, PAGE).extents


def page_table_entries(
    memory: PhysicalMemory, kernel: LocatedKernel, covered: Iterable[Extent]
) -> tuple[Extent, ...]:
    """Return the page-table entries that lead to ``covered``, as extents of 8 bytes.

    Their ``vaddr`` is that of the entry in the direct map if it can be told, else 0: an entry
    has no symbol.  Entries of the kernel's own root table count; other processes' root tables
    lead to the same lower tables.
    """
    shifts = level_shifts(kernel.la57)
    entries: dict[int, Extent] = {}
    for extent in covered:
        at = extent.vaddr
        while at < extent.vaddr + extent.size:
            last = shifts[-1]
            for paddr, shift in _walk(memory, kernel.cr3 & CR3_ADDRESS, shifts, at):
                entries[paddr] = Extent(0, paddr, _ENTRY)
                last = shift
            at = (at | ((1 << last) - 1)) + 1
    return tuple(entries[paddr] for paddr in sorted(entries))


def _walk(
    memory: PhysicalMemory, table: int, shifts: tuple[int, ...], vaddr: int
) -> Iterator[tuple[int, int]]:
    """Yield (address of the entry, level's shift) from the root to the leaf of ``vaddr``."""
    for shift in shifts:
        paddr = table + _ENTRY * ((vaddr >> shift) & 511)
        entry = int.from_bytes(memory.read(paddr, _ENTRY), "little")
        if not entry & _PRESENT:
            raise MemoryFault(vaddr, kind="virtual")
        yield paddr, shift
        if entry & _LARGE and shift in (21, 30):
            return
        table = entry & _ADDRESS


def requested_regions(
    memory: PhysicalMemory, image: KernelImage, kernel: LocatedKernel, wanted: str
) -> tuple[Region, Region]:
    """Return what somebody wants protected as well, and the page-table entries that lead there.

    ``wanted`` is ``SYMBOL`` (up to the next one), ``SYMBOL+SIZE`` or ``0xADDRESS+SIZE``, in kernel
    memory.  Nothing may write there from then on.  Raises EnvironmentFault for what is no such
    place, or is code, which is protected anyway.
    """
    match = re.fullmatch(r"(0x[0-9a-f]+|[\w.]+)(?:\+(0x[0-9a-f]+|\d+))?", wanted)
    if match is None:
        raise EnvironmentFault(
            "not a place in the kernel",
            expected="SYMBOL, SYMBOL+SIZE or 0xADDRESS+SIZE",
            got=wanted,
        )
    where, size = match[1], int(match[2], 0) if match[2] else 0
    if where.startswith("0x"):
        vaddr = int(where, 16)
    else:
        at = image.find(where)
        if at is None:
            raise EnvironmentFault("the kernel has no such symbol", got=where)
        vaddr = kernel.base + at
        size = size or _size_of(image, at)
    if not 0 < size <= MAX_REQUEST:
        raise EnvironmentFault("how many bytes?", where=wanted, expected=f"1 to {MAX_REQUEST}")
    if vaddr < kernel.base + image.text_size and kernel.base < vaddr + size:
        raise EnvironmentFault("this is the kernel's code, which is protected anyway", where=wanted)
    try:
        extents = map_range(memory, kernel.cr3, kernel.la57, vaddr, size).extents
        entries = page_table_entries(memory, kernel, extents)
    except MemoryFault as fault:
        raise EnvironmentFault(f"nothing is mapped there: {fault}", where=wanted) from fault
    name = f"requested.{wanted}"
    return Region(name, extents), Region(f"{name}.page-tables", entries, entries=True)


def _size_of(image: KernelImage, at: int) -> int:
    """Return how far it is from a symbol to the next one."""
    addresses = image.symbols.addresses
    here = np.uint64(image.link_base + at)
    after = addresses[addresses > here]
    return int(after.min() - here) if len(after) else 0


def pages_of(extents: Iterable[Extent]) -> list[int]:
    """Return the guest-physical addresses of every page that the extents touch, ascending."""
    pages: set[int] = set()
    for extent in extents:
        pages.update(range(extent.paddr & -PAGE, extent.paddr + extent.size, PAGE))
    return sorted(pages)


__all__ = [
    "PAGE",
    "PAGE_TABLES",
    "RODATA",
    "RO_AFTER_INIT",
    "TEXT",
    "Region",
    "kernel_regions",
    "page_table_entries",
    "pages_of",
    "requested_regions",
]
