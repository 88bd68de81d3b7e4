"""The kernel's containers, walked over hostile memory: every walk ends, or raises.

Named after the headers: include/linux/{list,rbtree,xarray}.h.  A walk yields addresses of the
embedding structures; it raises StructureError on a cycle, a wrong back-pointer or too many
steps, and MemoryFault on a pointer into nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.securekernel.linux.live import MASK64, Budget, LiveKernel, StructureError

DEFAULT_LIMIT = 1 << 20
_XA_CHUNK_SHIFT = 6
_XA_INTERNAL = 2
_XA_MIN_NODE = 4096
_MAX_TREE_DEPTH = 128


def list_entries(
    kernel: LiveKernel, head: int, member: int = 0, *, limit: int = DEFAULT_LIMIT
) -> Iterator[int]:
    """Yield the entries of the ``list_head`` at ``head``, in order.

    ``member`` is the offset of the list_head in the entry.  Each entry's prev must be the one
    before it, and the head's prev the last.
    """
    budget = Budget(limit, "a list")
    before, at = head, kernel.u64(head)
    while True:
        pair = kernel.read(at, 16)
        after, back = (int.from_bytes(pair[i : i + 8], "little") for i in (0, 8))
        if back != before:
            raise StructureError(
                "a list entry's prev is not the entry before it",
                at,
                expected=hex(before),
                got=hex(back),
            )
        if at == head:
            return
        budget.spend(at)
        yield (at - member) & MASK64
        before, at = at, after


def hlist_entries(
    kernel: LiveKernel, head: int, member: int = 0, *, limit: int = DEFAULT_LIMIT
) -> Iterator[int]:
    """Yield the entries of the ``hlist_head`` at ``head``; pprev must point back."""
    budget = Budget(limit, "an hlist")
    link, at = head, kernel.u64(head)
    while at:
        budget.spend(at)
        pair = kernel.read(at, 16)
        after, back = (int.from_bytes(pair[i : i + 8], "little") for i in (0, 8))
        if back != link:
            raise StructureError(
                "an hlist entry's pprev does not point back", at, expected=hex(link), got=hex(back)
            )
        yield (at - member) & MASK64
        link, at = at, after


def rbtree_entries(
    kernel: LiveKernel, root: int, member: int = 0, *, limit: int = DEFAULT_LIMIT
) -> Iterator[int]:
    """Yield the entries of the ``rb_root`` at ``root``, in order of the tree.

    Each node's parent must be the node above it.
    """
    budget = Budget(limit, "an rbtree")
    left, right = kernel.offset("rb_node", "rb_left"), kernel.offset("rb_node", "rb_right")
    colour = kernel.offset("rb_node", "__rb_parent_color")
    stack: list[int] = []
    parent, at = 0, kernel.u64(root)
    while at or stack:
        while at:
            budget.spend(at)
            if len(stack) > _MAX_TREE_DEPTH:
                raise StructureError("an rbtree is too deep", at)
            above = kernel.u64(at + colour) & ~3
            if above != parent:
                raise StructureError(
                    "an rbtree node's parent is not the node above it",
                    at,
                    expected=hex(parent),
                    got=hex(above),
                )
            stack.append(at)
            parent, at = at, kernel.u64(at + left)
        node = stack.pop()
        yield (node - member) & MASK64
        parent, at = node, kernel.u64(node + right)


def xarray_entries(
    kernel: LiveKernel, array: int, *, limit: int = DEFAULT_LIMIT
) -> Iterator[tuple[int, int]]:
    """Yield (index, pointer) for each pointer in the ``struct xarray`` at ``array``.

    Value entries, siblings and reserved slots hold no pointer and are left out.  Each node's
    shift must be one chunk less than its parent's, and its parent must be the node above it.
    """
    head = kernel.u64(array + kernel.offset("xarray", "xa_head"))
    if not _is_node(head):
        if _is_pointer(head):
            yield 0, head
        return
    budget = Budget(limit, "an xarray")
    slots, parent_at = kernel.offset("xa_node", "slots"), kernel.offset("xa_node", "parent")
    shift_at = kernel.offset("xa_node", "shift")
    top = (head - _XA_INTERNAL) & MASK64
    stack = [(top, 0, 0, kernel.u8(top + shift_at))]
    while stack:
        node, parent, base, shift = stack.pop()
        budget.spend(node)
        if kernel.u8(node + shift_at) != shift or shift > 60 or shift % _XA_CHUNK_SHIFT:
            raise StructureError("an xarray node has the wrong shift", node, expected=shift)
        if kernel.u64(node + parent_at) != parent:
            raise StructureError("an xarray node's parent is not the node above it", node)
        data = kernel.read(node + slots, 8 << _XA_CHUNK_SHIFT)
        below = []
        for slot in range(1 << _XA_CHUNK_SHIFT):
            entry = int.from_bytes(data[8 * slot : 8 * slot + 8], "little")
            index = base + (slot << shift)
            if _is_node(entry):
                if shift == 0:
                    raise StructureError("an xarray node lies below the last level", node)
                child = (entry - _XA_INTERNAL) & MASK64
                below.append((child, node, index, shift - _XA_CHUNK_SHIFT))
            elif _is_pointer(entry):
                yield index, entry
        stack.extend(reversed(below))


def _is_node(entry: int) -> bool:
    return entry & 3 == _XA_INTERNAL and entry > _XA_MIN_NODE


def _is_pointer(entry: int) -> bool:
    return entry != 0 and entry & 3 == 0
