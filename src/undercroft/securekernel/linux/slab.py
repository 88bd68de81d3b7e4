"""Objects of a slab cache, found through the page structures and not through any list.

Every physical page has a ``struct page`` in the vmemmap; a slab's (``struct slab``, mm/slab.h)
names its cache.  So every object of a cache is found, whatever it was unlinked from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from undercroft.base import MemoryFault
from undercroft.securekernel.linux.live import LiveKernel, StructureError

_MAX_OBJECTS = 1 << 16
_MAX_SLABS = 1 << 20


def slab_objects(kernel: LiveKernel, cache: int) -> Iterator[int]:
    """Yield the direct-map address of every object slot of the kmem_cache at ``cache``.

    Slots that are free at the moment are among them: their content is what was last there.
    """
    size = kernel.member_u32(cache, "kmem_cache", "size")
    pad = 0
    if kernel.has("kmem_cache", "red_left_pad"):
        pad = kernel.member_u32(cache, "kmem_cache", "red_left_pad")
    if not 8 <= size <= 1 << 22 or pad > size:
        raise StructureError("a slab cache has an absurd object size", cache, got=size)
    direct_map = kernel.u64(kernel.symbol("page_offset_base"))
    objects_at = kernel.offset("slab", "objects")
    page_size = kernel.size_of("page")
    vmemmap = kernel.u64(kernel.symbol("vmemmap_base"))
    for slab in slabs(kernel, cache):
        count = kernel.u16(slab + objects_at) & 0x7FFF
        if count > _MAX_OBJECTS:
            raise StructureError("a slab has absurdly many objects", slab, got=count)
        start = direct_map + ((slab - vmemmap) // page_size << 12) + pad
        yield from (start + number * size for number in range(count))


def slabs(kernel: LiveKernel, cache: int) -> Iterator[int]:
    """Yield the address of every ``struct slab`` that names the cache."""
    page_size = kernel.size_of("page")
    cache_at = kernel.offset("slab", "slab_cache")
    if page_size % 8 or cache_at % 8 or cache_at >= page_size:
        raise StructureError("struct page is not as we know it", cache, got=page_size)
    found = 0
    for start, words in _page_structs(kernel, page_size):
        rows = words.reshape(-1, page_size // 8)
        for row in np.flatnonzero(rows[:, cache_at // 8] == np.uint64(cache)).tolist():
            found += 1
            if found > _MAX_SLABS:
                raise StructureError("a cache has absurdly many slabs", cache)
            yield start + row * page_size


def _page_structs(
    kernel: LiveKernel, page_size: int
) -> Iterator[tuple[int, np.ndarray[tuple[int], np.dtype[np.uint64]]]]:
    """Yield the mapped parts of the vmemmap that describe RAM: (address, 64-bit words)."""
    at = kernel.u64(kernel.symbol("vmemmap_base"))
    end = at + (kernel.memory.size >> 12) * page_size
    while at < end:
        try:
            mapping = kernel.space.lookup(at)
        except MemoryFault:
            at = (at | 0xFFF) + 1  # a hole in RAM has no page structures
            continue
        inside = at - mapping.vaddr
        size = min(mapping.size - inside, end - at)
        size -= size % page_size
        if size <= 0:
            return
        view = kernel.memory.view(mapping.paddr + inside, size)
        yield at, np.frombuffer(view, dtype="<u8").astype(np.uint64, copy=False)
        at += size
