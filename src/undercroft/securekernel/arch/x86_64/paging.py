"""Page tables of x86-64 in long mode (Intel SDM vol. 3, 4.5: 4-level and 5-level paging).

:class:`AddressSpace` translates one address at a time, as the processor does.  :func:`walk` lists
every mapping of an address space at once.  Page tables are the guest's to write: every walk is
bounded, a table that refers to itself included, and nothing is allocated before it is counted.

MAXPHYADDR is taken as 52, its architectural limit.  A processor with less refuses entries that
we follow; such addresses lie beyond RAM, so a read of them faults here as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from undercroft.base import MemoryFault, UndercroftError
from undercroft.securekernel.memory import PhysicalMemory

PAGE_SIZE = 4096
PAGE_SHIFT = 12
LARGE_SHIFTS = (21, 30)
"""Levels at which the PS bit makes an entry a 2 MiB or 1 GiB page."""

CR3_ADDRESS = 0x000F_FFFF_FFFF_F000
_ENTRY_ADDRESS = 0x000F_FFFF_FFFF_F000
_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_PAT_LARGE = 1 << 12
_NX_SHIFT = 63
_MASK64 = (1 << 64) - 1

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


def level_shifts(la57: bool) -> tuple[int, ...]:
    """Return the address shift of each level, from the root down."""
    return (48, 39, 30, 21, 12) if la57 else (39, 30, 21, 12)


def is_canonical(vaddr: int, la57: bool) -> bool:
    """Return whether the bits above the translated ones repeat the highest of them."""
    top = vaddr >> (56 if la57 else 47)
    return top in (0, (1 << (8 if la57 else 17)) - 1)


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
        self.root = cr3 & CR3_ADDRESS
        self.la57 = la57
        self._shifts = level_shifts(la57)
        self._pages: dict[int, int] = {}

    def lookup(self, vaddr: int) -> Mapping:
        """Return the mapping of ``vaddr``; raise MemoryFault where the processor would fault."""
        if not is_canonical(vaddr, self.la57):
            raise MemoryFault(vaddr, kind="virtual", why="not canonical")
        table = self.root
        writable = user = executable = True
        for shift in self._shifts:
            entry = self._entry(table, vaddr, shift)
            writable &= bool(entry & _WRITABLE)
            user &= bool(entry & _USER)
            executable &= not entry >> _NX_SHIFT
            if shift == PAGE_SHIFT or entry & _LARGE:
                base = _leaf_address(entry, shift)
                if base is None:
                    raise MemoryFault(vaddr, kind="virtual", why="reserved bits are set")
                size = 1 << shift
                return Mapping(vaddr & ~(size - 1), base, size, writable, user, executable)
            table = entry & _ENTRY_ADDRESS
        raise AssertionError("the last level is a leaf")

    def _entry(self, table: int, vaddr: int, shift: int) -> int:
        index = (vaddr >> shift) & 511
        try:
            entry = int.from_bytes(self.memory.read(table + 8 * index, 8), "little")
        except MemoryFault as fault:
            raise MemoryFault(
                vaddr, kind="virtual", why=f"its page table at {table:#x} is not in RAM"
            ) from fault
        if not entry & _PRESENT:
            raise MemoryFault(vaddr, kind="virtual")
        return entry

    def translate(self, vaddr: int) -> int:
        """Return the physical address of ``vaddr``, or raise MemoryFault(vaddr)."""
        page = vaddr >> PAGE_SHIFT
        base = self._pages.get(page)
        if base is None:
            mapping = self.lookup(vaddr)
            base = mapping.paddr + ((vaddr - mapping.vaddr) & ~(PAGE_SIZE - 1))
            self._pages[page] = base
        return base + (vaddr & (PAGE_SIZE - 1))

    def read(self, vaddr: int, size: int) -> bytes:
        """Return a copy of exactly ``size`` bytes at ``vaddr``, or raise MemoryFault."""
        left = PAGE_SIZE - (vaddr & (PAGE_SIZE - 1))
        if size <= left:
            return self._read_page(vaddr, size)
        parts = []
        while size > 0:
            count = min(size, left)
            parts.append(self._read_page(vaddr, count))
            vaddr, size, left = (vaddr + count) & _MASK64, size - count, PAGE_SIZE
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
    address = entry & _ENTRY_ADDRESS
    if shift == PAGE_SHIFT:
        return address
    if shift not in LARGE_SHIFTS:
        return None
    address &= ~_PAT_LARGE
    return None if address & ((1 << shift) - 1) else address


class WalkTooLargeError(UndercroftError):
    """An address space has more tables or pages than we follow: it is hostile, or torn."""


W, X, U = 1, 2, 4
"""Bits of :attr:`Pages.rights`: writable, executable, user (all levels combined)."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Every present page of a walk, in order of virtual address; arrays of one length.

    ``vaddr`` and ``paddr`` in bytes, ``shift`` 12, 21 or 30, ``rights`` a sum of W, X and U.
    ``tables`` are the physical addresses of all tables read, root included, each once.
    ``unreadable`` are tables that are not in RAM, ``malformed`` entries with reserved bits set.
    """

    vaddr: U64
    paddr: U64
    shift: U8
    rights: U8
    tables: U64
    unreadable: tuple[int, ...]
    malformed: int

    @property
    def size(self) -> U64:
        """The size of each page in bytes."""
        return np.uint64(1) << self.shift.astype(np.uint64)

    def select(self, mask: npt.NDArray[np.bool_]) -> Pages:
        """Return the pages where ``mask`` is true."""
        return Pages(
            self.vaddr[mask],
            self.paddr[mask],
            self.shift[mask],
            self.rights[mask],
            self.tables,
            self.unreadable,
            self.malformed,
        )

    def with_rights(self, wanted: int, forbidden: int = 0) -> Pages:
        """Return the pages that have all rights of ``wanted`` and none of ``forbidden``."""
        return self.select((self.rights & (wanted | forbidden)) == wanted)


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that follow each other in virtual memory with the same rights, as one range."""

    vaddr: int
    size: int
    rights: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.vaddr + self.size


def runs(pages: Pages) -> tuple[Run, ...]:
    """Join neighbouring pages with the same rights."""
    if not len(pages.vaddr):
        return ()
    end = pages.vaddr + pages.size
    new = np.ones(len(end), dtype=bool)
    new[1:] = (pages.vaddr[1:] != end[:-1]) | (pages.rights[1:] != pages.rights[:-1])
    starts = np.flatnonzero(new)
    lasts = np.append(starts[1:], len(end)) - 1
    return tuple(
        Run(int(pages.vaddr[first]), int(end[last] - pages.vaddr[first]), int(pages.rights[first]))
        for first, last in zip(starts, lasts, strict=True)
    )


def merge(parts: list[Pages]) -> Pages:
    """Return the pages of all walks, in order of virtual address; the same page stays twice."""
    vaddr = np.concatenate([part.vaddr for part in parts])
    order = np.argsort(vaddr, kind="stable")
    return Pages(
        vaddr[order],
        np.concatenate([part.paddr for part in parts])[order],
        np.concatenate([part.shift for part in parts])[order],
        np.concatenate([part.rights for part in parts])[order],
        np.unique(np.concatenate([part.tables for part in parts])),
        tuple(sorted({table for part in parts for table in part.unreadable})),
        sum(part.malformed for part in parts),
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """The tables of one level: where each lies, what it maps, the rights above it."""

    table: U64
    vaddr: U64
    rights: U8


def walk(
    memory: PhysicalMemory,
    cr3: int,
    la57: bool,
    *,
    slots: range = range(512),
    executable_only: bool = False,
    limit: int = 1 << 22,
) -> Pages:
    """Return every present page under the root entries ``slots``.

    ``slots`` counts in entries of the root: range(256) is the lower half, range(256, 512) the
    kernel's.  With ``executable_only`` whatever NX forbids is left out early.  Raises
    WalkTooLargeError if any level has more than ``limit`` entries.
    """
    shifts = level_shifts(la57)
    walker = _Walker(memory, shifts[0], executable_only, limit)
    root = np.array([cr3 & CR3_ADDRESS], dtype=np.uint64)
    level = _Level(root, np.zeros(1, np.uint64), np.full(1, W | X | U, np.uint8))
    for shift in shifts:
        level = walker.descend(level, shift, slots if shift == shifts[0] else range(512))
        if not len(level.table):
            break
    return walker.pages()


class _Walker:
    """One walk, level by level, all entries of a level at once."""

    def __init__(self, memory: PhysicalMemory, top: int, executable_only: bool, limit: int) -> None:
        self._memory = memory
        self._sign = np.uint64(1 << (top + 8))
        self._upper = np.uint64(_MASK64 & ~((1 << (top + 9)) - 1))
        self._executable_only = executable_only
        self._limit = limit
        self._found: list[tuple[U64, U64, U8, U8]] = []
        self._tables: list[U64] = []
        self._unreadable: list[int] = []
        self._malformed = 0

    def _load(self, tables: U64) -> U64:
        """Return the entries of each table; those of a table that is not in RAM are absent."""
        content = np.zeros((len(tables), 512), dtype="<u8")
        for index, table in enumerate(tables.tolist()):
            try:
                content[index] = np.frombuffer(self._memory.view(table, PAGE_SIZE), dtype="<u8")
            except MemoryFault:
                self._unreadable.append(table)
        return content.astype(np.uint64, copy=False)

    def descend(self, level: _Level, shift: int, slots: range) -> _Level:
        """Keep the leaves of this level and return the tables of the next."""
        unique, which = np.unique(level.table, return_inverse=True)
        self._tables.append(unique)
        content = self._load(unique)
        wanted = (content & np.uint64(_PRESENT)) != 0
        if self._executable_only:
            wanted &= (content >> np.uint64(_NX_SHIFT)) == 0
        if len(slots) != 512:
            wanted[:, : slots.start] = False
            wanted[:, slots.stop :] = False
        counts = np.count_nonzero(wanted, axis=1)
        total = int(counts[which].sum())
        if total > self._limit:
            raise WalkTooLargeError(
                "the page tables hold too many entries",
                expected=f"at most {self._limit}",
                got=total,
            )
        return self._split(level, which, wanted, content, shift)

    def _split(
        self,
        level: _Level,
        which: npt.NDArray[np.intp],
        wanted: npt.NDArray[np.bool_],
        content: U64,
        shift: int,
    ) -> _Level:
        row, slot = np.nonzero(wanted)
        first = np.searchsorted(row, which)
        count = np.count_nonzero(wanted, axis=1)[which]
        parent = np.repeat(np.arange(len(which)), count)
        within = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
        at = np.repeat(first, count) + within
        entry = content[row[at], slot[at]]
        vaddr = level.vaddr[parent] | (slot[at].astype(np.uint64) << np.uint64(shift))
        vaddr = np.where(vaddr & self._sign, vaddr | self._upper, vaddr)
        own = (
            ((entry & np.uint64(_WRITABLE)) != 0) * np.uint8(W)
            | ((entry >> np.uint64(_NX_SHIFT)) == 0) * np.uint8(X)
            | ((entry & np.uint64(_USER)) != 0) * np.uint8(U)
        ).astype(np.uint8)
        rights = level.rights[parent] & own
        leaf = np.full(len(entry), shift == PAGE_SHIFT) | ((entry & np.uint64(_LARGE)) != 0)
        self._keep(entry[leaf], vaddr[leaf], rights[leaf], shift)
        below = ~leaf
        return _Level(entry[below] & np.uint64(_ENTRY_ADDRESS), vaddr[below], rights[below])

    def _keep(self, entry: U64, vaddr: U64, rights: U8, shift: int) -> None:
        paddr = entry & np.uint64(_ENTRY_ADDRESS)
        good = np.ones(len(entry), dtype=bool)
        if shift != PAGE_SHIFT:
            paddr &= ~np.uint64(_PAT_LARGE)
            good = (paddr & np.uint64((1 << shift) - 1)) == 0
            if shift not in LARGE_SHIFTS:
                good[:] = False
        self._malformed += int(len(good) - np.count_nonzero(good))
        sizes = np.full(int(np.count_nonzero(good)), shift, dtype=np.uint8)
        self._found.append((vaddr[good], paddr[good], sizes, rights[good]))

    def pages(self) -> Pages:
        """Return everything found, in order of virtual address."""
        vaddr = np.concatenate([found[0] for found in self._found])
        order = np.argsort(vaddr, kind="stable")
        return Pages(
            vaddr[order],
            np.concatenate([found[1] for found in self._found])[order],
            np.concatenate([found[2] for found in self._found])[order],
            np.concatenate([found[3] for found in self._found])[order],
            np.unique(np.concatenate(self._tables)),
            tuple(self._unreadable),
            self._malformed,
        )


def overlapping(pages: Pages, spans: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Return which pages share physical memory with ``spans``: (start, end) physical addresses.

    Spans may overlap each other and need no order.
    """
    if not spans:
        return np.zeros(len(pages.paddr), dtype=bool)
    joined: list[list[int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    starts = np.array([span[0] for span in joined], dtype=np.uint64)
    ends = np.array([span[1] for span in joined], dtype=np.uint64)
    last = pages.paddr + pages.size
    index = np.searchsorted(starts, last, side="left")  # spans that start below the page's end
    result = index > 0
    result[result] &= ends[index[result] - 1] > pages.paddr[result]
    return result
