"""Rule 7: call depth tracking (since 6.2, for Retbleed on Skylake: ``retbleed=stuff``).

callthunks_patch_builtin_calls() redirects every direct call to a few bytes of accounting in the
padding before the called function (patch_dest), so that a call reaches the function through its
*pad*.  The pad's bytes are skl_call_thunk_template, adjusted for where it stands.  A function
whose padding is not free is called directly, and a few are never padded (skip_addr).

Rule 7b: a module that calls a kernel function fills that function's pad later; either form of a
pad is the vendor's, so the one that stands there is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import (
    Bytes,
    Canvas,
    Mask,
    Positions,
    rel32,
    with_rel32,
)
from undercroft.reference.kernel.insn import decode
from undercroft.reference.kernel.rules import Rule

_SKIPPED = (
    "error_entry",
    "paranoid_entry",
    "xen_error_entry",
    "__switch_to_asm",
    "ret_from_fork",
    "soft_restart_cpu",
    "__fentry__",
)
_KEXEC_CONTROL_CODE = 2048
"""KEXEC_CONTROL_CODE_MAX_SIZE: calls into relocate_kernel are left alone."""
_PREFIXES = (0x2E, 0x3E, 0x66)


@dataclass(frozen=True, slots=True)
class CallThunks:
    """What the pass needs to know of the kernel: the template, and where pads cannot be."""

    template: bytes
    template_at: int
    operand: int
    """Offset of the RIP-relative displacement in the template."""
    skipped: frozenset[int]
    kexec: range
    text_size: int

    @property
    def size(self) -> int:
        """Bytes of a pad."""
        return len(self.template)

    def pads(self, functions: Positions) -> Bytes:
        """Return the pad that belongs before each function: an (n, size) array."""
        rows = np.tile(np.frombuffer(self.template, dtype=np.uint8), (len(functions), 1))
        at = self.operand
        value = int.from_bytes(self.template[at : at + 4], "little", signed=True)
        moved = value + self.template_at - (functions - self.size)
        rows[:, at : at + 4] = moved.astype("<i4").view(np.uint8).reshape(-1, 4)
        return rows

    def may_pad(self, functions: Positions) -> Mask:
        """Tell which functions are called through a pad if theirs is free (skip_addr)."""
        skipped = np.isin(functions, np.array(sorted(self.skipped), dtype=np.int64))
        kexec = (functions >= self.kexec.start) & (functions < self.kexec.stop)
        inside = (functions >= self.size) & (functions < self.text_size)
        may: Mask = inside & ~skipped & ~kexec
        return may

    def padded(self, functions: Positions, canvas: Canvas) -> Mask:
        """Tell which functions have their pad on the canvas."""
        done = self.may_pad(functions) & canvas.covers(functions - self.size, self.size)
        mine = functions[done]
        done[done] = np.all(canvas.gather(mine - self.size, self.size) == self.pads(mine), axis=1)
        return done


def load(image: KernelImage, canvas: Canvas) -> CallThunks | None:
    """Return the pass's constants, or None if the kernel does not know call depth tracking."""
    start, stop = image.find("skl_call_thunk_template"), image.find("skl_call_thunk_tail")
    if start is None or stop is None or stop <= start:
        return None
    template = canvas.get(start, stop - start)
    insn = decode(template)
    if insn is None or insn.rip is None or insn.length != len(template):
        return None
    control = image.find("relocate_kernel")
    return CallThunks(
        template=template,
        template_at=start,
        operand=insn.rip[0],
        skipped=frozenset(at for name in _SKIPPED if (at := image.find(name)) is not None),
        kexec=range(0) if control is None else range(control, control + _KEXEC_CONTROL_CODE),
        text_size=image.text_size,
    )


def apply(image: KernelImage, canvas: Canvas, thunks: CallThunks) -> None:
    """Paint the pads, then every call that goes through one (patch_call_sites)."""
    sites = np.unique(np.concatenate((image.sites.calls, image.sites.alternatives.instr)))
    sites, functions = _calls(sites[(sites >= 0) & (sites < image.text_size)], canvas)
    may = thunks.may_pad(functions)
    sites, functions = sites[may], functions[may]
    wanted = np.unique(functions)
    before = canvas.gather(wanted - thunks.size, thunks.size)
    free = wanted[np.all(before == 0x90, axis=1)]
    canvas.paint(Rule.CALL_THUNK, free - thunks.size, thunks.pads(free))
    through = np.isin(functions, wanted[thunks.padded(wanted, canvas)])
    mine = sites[through]
    canvas.paint(Rule.CALL_THUNK, mine, with_rel32(b"\xe8", mine, functions[through] - thunks.size))


def _calls(sites: Positions, canvas: Canvas) -> tuple[Positions, Positions]:
    """Return the sites that are calls now, and what they call (call_get_dest)."""
    rows = canvas.gather(sites, 6)
    plain = rows[:, 0] == 0xE8
    prefixed = np.isin(rows[:, 0], _PREFIXES) & (rows[:, 1] == 0xE8)
    functions = np.where(plain, sites + 5 + rel32(rows, 1), sites + 6 + rel32(rows, 2))
    kept = plain | prefixed
    return sites[kept], functions[kept]


def late_pads(
    image: KernelImage,
    canvas: Canvas,
    live: Canvas,
    thunks: CallThunks,
    called: Positions,
) -> int:
    """Paint the pads that stand in ``live`` before functions whose pad is still free (7b).

    Returns how many there are that no static call explains: ``called`` are the static calls'
    functions.
    """
    starts = _functions(image)
    starts = starts[thunks.may_pad(starts) & live.covers(starts - thunks.size, thunks.size)]
    free = np.all(canvas.gather(starts - thunks.size, thunks.size) == 0x90, axis=1)
    late = starts[free]
    late = late[thunks.padded(late, live)]
    canvas.paint(Rule.CALL_THUNK, late - thunks.size, thunks.pads(late))
    return int(np.count_nonzero(~np.isin(late, called)))


def _functions(image: KernelImage) -> Positions:
    """Return where functions start: the text symbols."""
    kinds = np.frombuffer(image.symbols.kinds, dtype=np.uint8)
    text = np.isin(kinds, np.frombuffer(b"tTwW", dtype=np.uint8))
    addresses = image.symbols.addresses[text]
    inside = addresses >= np.uint64(image.link_base)
    starts = (addresses[inside] - np.uint64(image.link_base)).astype(np.int64)
    return np.unique(starts)
