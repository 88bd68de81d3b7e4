"""What the rules read from the guest: words at positions, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from undercroft.base import MemoryFault
from undercroft.formats.kernel import Btf
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

MAX_WALK = 1 << 16
"""Steps of any walk over the guest's lists; a longer list is torn or hostile."""


class GuestStructs:
    """Reads the guest's structures by the types of its package; addresses are virtual.

    Every walk is bounded and stops at the first entry it has seen before: MemoryFault, like
    memory that is not there, for a list that does not end cannot be read.
    """

    def __init__(self, values: GuestValues, types: Btf) -> None:
        self.values = values
        self.types = types

    def raw(self, address: int, struct: str, member: str, size: int) -> bytes:
        """Return ``size`` bytes of a member of the struct at ``address``."""
        at = address + self.types.offset_of(struct, member)
        return self.values.read(self.values.position(at % _SPAN), size)

    def u64(self, address: int, struct: str, member: str) -> int:
        """Return a 64-bit member of the struct at ``address``."""
        return int.from_bytes(self.raw(address, struct, member, 8), "little")

    def u32(self, address: int, struct: str, member: str) -> int:
        """Return a 32-bit member of the struct at ``address``."""
        return int.from_bytes(self.raw(address, struct, member, 4), "little")

    def pointer(self, address: int) -> int:
        """Return the pointer at ``address``."""
        return self.values.u64(self.values.position(address))

    def chain(self, first: int, struct: str, member: str, end: int = 0) -> Iterator[int]:
        """Yield structs from ``first`` along the pointer ``member``, up to ``end``."""
        seen: set[int] = set()
        at = first
        while at not in (0, end):
            if at in seen or len(seen) >= MAX_WALK:
                raise MemoryFault(at, kind="virtual", why=f"the list of {struct} does not end")
            seen.add(at)
            yield at
            at = self.u64(at, struct, member)

    def list(self, head: int, struct: str, member: str) -> Iterator[int]:
        """Yield the structs of the list_head at ``head``, linked through ``member``."""
        offset = self.types.offset_of(struct, member)
        seen: set[int] = set()
        at = self.pointer(head)
        while at != head:
            if at in seen or len(seen) >= MAX_WALK:
                raise MemoryFault(at, kind="virtual", why=f"the list of {struct} does not end")
            seen.add(at)
            yield (at - offset) % _SPAN
            at = self.pointer(at)

    def hash_table(
        self, heads: int, count: int, struct: str, member: str
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (address, contents) of the structs of ``count`` hlist_heads in a row."""
        if count > MAX_WALK:
            raise MemoryFault(heads, kind="virtual", why="a hash table of absurd size")
        offset, size = self.types.offset_of(struct, member), self.types.size_of(struct)
        raw = self.values.read(self.values.position(heads), 8 * count)
        left = MAX_WALK
        for index in range(count):
            at = int.from_bytes(raw[8 * index : 8 * index + 8], "little")
            while at:
                left -= 1
                if left < 0:
                    raise MemoryFault(at, kind="virtual", why=f"the hash of {struct} does not end")
                start = (at - offset) % _SPAN
                contents = self.values.read(self.values.position(start), size)
                yield start, contents
                at = int.from_bytes(contents[offset : offset + 8], "little")
