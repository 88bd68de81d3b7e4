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
from undercroft.reference.kernel.canvas import Canvas, majority, rel32, with_rel32
from undercroft.reference.kernel.nops import short_nops
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
    """What may stand in pv_ops: a slot's compiled-in value, or a hypervisor's replacement."""

    initial: Mapping[int, int]
    replacements: frozenset[int]

    def allows(self, slot: int, target: int) -> bool:
        """Tell whether the function at position ``target`` may stand in slot ``slot``."""
        return self.initial.get(slot) == target or target in self.replacements


def vendor(image: KernelImage) -> Vendor:
    """Read the compiled-in pv_ops and collect the functions that may replace them."""
    table = image.find("pv_ops")
    initial: dict[int, int] = {}
    if table is not None:
        for slot in range(image.btf.size_of("paravirt_patch_template") // 8):
            value = int.from_bytes(image.read(table + 8 * slot, 8), "little")
            initial[slot] = value - image.link_base
    replacements = frozenset(
        image.symbols.address(name) - image.link_base
        for prefix in _HYPERVISORS
        for name in image.symbols.with_prefix(prefix)
    )
    return Vendor(initial, replacements)


def infer(sites: ParavirtSites, live: Canvas, allowed: Vendor, nop: int) -> dict[int, int]:
    """Return the function (a position) of every type whose sites show one; ``nop`` for NOPs."""
    chosen: dict[int, int] = {}
    for kind in np.unique(sites.type).tolist():
        mine = sites.instr[sites.type == kind]
        mine = mine[live.covers(mine, 6)]
        rows = live.gather(mine, 6)
        calls = rows[:, 0] == 0xE8
        targets = mine[calls] + 5 + rel32(rows[calls], 1)
        target = majority(targets[[allowed.allows(kind, each) for each in targets.tolist()]])
        silent = np.all(rows[:, :3] == np.frombuffer(short_nops(6)[:3], dtype=np.uint8), axis=1)
        if target is not None:
            chosen[kind] = target
        elif np.any(silent):
            chosen[kind] = nop
    return chosen


def apply(sites: ParavirtSites, canvas: Canvas, chosen: Mapping[int, int], nop: int) -> None:
    """Paint the direct call of every site whose type's function is known."""
    for kind, target in chosen.items():
        of_kind = sites.type == kind
        for length in np.unique(sites.length[of_kind]).tolist():
            mine = sites.instr[of_kind & (sites.length == length)]
            code = b"" if target == nop else b"\xe8"
            pad = np.frombuffer(short_nops(length - 5 if code else length), dtype=np.uint8)
            padding = np.tile(pad, (len(mine), 1))
            if code:
                calls = with_rel32(code, mine, np.full(len(mine), target))
                padding = np.hstack((calls, padding))
            canvas.paint(Rule.PARAVIRT, mine, padding)
