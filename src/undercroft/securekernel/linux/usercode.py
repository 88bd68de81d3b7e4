"""The code of processes, page by page, against the files of their packages.

Position-independent code needs no relocation in its text: a page that a process executes is equal
to the file's page, or somebody wrote to it.  Besides the pages that are mapped, everything that
the page cache holds of such a file is compared: what is there will be executed next.

Which file a page belongs to, and which page of it, is the kernel's own word (``struct page``,
``struct address_space``); what may stand there is the package's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from undercroft.base import JsonValue, MemoryFault
from undercroft.securekernel.arch.x86_64.paging import PAGE_SHIFT, PAGE_SIZE
from undercroft.securekernel.linux.containers import xarray_entries
from undercroft.securekernel.linux.facts import Anomaly, FactSpec, Look
from undercroft.securekernel.linux.live import LiveKernel

_COMPOUND_TAIL = 1
_MAX_FOLIO = 1 << 18  # pages: 1 GiB
_MAX_CACHED = 1 << 20
_UNKNOWN = "no package is known to have it"
_ELSEWHERE = "it is on another file system than the root's, where packages do not put files"

SPEC = FactSpec(
    "user.code",
    "every page of the files that processes execute is what its package has",
    "processes execute code that is not their package's",
    (
        "which file and page a frame belongs to is the kernel's word; what may stand there is the "
        "package's",
        "pages that are not in memory are counted, not compared: they are read from the disk when "
        "they are needed, where IMA measured the file",
        "files on another file system than the root's (a container's, say) are UNKNOWN: to the "
        "guest's packages their paths mean nothing",
    ),
)


class FileLibrary(Protocol):
    """The files that a guest's packages have."""

    def contents(self, path: str) -> Sequence[bytes]:
        """Return what a file of this absolute path may hold; nothing if no package has it."""


@dataclass(slots=True)
class _File:
    path: str
    inode: int
    candidates: list[bytes]
    frames: dict[int, int] = field(default_factory=dict)
    """Page of the file: its frame's physical address."""
    user: str = ""
    elsewhere: bool = False
    """Whether it is on another file system than the root's."""


class FrameMap:
    """``struct page`` and what it says of its frame (include/linux/mm_types.h)."""

    def __init__(self, kernel: LiveKernel) -> None:
        self._kernel = kernel
        self._vmemmap = kernel.u64(kernel.symbol("vmemmap_base"))
        self._size = kernel.size_of("page")
        self._mapping_at = kernel.offset("page", "mapping")
        self._head_at = kernel.offset("page", "compound_head")
        self._index_at = kernel.offset("page", "index")

    def head(self, paddr: int) -> tuple[int, int]:
        """Return the ``struct page`` that stands for a frame, and how many frames before it is."""
        page = self._vmemmap + (paddr >> PAGE_SHIFT) * self._size
        head = self._kernel.u64(page + self._head_at)
        if not head & _COMPOUND_TAIL:
            return page, 0
        return head - _COMPOUND_TAIL, (page - head + _COMPOUND_TAIL) // self._size

    def mapping(self, paddr: int) -> int:
        """Return ``page->mapping`` of a frame, or of the larger page that it is part of."""
        return self._kernel.u64(self.head(paddr)[0] + self._mapping_at)

    def index(self, paddr: int) -> int:
        """Return which page of its file a frame holds."""
        head, behind = self.head(paddr)
        return self._kernel.u64(head + self._index_at) + behind

    def frames(self, page: int) -> Iterator[int]:
        """Yield the physical addresses of the frames that a head page stands for."""
        first = (page - self._vmemmap) // self._size << PAGE_SHIFT
        yield first
        for number in range(1, _MAX_FOLIO):
            try:
                head = self._kernel.u64(page + number * self._size + self._head_at)
            except MemoryFault:
                return
            if head != page + _COMPOUND_TAIL:
                return
            yield first + number * PAGE_SIZE


class CodeCheck:
    """One look over the pages of every file that is executed."""

    def __init__(self, kernel: LiveKernel, library: FileLibrary) -> None:
        self._kernel = kernel
        self._library = library
        self._pages = FrameMap(kernel)
        self._files: dict[int, _File] = {}
        self._copies = 0

    def add(
        self,
        mapping: int,
        path: str,
        packaged: str | None,
        inode: int,
        paddr: int,
        size: int,
        user: str,
    ) -> None:
        """Take a page that ``user`` executes: ``size`` bytes at ``paddr`` of a file's mapping.

        ``packaged`` is the path that its package has, None if it can have none.
        """
        known = self._files.get(mapping)
        if known is None:
            found = list(self._library.contents(packaged)) if packaged is not None else []
            known = self._files[mapping] = _File(
                path, inode, found, user=user, elsewhere=packaged is None
            )
        for frame in range(paddr, paddr + size, PAGE_SIZE):
            known.frames[self._pages.index(frame)] = frame

    def is_equal_copy(self, path: str, index: int, paddr: int) -> bool:
        """Whether a private copy of a file's page (after a write) still holds the file's bytes."""
        equal = any(self._equal(one, index, paddr) for one in self._library.contents(path))
        self._copies += equal
        return equal

    def look(self) -> Look:
        """Compare everything that was added, and what else is cached of the same files."""
        anomalies: dict[Hashable, Anomaly] = {}
        compared = cached = absent = 0
        unknown: list[JsonValue] = []
        for mapping, file in self._files.items():
            executed = len(file.frames)
            if not file.candidates:
                unknown.append(file.path)
                anomalies[file.inode, "unknown"] = Anomaly(
                    {
                        "file": file.path,
                        "rule": _ELSEWHERE if file.elsewhere else _UNKNOWN,
                        "process": file.user,
                        "pages": executed,
                    },
                    certain=False,
                )
                continue
            for index, frame in self._cached(mapping):
                file.frames.setdefault(index, frame)
            compared += executed
            cached += len(file.frames) - executed
            pages = max(len(one) for one in file.candidates) + PAGE_SIZE - 1 >> PAGE_SHIFT
            absent += max(0, pages - len(file.frames))
            anomalies |= self._compare(file)
        details: dict[str, JsonValue] = {
            "files": sorted(file.path for file in self._files.values() if file.candidates),
            "executed_pages_compared": compared,
            "cached_pages_compared": cached,
            "equal_copies": self._copies,
            "pages_not_in_memory": absent,
            "without_reference": sorted(map(str, unknown)),
        }
        return Look(anomalies, details)

    def _cached(self, mapping: int) -> Iterator[tuple[int, int]]:
        """Yield (page of the file, physical address) for what the page cache holds."""
        array = mapping + self._kernel.offset("address_space", "i_pages")
        for index, page in xarray_entries(self._kernel, array, limit=_MAX_CACHED):
            for number, frame in enumerate(self._pages.frames(page)):
                yield index + number, frame

    def _compare(self, file: _File) -> dict[Hashable, Anomaly]:
        """Return the pages that differ from the file that comes nearest."""
        best: list[int] | None = None
        chosen = b""
        for candidate in file.candidates:
            wrong = [
                index
                for index, frame in file.frames.items()
                if not self._equal(candidate, index, frame)
            ]
            if best is None or len(wrong) < len(best):
                best, chosen = wrong, candidate
        return {
            (file.inode, index): Anomaly(self._difference(file, index, chosen))
            for index in sorted(best or ())
        }

    def _equal(self, content: bytes, index: int, frame: int) -> bool:
        return _page_of(content, index) == self._kernel.memory.view(frame, PAGE_SIZE)

    def _difference(self, file: _File, index: int, content: bytes) -> dict[str, JsonValue]:
        """Return the first place at which a page differs, for a person."""
        live = bytes(self._kernel.memory.view(file.frames[index], PAGE_SIZE))
        expected = _page_of(content, index)
        places = np.flatnonzero(
            np.frombuffer(live, dtype=np.uint8) != np.frombuffer(expected, dtype=np.uint8)
        )
        first = int(places[0]) if len(places) else 0  # it was made equal again meanwhile
        return {
            "file": file.path,
            "process": file.user,
            "offset": f"{(index << PAGE_SHIFT) + first:#x}",
            "bytes": len(places),
            "expected": expected[first : first + 16].hex(),
            "got": live[first : first + 16].hex(),
            "rule": "it is not what the package has",
        }


def _page_of(content: bytes, index: int) -> bytearray:
    """Return a page of a file as the page cache holds it: zeros follow its end.

    A bytearray, for comparing one with a buffer is a memcmp.
    """
    start = index << PAGE_SHIFT
    return bytearray(content[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))
