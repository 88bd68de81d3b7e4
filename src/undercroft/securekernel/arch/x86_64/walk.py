"""Every page of one or many address spaces at once, by levels and vectorised.

Page tables are the guest's to write: a walk is bounded, tables that refer to themselves included,
and nothing is allocated before it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from undercroft.base import MemoryFault, UndercroftError
from undercroft.securekernel.arch.x86_64.paging import (
    CR3_ADDRESS,
    ENTRY_ADDRESS,
    LARGE,
    LARGE_SHIFTS,
    MASK64,
    NX_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAT_LARGE,
    PRESENT,
    USER,
    WRITABLE,
    level_shifts,
)
from undercroft.securekernel.memory import PhysicalMemory

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


class WalkTooLargeError(UndercroftError):
    """An address space has more tables or pages than we follow: it is hostile, or torn."""


W, X, U = 1, 2, 4
"""Bits of :attr:`Pages.rights`: writable, executable, user (all levels combined)."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Every present page of a walk, by root and virtual address; arrays of one length.

    ``vaddr`` and ``paddr`` in bytes, ``shift`` 12, 21 or 30, ``rights`` a sum of W, X and U;
    ``root`` is the physical address of the root through which the page is seen.
    ``tables`` are the physical addresses of all tables read, roots included, each once.
    ``unreadable`` are tables that are not in RAM, ``malformed`` entries with reserved bits set.
    """

    vaddr: U64
    paddr: U64
    shift: U8
    rights: U8
    root: U64
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
            self.root[mask],
            self.tables,
            self.unreadable,
            self.malformed,
        )

    def with_rights(self, wanted: int, forbidden: int = 0) -> Pages:
        """Return the pages that have all rights of ``wanted`` and none of ``forbidden``."""
        return self.select((self.rights & (wanted | forbidden)) == wanted)


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that follow each other in virtual memory with the same rights, as one range.

    ``root`` is the physical address of the root through which they are seen.
    """

    vaddr: int
    size: int
    rights: int
    root: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.vaddr + self.size


def runs(pages: Pages) -> tuple[Run, ...]:
    """Join neighbouring pages of one root with the same rights."""
    if not len(pages.vaddr):
        return ()
    end = pages.vaddr + pages.size
    new = np.ones(len(end), dtype=bool)
    new[1:] = (
        (pages.vaddr[1:] != end[:-1])
        | (pages.rights[1:] != pages.rights[:-1])
        | (pages.root[1:] != pages.root[:-1])
    )
    starts = np.flatnonzero(new)
    lasts = np.append(starts[1:], len(end)) - 1
    return tuple(
        Run(
            int(pages.vaddr[first]),
            int(end[last] - pages.vaddr[first]),
            int(pages.rights[first]),
            int(pages.root[first]),
        )
        for first, last in zip(starts, lasts, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """The tables of one level: where each lies, what it maps, the rights above it, its root."""

    table: U64
    vaddr: U64
    rights: U8
    root: U64


Slots = npt.NDArray[np.bool_]
"""Which of a root's 512 entries to follow."""


def slots_of(entries: Iterable[int]) -> Slots:
    """Return the mask for the root entries ``entries``, numbers from 0 to 511."""
    mask = np.zeros(512, dtype=bool)
    mask[list(entries)] = True
    return mask


def walk(
    memory: PhysicalMemory,
    cr3: int,
    la57: bool,
    *,
    slots: range = range(512),
    executable_only: bool = False,
    limit: int = 1 << 22,
) -> Pages:
    """Return every present page under the root entries ``slots``; see :func:`walk_all`.

    range(256) is the lower half, range(256, 512) the kernel's.
    """
    return walk_all(
        memory,
        {cr3 & CR3_ADDRESS: slots_of(slots)},
        la57,
        executable_only=executable_only,
        limit=limit,
    )


def walk_all(
    memory: PhysicalMemory,
    roots: Mapping[int, Slots],
    la57: bool,
    *,
    executable_only: bool = False,
    limit: int = 1 << 22,
) -> Pages:
    """Return every present page of many roots (physical addresses) in one pass.

    Of each root only the entries in its mask are followed.  With ``executable_only`` whatever NX
    forbids is left out early.  Raises WalkTooLargeError if any level has more than ``limit``
    entries, all roots together.
    """
    shifts = level_shifts(la57)
    walker = _Walker(memory, shifts[0], executable_only, limit)
    tables = np.array(sorted(roots), dtype=np.uint64)
    rights = np.full(len(tables), W | X | U, np.uint8)
    level = _Level(tables, np.zeros(len(tables), np.uint64), rights, tables)
    for shift in shifts:
        level = walker.descend(level, shift, roots if shift == shifts[0] else None)
        if not len(level.table):
            break
    return walker.pages()


class _Walker:
    """One walk, level by level, all entries of a level at once."""

    def __init__(self, memory: PhysicalMemory, top: int, executable_only: bool, limit: int) -> None:
        self._memory = memory
        self._sign = np.uint64(1 << (top + 8))
        self._upper = np.uint64(MASK64 & ~((1 << (top + 9)) - 1))
        self._executable_only = executable_only
        self._limit = limit
        self._found: list[tuple[U64, U64, U8, U8, U64]] = []
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

    def descend(self, level: _Level, shift: int, slots: Mapping[int, Slots] | None) -> _Level:
        """Keep the leaves of this level and return the tables of the next."""
        unique, which = np.unique(level.table, return_inverse=True)
        self._tables.append(unique)
        content = self._load(unique)
        wanted = (content & np.uint64(PRESENT)) != 0
        if self._executable_only:
            wanted &= (content >> np.uint64(NX_SHIFT)) == 0
        if slots is not None:
            wanted &= np.array([slots[root] for root in unique.tolist()]).reshape(-1, 512)
        counts = np.count_nonzero(wanted, axis=1)[which]
        if int(counts.sum()) > self._limit:
            raise WalkTooLargeError(
                "the page tables hold too many entries",
                expected=f"at most {self._limit}",
                got=int(counts.sum()),
            )
        row, slot = np.nonzero(wanted)
        parent = np.repeat(np.arange(len(which)), counts)
        within = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = np.repeat(np.searchsorted(row, which), counts) + within
        return self._split(level, parent, slot[at], content[row[at], slot[at]], shift)

    def _split(
        self,
        level: _Level,
        parent: npt.NDArray[np.intp],
        slot: npt.NDArray[np.intp],
        entry: U64,
        shift: int,
    ) -> _Level:
        """Part the entries of a level into pages, which are kept, and tables, returned."""
        vaddr = level.vaddr[parent] | (slot.astype(np.uint64) << np.uint64(shift))
        vaddr = np.where(vaddr & self._sign, vaddr | self._upper, vaddr)
        own = (
            ((entry & np.uint64(WRITABLE)) != 0) * np.uint8(W)
            | ((entry >> np.uint64(NX_SHIFT)) == 0) * np.uint8(X)
            | ((entry & np.uint64(USER)) != 0) * np.uint8(U)
        ).astype(np.uint8)
        rights = level.rights[parent] & own
        root = level.root[parent]
        leaf = np.full(len(entry), shift == PAGE_SHIFT) | ((entry & np.uint64(LARGE)) != 0)
        self._keep(entry[leaf], vaddr[leaf], rights[leaf], root[leaf], shift)
        below = ~leaf
        tables = entry[below] & np.uint64(ENTRY_ADDRESS)
        return _Level(tables, vaddr[below], rights[below], root[below])

    def _keep(self, entry: U64, vaddr: U64, rights: U8, root: U64, shift: int) -> None:
        paddr = entry & np.uint64(ENTRY_ADDRESS)
        good = np.ones(len(entry), dtype=bool)
        if shift != PAGE_SHIFT:
            paddr &= ~np.uint64(PAT_LARGE)
            good = (paddr & np.uint64((1 << shift) - 1)) == 0
            if shift not in LARGE_SHIFTS:
                good[:] = False
        self._malformed += int(len(good) - np.count_nonzero(good))
        sizes = np.full(int(np.count_nonzero(good)), shift, dtype=np.uint8)
        self._found.append((vaddr[good], paddr[good], sizes, rights[good], root[good]))

    def pages(self) -> Pages:
        """Return everything found, in order of root and virtual address."""
        vaddr, paddr, shift, rights, root = (
            np.concatenate([found[part] for found in self._found]) for part in range(5)
        )
        order = np.lexsort((vaddr, root))
        return Pages(
            vaddr[order].astype(np.uint64, copy=False),
            paddr[order].astype(np.uint64, copy=False),
            shift[order].astype(np.uint8, copy=False),
            rights[order].astype(np.uint8, copy=False),
            root[order].astype(np.uint64, copy=False),
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
