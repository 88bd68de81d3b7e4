"""A kernel made of bytes: symbols and types as a test says, structures where it puts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from undercroft.base import FormatError
from undercroft.securekernel.linux.live import MASK64, LiveKernel
from undercroft.testing.fakeguest import PAGE_SIZE, FakeGuest

LINK_BASE = 0xFFFFFFFF81000000
DIRECT_MAP = 0xFFFF888000000000
DATA_SIZE = 0x10000

Layouts = Mapping[str, tuple[int, Mapping[str, int]]]
"""struct name -> (size in bytes, member path -> offset in bytes)"""


class FakeSymbols:
    """Symbols by name, as link addresses."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def address(self, name: str) -> int:
        """Return the link address of ``name``, or raise FormatError."""
        if name not in self.names:
            raise FormatError("kallsyms", 0, f"the kernel has no symbol {name}")
        return self.names[name]

    def get(self, name: str) -> int | None:
        """Return the link address of ``name``, or None."""
        return self.names.get(name)

    def locate(self, address: int) -> tuple[str, int]:
        """Return the symbol at or before ``address``, and the distance."""
        before = [(value, name) for name, value in self.names.items() if value <= address]
        if not before:
            return "", address
        value, name = max(before)
        return name, address - value


class FakeTypes:
    """Types by name, as sizes and offsets."""

    def __init__(self, layouts: Layouts) -> None:
        self.layouts = layouts

    def size_of(self, name: str) -> int:
        """Return the size of a struct, or raise FormatError."""
        if name not in self.layouts:
            raise FormatError("BTF", 0, f"there is no struct or union {name}")
        return self.layouts[name][0]

    def offset_of(self, name: str, path: str) -> int:
        """Return the offset of a member, or raise FormatError."""
        self.size_of(name)
        if path not in self.layouts[name][1]:
            raise FormatError("BTF", 0, f"struct {name} has no member {path}")
        return self.layouts[name][1][path]

    def has_member(self, name: str, path: str) -> bool:
        """Tell whether the struct exists and has the member."""
        return name in self.layouts and path in self.layouts[name][1]


class FakeImage:
    """What a signed kernel file says: symbols, types and (here) no bytes but ``content``."""

    def __init__(self, layouts: Layouts) -> None:
        self.symbols = FakeSymbols()
        self.btf = FakeTypes(layouts)
        self.link_base = LINK_BASE
        self.content: dict[int, bytes] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes that the test put at ``offset``, or raise FormatError."""
        for start, data in self.content.items():
            if start <= offset and offset + size <= start + len(data):
                return data[offset - start : offset - start + size]
        raise FormatError("kernel image", offset, "the image holds no such bytes")


class FakeKernel:
    """A guest with a kernel's data pages and a heap; makes structures and links them.

    ``heap`` is the number of heap pages; they are frames in a row, seen through the direct map.
    Symbols are given addresses one after the other.
    """

    def __init__(
        self, layouts: Layouts, *, slide: int = 0x1000000, heap: int = 64, la57: bool = False
    ) -> None:
        self.guest = FakeGuest(pages=heap + 256, la57=la57)
        self.image = FakeImage(layouts)
        self.slide = slide
        self.guest.map(LINK_BASE + slide, DATA_SIZE)
        first = self.guest.frames(heap)
        self.guest.map(DIRECT_MAP + first, heap * PAGE_SIZE, paddr=first)
        self._next_symbol = LINK_BASE + 0x100
        self._next_heap = DIRECT_MAP + first + 0x40
        self._end_heap = DIRECT_MAP + first + heap * PAGE_SIZE

    def kernel(self) -> LiveKernel:
        """Return a new pass over this kernel."""
        return LiveKernel(
            self.guest.memory,
            self.image,
            slide=self.slide,
            cr3=self.guest.cr3,
            la57=self.guest.la57,
        )

    def symbol(self, name: str, size: int = 8) -> int:
        """Make a variable of ``size`` bytes; return its runtime address."""
        if name not in self.image.symbols.names:
            self.image.symbols.names[name] = self._next_symbol
            self._next_symbol += (size + 63) & ~63
        return self.image.symbols.names[name] + self.slide

    def alloc(self, size: int, *, align: int = 64) -> int:
        """Return the address of ``size`` new zeroed bytes on the heap."""
        at = (self._next_heap + align - 1) & ~(align - 1)
        self._next_heap = at + size
        if self._next_heap > self._end_heap:
            raise MemoryError("the fake kernel's heap is full")
        return at

    def make(self, struct_name: str, **members: int) -> int:
        """Make a struct on the heap with 8-byte members set (``__`` stands for a dot)."""
        at = self.alloc(self.image.btf.size_of(struct_name))
        for path, value in members.items():
            self.put(at, struct_name, path.replace("__", "."), value)
        return at

    def put(self, at: int, struct_name: str, path: str, value: int, size: int = 8) -> None:
        """Set a member of the struct at ``at``."""
        data = (value & MASK64).to_bytes(8, "little")[:size]
        self.guest.write(at + self.image.btf.offset_of(struct_name, path), data)

    def string(self, text: str) -> int:
        """Put a NUL-terminated string on the heap; return its address."""
        data = text.encode() + b"\0"
        at = self.alloc(len(data), align=8)
        self.guest.write(at, data)
        return at

    def data(self, content: bytes) -> int:
        """Put bytes on the heap; return their address."""
        at = self.alloc(len(content), align=8)
        self.guest.write(at, content)
        return at

    def link_list(self, head: int, nodes: Iterable[int]) -> None:
        """Make a circular list of the list_heads at ``nodes``, in order, with its head."""
        ring = [head, *nodes]
        for here, after in zip(ring, [*ring[1:], head], strict=True):
            self.guest.put_u64(here, after)
            self.guest.put_u64(after + 8, here)

    def link_hlist(self, head: int, nodes: Iterable[int]) -> None:
        """Make an hlist of the hlist_nodes at ``nodes``, in order."""
        link = head
        for node in nodes:
            self.guest.put_u64(link, node)
            self.guest.put_u64(node + 8, link)
            link = node
        self.guest.put_u64(link, 0)
