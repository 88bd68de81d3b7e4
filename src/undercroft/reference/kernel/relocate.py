"""Rule 1: KASLR.  The decompressor moves the kernel and adjusts every absolute reference.

handle_relocations() in arch/x86/boot/compressed/misc.c walks the three tables behind the ELF:
the slide is added to 32- and 64-bit words and subtracted from the inverse ones, which are
PC-relative references to per-CPU data (that is linked at zero and does not move).
"""

from __future__ import annotations

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Bytes, Positions, gather


def relocate(image: KernelImage, slide: int) -> bytearray:
    """Return the image's memory as it stands in a kernel that was moved by ``slide`` bytes."""
    memory = bytearray(image.memory)
    array: Bytes = np.frombuffer(memory, dtype=np.uint8)
    tables = image.relocations
    _add(array, tables.r64, slide, "<u8")
    _add(array, tables.r32, slide, "<u4")
    _add(array, tables.inverse32, -slide, "<u4")
    return memory


def _add(array: Bytes, sites: Positions, amount: int, dtype: str) -> None:
    """Add ``amount`` to the little-endian word at each site, modulo the word's size."""
    size = np.dtype(dtype).itemsize
    inside = sites[sites + size <= len(array)]
    words = np.ascontiguousarray(gather(array, inside, size)).view(dtype)[:, 0]
    moved = words + np.array([amount % (1 << (8 * size))], dtype=dtype)
    array[inside[:, None] + np.arange(size)] = moved.view(np.uint8).reshape(-1, size)
