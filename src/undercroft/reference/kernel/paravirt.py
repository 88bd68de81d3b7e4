"""Rule 4: paravirt calls (until 6.7).  Each indirect call through pv_ops[type] becomes direct.

apply_paravirt() writes ``call pv_ops[type]`` and pads with NOPs; _paravirt_nop becomes NOPs
only and a NULL slot a call of paravirt_BUG.  Which function stands in a slot is decided once,
early in boot, by the hypervisor the kernel finds.  We read it from the call sites: all sites of
a type must agree, and the function must be one that the vendor could have put there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.sites import ParavirtSites
from undercroft.reference.kernel.canvas import (
    Canvas,
    Positions,
    constant_rows,
    majority,
    rel32,
    with_rel32,
)
from undercroft.reference.kernel.nops import NOPS, short_nops
from undercroft.reference.kernel.rules import Rule

_HYPERVISORS = (
    "kvm_",
    "xen_",
    "hv_",
    "hyperv_",
    "vmware_",
    "__raw_callee_save_",
    "__pv_queued_spin_",
    "native_",
    "pv_native_",
    "_paravirt_",
    "paravirt_BUG",
)
"""Prefixes of the functions that the kernel's own guest support may put into a slot."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """What may stand in pv_ops: a slot's compiled-in value, or a hypervisor's replacement.

    Slots and functions are positions; ``table`` is that of pv_ops itself.
    """

    table: int
    initial: Mapping[int, int]
    replacements: frozenset[int]

    def allows(self, slot: int, target: int) -> bool:
        """Tell whether the function at position ``target`` may stand in ``slot``."""
        if slot not in self.initial:
            return False
        return self.initial[slot] == target or target in self.replacements


def vendor(image: KernelImage) -> Vendor:
    """Read the compiled-in pv_ops and collect the functions that may replace them."""
    table = image.find("pv_ops")
    if table is None:
        return Vendor(0, {}, frozenset())
    initial: dict[int, int] = {}
    for slot in range(table, table + image.btf.size_of("paravirt_patch_template"), 8):
        value = int.from_bytes(image.read(slot, 8), "little")
        initial[slot] = value - image.link_base
    replacements = frozenset(
        image.symbols.address(name) - image.link_base
        for prefix in _HYPERVISORS
        for name in image.symbols.with_prefix(prefix)
    )
    return Vendor(table, initial, replacements)


def shown(
    slots: Positions, sites: Positions, live: Canvas, allowed: Vendor, nop: int, pad: int = 0
) -> dict[int, int]:
    """Return the function that the call sites of each slot show; ``nop`` where they are NOPs.

    ``slots[i]`` is the slot that ``sites[i]`` calls through; a call may lead ``pad`` bytes
    before its function (rule 7).  A slot is left out if none of its sites shows a call that the
    vendor could have made.
    """
    chosen: dict[int, int] = {}
    inside = live.covers(sites, 6)
    slots, sites = slots[inside], sites[inside]
    rows = live.gather(sites, 6)
    calls = rows[:, 0] == 0xE8
    targets = sites + 5 + rel32(rows, 1)
    silent = np.all(rows == np.frombuffer(NOPS[6], dtype=np.uint8), axis=1)
    for slot in np.unique(slots).tolist():
        mine = slots == slot
        seen = [
            function
            for target in targets[mine & calls].tolist()
            for function in {target, target + pad}
            if allowed.allows(slot, function)
        ]
        target = majority(np.array(seen, dtype=np.int64))
        if target is not None:
            chosen[slot] = target
        elif np.any(silent & mine) and allowed.allows(slot, nop):
            chosen[slot] = nop
    return chosen


def infer(sites: ParavirtSites, live: Canvas, allowed: Vendor, nop: int) -> dict[int, int]:
    """Return the function in each slot, as the sites of ``.parainstructions`` show it."""
    return shown(allowed.table + 8 * sites.type.astype(np.int64), sites.instr, live, allowed, nop)


def apply(
    sites: ParavirtSites, canvas: Canvas, chosen: Mapping[int, int], table: int, nop: int
) -> None:
    """Paint the direct call of every site on the canvas whose slot's function is known."""
    slots = table + 8 * sites.type.astype(np.int64)
    inside = canvas.covers(sites.instr, 6)
    for slot, target in chosen.items():
        of_slot = inside & (slots == slot)
        for length in np.unique(sites.length[of_slot]).tolist():
            mine = sites.instr[of_slot & (sites.length == length)]
            if target == nop:
                rows = constant_rows(short_nops(length), len(mine))
            else:
                calls = with_rel32(b"\xe8", mine, np.full(len(mine), target))
                rows = np.hstack((calls, constant_rows(short_nops(length - 5), len(mine))))
            canvas.paint(Rule.PARAVIRT, mine, rows)
