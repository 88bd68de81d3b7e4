"""Rule 10: static keys.  A branch that is a NOP or a jump, as its key says.

A site is a two- or five-byte jump or NOP in the compiled code and keeps its size
(arch_jump_entry_size).  It jumps if (key->enabled != 0) differs from the entry's branch bit
(jump_label_type in kernel/jump_label.c).  While a key is switched on for the first time it is -1,
which counts as on: its sites are on their way (see ``text_poke``).  The table is the package's:
the guest's copy is sorted in place, and writable until boot ends.  The keys are the guest's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel.sites import JumpTable
from undercroft.reference.kernel.canvas import (
    Bytes,
    Canvas,
    Mask,
    Positions,
    constant_rows,
    with_rel32,
)
from undercroft.reference.kernel.guest import GuestValues
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.rules import Rule


@dataclass(frozen=True, slots=True)
class JumpLabels:
    """The entries on a canvas, with their instruction sizes (2 or 5) as compiled."""

    table: JumpTable
    size: Positions

    def jumps(self, mine: Mask, size: int) -> Bytes:
        """Return the jump, ``size`` bytes long, at each of the chosen entries."""
        return _jumps(self.table.code[mine], self.table.target[mine], size)


def decode(table: JumpTable, canvas: Canvas) -> JumpLabels:
    """Keep the entries whose code is on the canvas and look up how long each branch is."""
    inside = canvas.covers(table.code, 5)
    kept = JumpTable(
        table.code[inside], table.target[inside], table.key[inside], table.branch[inside]
    )
    rows = canvas.gather(kept.code, 2)
    short = (rows[:, 0] == 0xEB) | ((rows[:, 0] == 0x66) & (rows[:, 1] == 0x90))
    return JumpLabels(kept, np.where(short, 2, 5))


@dataclass(frozen=True, slots=True)
class KeyState:
    """What the keys say of each entry: is it a jump, and is its key being switched on now?"""

    jumps: Mask
    changing: Mask


def read_keys(labels: JumpLabels, values: GuestValues) -> KeyState:
    """Read each entry's key from the guest."""
    keys, back = np.unique(labels.table.key, return_inverse=True)
    enabled = values.words(keys, "<i4")[back]
    return KeyState((enabled != 0) ^ labels.table.branch, enabled < 0)


def apply(labels: JumpLabels, canvas: Canvas, jumps: Mask) -> None:
    """Paint every branch as a jump or a NOP."""
    table = labels.table
    for size in (2, 5):
        mine = labels.size == size
        sites, targets, on = table.code[mine], table.target[mine], jumps[mine]
        rows = constant_rows(NOPS[size], len(sites))
        rows[on] = _jumps(sites[on], targets[on], size)
        canvas.paint(Rule.JUMP_LABEL, sites, rows)


def _jumps(sites: Positions, targets: Positions, size: int) -> Bytes:
    if size == 5:
        return with_rel32(b"\xe9", sites, targets)
    rows = np.empty((len(sites), 2), dtype=np.uint8)
    rows[:, 0] = 0xEB
    rows[:, 1] = (targets - sites - 2).astype(np.int8).view(np.uint8)
    return rows
