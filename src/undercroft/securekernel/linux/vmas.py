"""A process's mappings, from its maple tree (lib/maple_tree.c, include/linux/maple_tree.h).

A node is a pointer with its type in bits 3 to 6, and bit 1 set.  Its pivots are the last index of
each slot; a pivot of 0 ends them, and the last slot reaches to the end of the node's own range.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from undercroft.securekernel.linux.live import MASK64, Budget, LiveKernel, StructureError

VM_EXEC = 4
MAX_MAPPINGS = 1 << 17  # vm.max_map_count is 65,530 unless somebody raised it
_LEAF, _RANGE, _ARANGE = 1, 2, 3  # enum maple_type
_NODE, _TYPE_SHIFT, _TYPE_MASK, _NODE_MASK = 2, 3, 0xF, 0xFF
_MAX_DEPTH = 16
_LAYOUTS = {
    _LEAF: ("maple_range_64", 16),
    _RANGE: ("maple_range_64", 16),
    _ARANGE: ("maple_arange_64", 10),
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """[start, end) of a process.  ``file`` is the ``struct file``, or 0; ``first`` its page there.

    ``private`` is what the kernel keeps with a special mapping (vm_private_data).
    """

    start: int
    end: int
    flags: int
    file: int
    first: int
    private: int

    @property
    def executable(self) -> bool:
        """Whether the process may execute it."""
        return bool(self.flags & VM_EXEC)

    @property
    def is_anonymous(self) -> bool:
        """Whether it is of no file, and nothing special of the kernel's (vDSO, uprobes)."""
        return not self.file and not self.private

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return (self.end - self.start) >> 12

    def index(self, address: int) -> int:
        """Return which page of the file is at ``address``."""
        return self.first + ((address - self.start) >> 12)


class Mappings:
    """The mappings of one process, in order of address."""

    def __init__(self, kernel: LiveKernel, mm: int) -> None:
        self.all = sorted(_mappings(kernel, mm), key=lambda one: one.start)
        self._starts = [one.start for one in self.all]

    def at(self, address: int) -> Mapping | None:
        """Return the mapping that holds the address, if any."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.all[index].end:
            return self.all[index]
        return None


def _mappings(kernel: LiveKernel, mm: int) -> Iterator[Mapping]:
    flags_at = kernel.offset("vm_area_struct", "vm_flags")
    size = kernel.size_of("vm_area_struct")
    at = {
        name: kernel.offset("vm_area_struct", name)
        for name in ("vm_start", "vm_end", "vm_file", "vm_pgoff", "vm_private_data")
    }
    tree = mm + kernel.offset("mm_struct", "mm_mt")
    for area in maple_entries(kernel, tree, limit=MAX_MAPPINGS):
        data = kernel.read(area, size)
        start, end, file, first, private = (
            int(struct.unpack_from("<Q", data, place)[0]) for place in at.values()
        )
        if not start < end <= 1 << 56:
            raise StructureError("a mapping ends before it starts", area, got=hex(start))
        (flags,) = struct.unpack_from("<Q", data, flags_at)
        yield Mapping(start, end, flags, file, first, private)


def maple_entries(kernel: LiveKernel, tree: int, *, limit: int) -> Iterator[int]:
    """Yield the pointers in the ``struct maple_tree`` at ``tree``, in order."""
    root = kernel.member_u64(tree, "maple_tree", "ma_root")
    if not root & _NODE:
        if root:
            yield root
        return
    budget = Budget(limit, "a maple tree")
    stack = [(root, MASK64, 0)]
    while stack:
        node, last, depth = stack.pop()
        budget.spend(node & MASK64)
        kind = node >> _TYPE_SHIFT & _TYPE_MASK
        if kind not in _LAYOUTS or depth > _MAX_DEPTH:
            raise StructureError("a maple node is of no kind that we know", node, got=kind)
        slots = list(_slots(kernel, node & ~_NODE_MASK, kind, last))
        if kind == _LEAF:
            for entry, _ in slots:
                if entry and not entry & 3:
                    budget.spend(entry)
                    yield entry
        else:
            stack.extend((entry, end, depth + 1) for entry, end in reversed(slots) if entry)


def _slots(kernel: LiveKernel, node: int, kind: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield a node's slots up to its last, each with the last index that it stands for."""
    name, count = _LAYOUTS[kind]
    data = kernel.read(node, kernel.size_of(name))
    pivots = struct.unpack_from(f"<{count - 1}Q", data, kernel.offset(name, "pivot"))
    slots = struct.unpack_from(f"<{count}Q", data, kernel.offset(name, "slot"))
    for number, entry in enumerate(slots):
        end = pivots[number] if number < count - 1 else last
        if end >= last or (not end and number):
            yield entry, last
            return
        yield entry, end
