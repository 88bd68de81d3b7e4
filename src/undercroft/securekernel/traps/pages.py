"""The protected pages: what stands in them as the traps know it, and which bytes matter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from undercroft.formats.evidence.interval import page_tree_digest
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.regions import PAGE, Region


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a page that belong to ``region``; ``vaddr`` of start, or 0."""

    start: int
    stop: int
    vaddr: int
    region: Region


@dataclass(slots=True)
class Page:
    """One protected page: its content when last looked at under protection."""

    paddr: int
    spans: list[Span] = field(default_factory=list)
    content: bytes = b""
    writes: int = 0
    counted_since: float = 0.0

    def spans_at(self, offset: int) -> Iterator[Span]:
        """Yield whose byte it is; page-table entries may lead to several regions' memory."""
        return (span for span in self.spans if span.start <= offset < span.stop)

    def span_at(self, offset: int) -> Span | None:
        """Return whose byte it is; None for a byte that is nobody's."""
        return next(self.spans_at(offset), None)

    def differences(self, content: bytes) -> list[int]:
        """Return the offsets at which ``content`` differs from what stood there."""
        if content == self.content:
            return []
        old, new = (np.frombuffer(each, dtype=np.uint8) for each in (self.content, content))
        found: list[int] = np.flatnonzero(old != new).tolist()
        return found


class Pages:
    """Every protected page, by guest-physical address.  Regions are told apart by their names."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions: dict[str, Region] = {}
        self._pages: dict[int, Page] = {}
        self._of_region: dict[str, dict[int, list[Span]]] = {}
        self._hashes: dict[tuple[str, int], bytes] = {}
        self.add(regions)

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is protected now."""
        return tuple(self._regions.values())

    def add(self, regions: Iterable[Region]) -> list[int]:
        """Take more regions; return the addresses of the pages that were not protected before."""
        fresh: set[int] = set()
        touched: dict[int, Page] = {}
        for region in regions:
            if region.name in self._regions:
                raise ValueError(f"there is a region {region.name} already")
            self._regions[region.name] = region
            mine = self._of_region.setdefault(region.name, {})
            for paddr, span in _spans(region):
                if paddr not in self._pages:
                    self._pages[paddr] = Page(paddr)
                    fresh.add(paddr)
                touched[paddr] = self._pages[paddr]
                touched[paddr].spans.append(span)
                mine.setdefault(paddr, []).append(span)
        for page in touched.values():
            page.spans.sort(key=lambda span: span.start)
        return sorted(fresh)

    def remove(self, name: str) -> list[int]:
        """Forget a region; return the addresses of the pages that nobody protects now."""
        region = self._regions.pop(name)
        freed = []
        for paddr in self._of_region.pop(name):
            page = self._pages[paddr]
            page.spans[:] = [span for span in page.spans if span.region is not region]
            self._hashes.pop((name, paddr), None)
            if not page.spans:
                del self._pages[paddr]
                freed.append(paddr)
        return freed

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, paddr: int) -> Page | None:
        """Return the page at ``paddr``, or None if it is not protected."""
        return self._pages.get(paddr)

    def runs(self) -> list[tuple[int, int]]:
        """Return (address, size) of the pages, joined where they follow each other."""
        return runs_of(sorted(self._pages))

    def load(self, memory: PhysicalMemory, pages: Sequence[int] | None = None) -> None:
        """Take every page's content from the guest, or that of some."""
        for start, size in self.runs() if pages is None else runs_of(pages):
            data = memory.read(start, size)
            for at in range(0, size, PAGE):
                self.update(self._pages[start + at], data[at : at + PAGE])

    def update(self, page: Page, content: bytes) -> None:
        """Take a page's new content."""
        page.content = content
        for span in page.spans:
            self._hashes.pop((span.region.name, page.paddr), None)

    def content_of(self, region: Region) -> Iterator[tuple[int, bytes]]:
        """Yield (virtual address, bytes) of everything in a region as the traps know it."""
        for paddr, spans in self._of_region[region.name].items():
            for span in spans:
                yield span.vaddr, self._pages[paddr].content[span.start : span.stop]

    def digest(self, region: Region) -> bytes:
        """Return the region's digest as epochs carry it (formats.evidence.interval)."""
        leaves = []
        for paddr, spans in sorted(self._of_region[region.name].items()):
            key = (region.name, paddr)
            if key not in self._hashes:
                content = self._pages[paddr].content
                covered = b"".join(content[s.start : s.stop] for s in spans)
                self._hashes[key] = hashlib.sha256(covered).digest()
            leaves.append(self._hashes[key])
        return page_tree_digest(leaves)


def _spans(region: Region) -> Iterator[tuple[int, Span]]:
    """Yield the pages of a region, and which of their bytes are its."""
    for extent in region.extents:
        for paddr in range(extent.paddr & -PAGE, extent.paddr + extent.size, PAGE):
            start = max(extent.paddr - paddr, 0)
            stop = min(extent.paddr + extent.size - paddr, PAGE)
            vaddr = extent.vaddr + paddr + start - extent.paddr if extent.vaddr else 0
            yield paddr, Span(start, stop, vaddr, region)


def runs_of(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Return (address, size) of ascending pages, joined where they follow each other."""
    joined: list[tuple[int, int]] = []
    for paddr in pages:
        if joined and sum(joined[-1]) == paddr:
            joined[-1] = (joined[-1][0], joined[-1][1] + PAGE)
        else:
            joined.append((paddr, PAGE))
    return joined
