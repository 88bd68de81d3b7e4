"""Where a range of kernel memory lies in guest-physical memory, and whether that stays so.

Text is compared through the frames behind it.  The page-table entries that led there are kept
and looked at again before every comparison: a remapped page must not hide behind an old walk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.base import MemoryFault
from undercroft.securekernel.arch.x86_64.paging import CR3_ADDRESS, level_shifts
from undercroft.securekernel.memory import PhysicalMemory

_PRESENT, _LARGE = 1, 0x80
_ACCESSED_DIRTY = 0x60
_ADDRESS = 0x000F_FFFF_FFFF_F000
_TABLE = 4096
_MAX_SIZE = 1 << 30


@dataclass(frozen=True, slots=True)
class Extent:
    """``size`` bytes at ``vaddr`` that are contiguous at ``paddr``."""

    vaddr: int
    paddr: int
    size: int


@dataclass(frozen=True, slots=True)
class _Entries:
    """Consecutive entries of one table, as they were."""

    paddr: int
    values: bytes


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A virtual range, the frames behind it, and the page-table entries that say so."""

    vaddr: int
    size: int
    extents: tuple[Extent, ...]
    _entries: tuple[_Entries, ...]

    def unchanged(self, memory: PhysicalMemory) -> bool:
        """Tell whether the same entries still stand (accessed and dirty bits aside)."""
        try:
            return all(
                _masked(memory.read(entry.paddr, len(entry.values))) == entry.values
                for entry in self._entries
            )
        except MemoryFault:
            return False


def _masked(entries: bytes) -> bytes:
    return (np.frombuffer(entries, dtype="<u8") & np.uint64(~_ACCESSED_DIRTY % (1 << 64))).tobytes()


def map_range(memory: PhysicalMemory, cr3: int, la57: bool, vaddr: int, size: int) -> MappedRange:
    """Walk the page tables at ``cr3`` for [vaddr, vaddr + size); at most 1 GiB.

    Raises MemoryFault with the first virtual address that is not mapped to RAM.
    """
    if not 0 < size <= _MAX_SIZE:
        raise ValueError(f"a range has 1 to {_MAX_SIZE} bytes, got {size}")
    walker = _Walker(memory, level_shifts(la57), vaddr, vaddr + size)
    walker.table(cr3 & CR3_ADDRESS, 0)
    return MappedRange(vaddr, size, tuple(_joined(walker.extents)), tuple(walker.entries))


class _Walker:
    def __init__(
        self, memory: PhysicalMemory, shifts: tuple[int, ...], start: int, stop: int
    ) -> None:
        self._memory = memory
        self._shifts = shifts
        self._at = start
        self._stop = stop
        self.extents: list[Extent] = []
        self.entries: list[_Entries] = []

    def table(self, paddr: int, level: int) -> None:
        """Follow one table for as much of the range as it maps."""
        shift = self._shifts[level]
        first = (self._at >> shift) & 511
        span = ((self._stop - 1) >> shift) - (self._at >> shift)
        last = min(511, first + span)
        try:
            raw = self._memory.read(paddr + 8 * first, 8 * (last - first + 1))
        except MemoryFault as fault:
            raise MemoryFault(self._at, kind="virtual", why="a page table is not in RAM") from fault
        self.entries.append(_Entries(paddr + 8 * first, _masked(raw)))
        for entry in np.frombuffer(raw, dtype="<u8").tolist():
            self._entry(entry, level)
            if self._at >= self._stop:
                break

    def _entry(self, entry: int, level: int) -> None:
        shift = self._shifts[level]
        if not entry & _PRESENT:
            raise MemoryFault(self._at, kind="virtual")
        address = entry & _ADDRESS
        if shift == 12 or (entry & _LARGE and shift in (21, 30)):
            page = 1 << shift
            inside = self._at & (page - 1)
            size = min(page - inside, self._stop - self._at)
            base = (address & ~(page - 1)) + inside
            if base + size > self._memory.size:
                raise MemoryFault(self._at, kind="virtual", why=f"{base:#x} is not RAM")
            self.extents.append(Extent(self._at, base, size))
            self._at += size
        else:
            self.table(address, level + 1)


def _joined(extents: list[Extent]) -> list[Extent]:
    """Join extents that follow each other in virtual and physical memory."""
    joined: list[Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if last is not None and last.paddr + last.size == extent.paddr:
            joined[-1] = Extent(last.vaddr, last.paddr, last.size + extent.size)
        else:
            joined.append(extent)
    return joined
