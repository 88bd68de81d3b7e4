"""Rule 5b: Indirect Target Selection.  An indirect branch in the lower half of a cache line.

On a CPU with that flaw and with eIBRS, apply_retpolines() writes indirect branches as they are
where they end in the upper half of a cache line, and elsewhere as a branch to a thunk that
stands in an upper half: ``jmp *%reg; int3``.  The kernel makes a thunk for each site, on pages of
their own (its_allocate_thunk), so that only the thunk's place is the guest's to say.  We take
the place if a thunk of the right register stands there; the pages are compared as a whole
elsewhere.
"""

from __future__ import annotations

import numpy as np

from undercroft.base import MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Bytes, Canvas, Mask, Positions, rel32, with_rel32
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.retpolines import RetpolineSites
from undercroft.reference.kernel.rules import Rule

THUNK_STRIDE = 64
"""ITS_THUNK_SIZE: the static thunks, used when no page can be had."""
_UPPER_HALF = 0x20
_INT3 = 0xCC


def thunk(register: int) -> bytes:
    """Return ``jmp *%register; int3`` (its_init_thunk)."""
    prefix = b"\x41" if register >= 8 else b""
    return prefix + bytes((0xFF, 0xE0 + register % 8, _INT3))


def wants_thunk(table: RetpolineSites) -> Mask:
    """Tell which sites would end in a lower half (cpu_wants_indirect_its_thunk_at)."""
    conditional = (table.opcode & 0xF0) == 0x80
    last = table.sites + np.where(conditional, 2, 0) + 1 + table.register // 8
    lower: Mask = (last & _UPPER_HALF) == 0
    return lower


def infer(table: RetpolineSites, canvas: Canvas, live: Canvas) -> bool:
    """Tell whether the sites that would want a thunk have one: they are branches still."""
    mine = table.sites[wants_thunk(table) & live.covers(table.sites, 6)]
    if not len(mine):
        return False
    same = canvas.gather(mine, 1) == live.gather(mine, 1)
    return bool(np.count_nonzero(same) * 2 > len(mine))


def apply(
    image: KernelImage, table: RetpolineSites, canvas: Canvas, live: Canvas, values: GuestValues
) -> frozenset[int]:
    """Paint the sites that want a thunk; return the pages (position >> 12) of the thunks."""
    wanting = wants_thunk(table) & live.covers(table.sites, 6)
    array = image.find("__x86_indirect_its_thunk_array") or 0
    pages: set[int] = set()
    for size in (5, 6):
        mine = wanting & (table.size == size)
        sites, registers = table.sites[mine], table.register[mine]
        rows = live.gather(sites, size)
        shown = sites + size + rel32(rows, size - 4)
        targets = array + THUNK_STRIDE * registers
        for index, (target, register) in enumerate(
            zip(shown.tolist(), registers.tolist(), strict=True)
        ):
            if _is_thunk(values, target, register):
                targets[index] = target
                pages.add(target >> 12)
        canvas.paint(Rule.RETPOLINE, sites, _branches(table, mine, sites, targets, size))
    return frozenset(page for page in pages if not 0 <= page << 12 < image.text_size)


def _branches(
    table: RetpolineSites, mine: Mask, sites: Positions, targets: Positions, size: int
) -> Bytes:
    """Return the branch at each site as it was compiled, led to its target."""
    rows = with_rel32(bytes(size - 4), sites, targets)
    opcode = table.opcode[mine]
    rows[:, size - 5] = opcode
    if size == 6:  # CS prefix, or the escape byte of a Jcc.d32
        rows[:, 0] = np.where((opcode & 0xF0) == 0x80, 0x0F, 0x2E)
    return rows


def _is_thunk(values: GuestValues, target: int, register: int) -> bool:
    code = thunk(register)
    if not target & _UPPER_HALF:
        return False
    try:
        return values.read(target, len(code)) == code
    except MemoryFault:
        return False


def odd_bytes(page: bytes) -> list[int]:
    """Return the offsets of a page of thunks that are neither a thunk's nor INT3."""
    wrong: list[int] = []
    at = 0
    while at < len(page):
        if page[at] == _INT3:
            at += 1
            continue
        size = next(
            (
                len(code)
                for code in _THUNKS
                if page[at : at + len(code)] == code and at & _UPPER_HALF
            ),
            0,
        )
        if not size:
            wrong.append(at)
        at += size or 1
    return wrong


_THUNKS = tuple(thunk(register) for register in range(16) if register != 4)
