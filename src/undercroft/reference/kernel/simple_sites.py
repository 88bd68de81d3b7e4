"""Rules 8, 9 and 15: the passes that know only one or two byte strings.

* ENDBR seal (since 5.18, CONFIG_X86_KERNEL_IBT): ``endbr64`` of a function whose address nobody
  takes becomes a NOP (gen_endbr_poison), whatever the CPU.
* SMP locks: on a machine with one CPU the LOCK prefix becomes a DS prefix; when a second CPU
  comes, all flip back.  They are all in one state, which we see at the sites.
* Runtime constants (since 6.11): an immediate that is set once at boot from a variable.
"""

from __future__ import annotations

import numpy as np

from undercroft.reference.kernel.canvas import Canvas, Positions, constant_rows
from undercroft.reference.kernel.rules import Rule

ENDBR64 = bytes.fromhex("f30f1efa")
ENDBR_POISON = bytes.fromhex("660f1f00")
LOCK, DS = 0xF0, 0x3E


def seal_endbr(sites: Positions, canvas: Canvas) -> None:
    """Paint every sealed ENDBR (apply_seal_endbr)."""
    mine = sites[canvas.covers(sites, 4)]
    real = np.all(canvas.gather(mine, 4) == np.frombuffer(ENDBR64, dtype=np.uint8), axis=1)
    mine = mine[real]
    canvas.paint(Rule.ENDBR_SEAL, mine, constant_rows(ENDBR_POISON, len(mine)))


def decode_locks(sites: Positions, canvas: Canvas, stop: int) -> Positions:
    """Return the sites below ``stop`` that are a LOCK prefix as compiled.

    Code that is freed after boot is left alone (alternatives_smp_module_add).
    """
    mine = sites[canvas.covers(sites, 1) & (sites < stop)]
    locks: Positions = mine[canvas.gather(mine, 1)[:, 0] == LOCK]
    return locks


def infer_uniprocessor(locks: Positions, live: Canvas) -> bool:
    """Tell whether the LOCK prefixes are patched out, as most sites show."""
    mine = locks[live.covers(locks, 1)]
    return bool(np.count_nonzero(live.gather(mine, 1)[:, 0] == DS) * 2 > len(mine))


def smp_locks(locks: Positions, canvas: Canvas, *, uniprocessor: bool) -> None:
    """Paint every LOCK prefix."""
    state = DS if uniprocessor else LOCK
    canvas.paint(Rule.SMP_LOCK, locks, constant_rows(bytes((state,)), len(locks)))


def runtime_const(sites: Positions, canvas: Canvas, value: bytes) -> None:
    """Paint an immediate at every site of one runtime constant."""
    mine = sites[canvas.covers(sites, len(value))]
    canvas.paint(Rule.RUNTIME_CONST, mine, constant_rows(value, len(mine)))
