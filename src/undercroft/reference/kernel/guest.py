"""What the rules read from the guest: words at positions, many at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from undercroft.base import MemoryFault
from undercroft.reference.kernel.canvas import Positions, gather

_PAGE = 4096
_SPAN = 1 << 64


class GuestValues:
    """Reads the guest's variables by position.

    ``read(va, n)`` returns exactly n bytes or raises MemoryFault; ``base`` is the virtual
    address of position 0 (where _text stands).
    """

    def __init__(self, read: Callable[[int, int], bytes], base: int) -> None:
        self._read = read
        self.base = base

    def address(self, position: int) -> int:
        """Return the virtual address of a position."""
        return (self.base + position) % _SPAN

    def position(self, address: int) -> int:
        """Return the position of a virtual address (signed)."""
        distance = (address - self.base) % _SPAN
        return distance - _SPAN if distance >> 63 else distance

    def read(self, position: int, size: int) -> bytes:
        """Return ``size`` bytes at a position; MemoryFault if they are not mapped."""
        return self._read(self.address(position), size)

    def u64(self, position: int) -> int:
        """Return the 64-bit word at a position."""
        return int.from_bytes(self.read(position, 8), "little")

    def u32(self, position: int) -> int:
        """Return the 32-bit word at a position."""
        return int.from_bytes(self.read(position, 4), "little")

    def words(self, sites: Positions, dtype: str) -> npt.NDArray[np.int64]:
        """Return the little-endian ``dtype`` at each position as int64 (pointers wrap).

        Pages are read once each.  MemoryFault if any is not mapped.
        """
        size = np.dtype(dtype).itemsize
        if not len(sites):
            return np.empty(0, dtype=np.int64)
        pages = np.unique(np.concatenate((sites // _PAGE, (sites + size - 1) // _PAGE)))
        contents = bytearray()
        for page in pages.tolist():
            contents += self.read(page * _PAGE, _PAGE)
        flat = np.frombuffer(bytes(contents), dtype=np.uint8)
        at = np.searchsorted(pages, sites // _PAGE) * _PAGE + sites % _PAGE
        words = np.ascontiguousarray(gather(flat, at, size)).view(dtype)[:, 0]
        return words.astype(np.int64)

    def pointers(self, sites: Positions) -> Positions:
        """Return the positions that the pointers at ``sites`` lead to; NULL becomes NULL."""
        raw = self.words(sites, "<i8")
        base = np.int64(self.base - _SPAN if self.base >> 63 else self.base)
        with np.errstate(over="ignore"):
            moved: Positions = np.where(raw == 0, NULL, raw - base)
        return moved


NULL = np.int64(-(1 << 63))
"""The position that stands for a NULL pointer."""

__all__ = ["NULL", "GuestValues", "MemoryFault"]
