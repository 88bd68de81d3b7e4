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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from undercroft.base import MemoryFault
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


def symbol_region(
    memory: PhysicalMemory, kernel: LocatedKernel, name: str, vaddr: int, size: int
) -> Region:
    """Return a region of one's own choosing: ``size`` bytes of kernel memory at ``vaddr``."""
    extents = map_range(memory, kernel.cr3, kernel.la57, vaddr, size).extents
    return Region(name, extents)


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
    "symbol_region",
]
