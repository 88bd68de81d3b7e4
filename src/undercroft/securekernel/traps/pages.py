"""The protected pages: what stands in them as the traps know it, and which bytes matter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

    def span_at(self, offset: int) -> Span | None:
        """Return whose byte it is; None for a byte that is nobody's."""
        return next((span for span in self.spans if span.start <= offset < span.stop), None)

    def differences(self, content: bytes) -> list[int]:
        """Return the offsets at which ``content`` differs from what stood there."""
        if content == self.content:
            return []
        old, new = (np.frombuffer(each, dtype=np.uint8) for each in (self.content, content))
        found: list[int] = np.flatnonzero(old != new).tolist()
        return found


class Pages:
    """Every protected page, by guest-physical address."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = tuple(regions)
        self._pages: dict[int, Page] = {}
        self._of_region: dict[str, dict[int, list[Span]]] = {}
        self._hashes: dict[tuple[str, int], bytes] = {}
        for region in regions:
            self._add(region)
        for page in self._pages.values():
            page.spans.sort(key=lambda span: span.start)

    def _add(self, region: Region) -> None:
        mine = self._of_region.setdefault(region.name, {})
        for extent in region.extents:
            for paddr in range(extent.paddr & -PAGE, extent.paddr + extent.size, PAGE):
                start = max(extent.paddr - paddr, 0)
                stop = min(extent.paddr + extent.size - paddr, PAGE)
                vaddr = extent.vaddr + paddr + start - extent.paddr if extent.vaddr else 0
                span = Span(start, stop, vaddr, region)
                self._pages.setdefault(paddr, Page(paddr)).spans.append(span)
                mine.setdefault(paddr, []).append(span)

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, paddr: int) -> Page | None:
        """Return the page at ``paddr``, or None if it is not protected."""
        return self._pages.get(paddr)

    def runs(self) -> list[tuple[int, int]]:
        """Return (address, size) of the pages, joined where they follow each other."""
        joined: list[tuple[int, int]] = []
        for paddr in sorted(self._pages):
            if joined and sum(joined[-1]) == paddr:
                joined[-1] = (joined[-1][0], joined[-1][1] + PAGE)
            else:
                joined.append((paddr, PAGE))
        return joined

    def load(self, memory: PhysicalMemory) -> None:
        """Take every page's content from the guest."""
        for start, size in self.runs():
            data = memory.read(start, size)
            for at in range(0, size, PAGE):
                self._pages[start + at].content = data[at : at + PAGE]
        self._hashes.clear()

    def update(self, page: Page, content: bytes) -> None:
        """Take a page's new content."""
        page.content = content
        for span in page.spans:
            self._hashes.pop((span.region.name, page.paddr), None)

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
