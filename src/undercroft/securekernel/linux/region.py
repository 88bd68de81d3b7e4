"""A range of guest code or constants, compared with what must stand there."""

from __future__ import annotations

from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.securekernel.arch.x86_64.paging import PAGE_SHIFT
from undercroft.securekernel.linux.mapped import MappedRange, map_range
from undercroft.securekernel.memory import PhysicalMemory


class Region:
    """Positions [start, start + size), where they lie in memory, and the bytes expected there.

    Raises MemoryFault where the guest has no such memory.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        cr3: int,
        la57: bool,
        start: int,
        mapped: MappedRange,
    ) -> None:
        self.memory = memory
        self.start = start
        self.mapped = mapped
        self._root = (cr3, la57)
        self._expected: list[bytearray] = []

    @classmethod
    def at(
        cls, memory: PhysicalMemory, cr3: int, la57: bool, base: int, start: int, stop: int
    ) -> Region:
        """Map positions [start, stop); ``base`` is the address of position 0."""
        mapped = map_range(memory, cr3, la57, (base + start) % (1 << 64), stop - start)
        return cls(memory, cr3, la57, start, mapped)

    def unchanged(self) -> bool:
        """Tell whether the page tables still lead to the same frames."""
        return self.mapped.unchanged(self.memory)

    def remap(self) -> None:
        """Walk the page tables again."""
        self.mapped = map_range(self.memory, *self._root, self.mapped.vaddr, self.mapped.size)

    def refresh(self, canvas: Canvas) -> None:
        """Take the expected bytes from the canvas."""
        shift = self.start - canvas.start - self.mapped.vaddr
        self._expected = [
            canvas.data[extent.vaddr + shift : extent.vaddr + shift + extent.size]
            for extent in self.mapped.extents
        ]

    def equal(self) -> bool:
        """Compare every byte (bytearray == buffer is one memcmp for each extent)."""
        return all(
            expected == self.memory.view(extent.paddr, extent.size)
            for extent, expected in zip(self.mapped.extents, self._expected, strict=True)
        )

    def copy(self) -> Canvas:
        """Return the live bytes as they are now."""
        data = bytearray()
        for extent in self.mapped.extents:
            data += self.memory.view(extent.paddr, extent.size)
        return Canvas(self.start, data)

    def copy_pages(self, canvas: Canvas, pages: Positions) -> None:
        """Copy the live bytes of some pages (position >> PAGE_SHIFT) into ``canvas`` again."""
        for extent in self.mapped.extents:
            first = self.start + extent.vaddr - self.mapped.vaddr
            for page in pages.tolist():
                low = max(first, page << PAGE_SHIFT)
                high = min(first + extent.size, (page + 1) << PAGE_SHIFT)
                if low < high:
                    view = self.memory.view(extent.paddr + low - first, high - low)
                    canvas.data[low - canvas.start : high - canvas.start] = view
