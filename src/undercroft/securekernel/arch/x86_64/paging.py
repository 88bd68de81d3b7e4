"""Page tables of x86-64 in long mode (Intel SDM vol. 3, 4.5: 4-level and 5-level paging).

:class:`AddressSpace` translates one address at a time, as the processor does; ``walk`` beside
this module lists every page at once.

MAXPHYADDR is taken as 52, its architectural limit.  A processor with less refuses entries that
we follow; such addresses lie beyond RAM, so a read of them faults here as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.base import MemoryFault
from undercroft.securekernel.memory import PhysicalMemory

PAGE_SIZE = 4096
PAGE_SHIFT = 12
LARGE_SHIFTS = (21, 30)
"""Levels at which the PS bit makes an entry a 2 MiB or 1 GiB page."""

CR3_ADDRESS = 0x000F_FFFF_FFFF_F000
ENTRY_ADDRESS = 0x000F_FFFF_FFFF_F000
PRESENT, WRITABLE, USER, LARGE = 1, 2, 4, 0x80
PAT_LARGE = 1 << 12
NX_SHIFT = 63
MASK64 = (1 << 64) - 1


def level_shifts(la57: bool) -> tuple[int, ...]:
    """Return the address shift of each level, from the root down."""
    return (48, 39, 30, 21, 12) if la57 else (39, 30, 21, 12)


def is_canonical(vaddr: int, la57: bool) -> bool:
    """Return whether the bits above the translated ones repeat the highest of them."""
    top = vaddr >> (56 if la57 else 47)
    return top in (0, (1 << (8 if la57 else 17)) - 1)


_LARGE_SHIFT = 21
_LARGE_MASK = (1 << _LARGE_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Mapping:
    """The mapping that an address falls in, with the rights of all levels combined.

    ``vaddr`` and ``paddr`` are the start of the page, of ``size`` bytes.
    """

    vaddr: int
    paddr: int
    size: int
    writable: bool
    user: bool
    executable: bool


class AddressSpace:
    """The virtual memory behind one CR3, for reading.

    Translations are remembered for the life of the object, so that one pass sees one set of
    them: make a new object for each new look at the guest.  Rights are not enforced on reads.
    Addresses are unsigned; every fault is a MemoryFault with the virtual address.
    """

    def __init__(self, memory: PhysicalMemory, cr3: int, la57: bool) -> None:
        self.memory = memory
        self._read_memory = memory.read
        self.root = cr3 & CR3_ADDRESS
        self.la57 = la57
        self._shifts = level_shifts(la57)
        self._pages: dict[int, int] = {}
        self._large: dict[int, int] = {}  # 2 MiB parts of larger pages, as _pages has 4 KiB

    def lookup(self, vaddr: int) -> Mapping:
        """Return the mapping of ``vaddr``; raise MemoryFault where the processor would fault."""
        if not is_canonical(vaddr, self.la57):
            raise MemoryFault(vaddr, kind="virtual", why="not canonical")
        table = self.root
        writable = user = executable = True
        for shift in self._shifts:
            entry = self._entry(table, vaddr, shift)
            writable &= bool(entry & WRITABLE)
            user &= bool(entry & USER)
            executable &= not entry >> NX_SHIFT
            if shift == PAGE_SHIFT or entry & LARGE:
                base = _leaf_address(entry, shift)
                if base is None:
                    raise MemoryFault(vaddr, kind="virtual", why="reserved bits are set")
                size = 1 << shift
                return Mapping(vaddr & ~(size - 1), base, size, writable, user, executable)
            table = entry & ENTRY_ADDRESS
        raise AssertionError("the last level is a leaf")

    def _entry(self, table: int, vaddr: int, shift: int) -> int:
        index = (vaddr >> shift) & 511
        try:
            entry = int.from_bytes(self.memory.read(table + 8 * index, 8), "little")
        except MemoryFault as fault:
            raise MemoryFault(
                vaddr, kind="virtual", why=f"its page table at {table:#x} is not in RAM"
            ) from fault
        if not entry & PRESENT:
            raise MemoryFault(vaddr, kind="virtual")
        return entry

    def translate(self, vaddr: int) -> int:
        """Return the physical address of ``vaddr``, or raise MemoryFault(vaddr)."""
        base = self._pages.get(vaddr >> PAGE_SHIFT)
        if base is None:
            base = self._page(vaddr)
        return base + (vaddr & (PAGE_SIZE - 1))

    def _page(self, vaddr: int) -> int:
        """Find where the page of ``vaddr`` is, and remember it."""
        large = self._large.get(vaddr >> _LARGE_SHIFT)
        if large is None:
            mapping = self.lookup(vaddr)
            base = mapping.paddr + ((vaddr - mapping.vaddr) & ~(PAGE_SIZE - 1))
            if mapping.size > PAGE_SIZE:
                self._large[vaddr >> _LARGE_SHIFT] = base & ~_LARGE_MASK
        else:
            base = large + (vaddr & _LARGE_MASK & ~(PAGE_SIZE - 1))
        self._pages[vaddr >> PAGE_SHIFT] = base
        return base

    def read(self, vaddr: int, size: int) -> bytes:
        """Return a copy of exactly ``size`` bytes at ``vaddr``, or raise MemoryFault."""
        inside = vaddr & (PAGE_SIZE - 1)
        left = PAGE_SIZE - inside
        if size <= left:
            base = self._pages.get(vaddr >> PAGE_SHIFT)
            if base is None:
                return self._read_page(vaddr, size)
            try:
                return self._read_memory(base + inside, size)
            except MemoryFault:
                return self._read_page(vaddr, size)  # it tells of the virtual address
        parts = []
        while size > 0:
            count = min(size, left)
            parts.append(self._read_page(vaddr, count))
            vaddr, size, left = (vaddr + count) & MASK64, size - count, PAGE_SIZE
        return b"".join(parts)

    def _read_page(self, vaddr: int, size: int) -> bytes:
        paddr = self.translate(vaddr)
        try:
            return self.memory.read(paddr, size)
        except MemoryFault as fault:
            raise MemoryFault(
                vaddr, kind="virtual", why=f"physical address {paddr:#x} is not RAM"
            ) from fault


def _leaf_address(entry: int, shift: int) -> int | None:
    """Return the page's physical address, or None if the entry has reserved bits set."""
    address = entry & ENTRY_ADDRESS
    if shift == PAGE_SHIFT:
        return address
    if shift not in LARGE_SHIFTS:
        return None
    address &= ~PAT_LARGE
    return None if address & ((1 << shift) - 1) else address
