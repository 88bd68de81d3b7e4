"""The relocation tables that the build appends to the kernel ELF for KASLR.

Source: arch/x86/tools/relocs.c (emit_relocs) and arch/x86/boot/compressed/misc.c
(handle_relocations).  Behind the ELF stand u32 words: 0, the 64-bit relocations, 0, the inverse
32-bit ones, 0, the 32-bit ones.  Each word is the low half of a link address, sign-extended.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from undercroft.base import FormatError

_FORMAT = "KASLR relocations"
Offsets = npt.NDArray[np.int64]
_HIGH = -(1 << 32)
"""Sign extension: every address is in the top 2 GiB."""


@dataclass(frozen=True, slots=True)
class RelocationTables:
    """Offsets from the link base of the words that move with the kernel.

    ``r64``: add the slide to 8 bytes; ``r32``: add it to 4; ``inverse32``: subtract it from 4
    (PC-relative references to per-CPU data, which does not move).
    """

    r64: Offsets
    inverse32: Offsets
    r32: Offsets


def parse_relocation_tables(tail: bytes, link_base: int, size: int) -> RelocationTables:
    """Parse what follows the ELF; offsets are from ``link_base`` and lie within ``size`` bytes.

    An empty tail is a kernel that cannot move: three empty tables.
    """
    if len(tail) % 4:
        raise FormatError(_FORMAT, 0, "the tables are not whole words", got=len(tail))
    words = np.frombuffer(tail, dtype="<u4")
    if not len(words):
        empty = np.empty(0, dtype=np.int64)
        return RelocationTables(empty, empty, empty)
    zeros = np.flatnonzero(words == 0)
    if len(zeros) not in (2, 3) or zeros[0] != 0:
        raise FormatError(
            _FORMAT,
            0,
            "there are not two or three tables, each led by a zero",
            expected="0, r64 ..., 0, inverse32 ..., 0, r32 ...",
            got=f"{len(zeros)} zeros",
        )
    tables = [
        _offsets(words[start + 1 : end], link_base, size) for start, end in _spans(zeros, words)
    ]
    if len(tables) == 2:  # since 6.15 no inverse table: per-CPU symbols are no longer zero-based
        tables.insert(1, np.empty(0, dtype=np.int64))
    return RelocationTables(*tables)


def _spans(zeros: npt.NDArray[np.intp], words: npt.NDArray[np.uint32]) -> list[tuple[int, int]]:
    edges = [*(int(zero) for zero in zeros), len(words)]
    return list(itertools.pairwise(edges))


def _offsets(words: npt.NDArray[np.uint32], link_base: int, size: int) -> Offsets:
    base = link_base - (1 << 64)
    offsets: Offsets = np.sort(words.astype(np.int64) + _HIGH - base)
    if len(offsets) and (offsets[0] < 0 or offsets[-1] > size - 8):
        raise FormatError(
            _FORMAT, 0, "a relocation lies outside the kernel", expected=f"0..{size - 8:#x}"
        )
    return offsets
