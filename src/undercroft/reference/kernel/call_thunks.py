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

    def within(self, sites: Positions, canvas: Canvas, size: int) -> Mask:
        """Tell which sites lie in the code that ``canvas`` holds."""
        stop = self.text_size if canvas.start == 0 else canvas.stop
        inside: Mask = (sites >= canvas.start) & (sites + size <= stop)
        return inside

    def may_pad(self, functions: Positions, canvas: Canvas) -> Mask:
        """Tell which functions in ``canvas`` have a pad if theirs is free (skip_addr)."""
        skipped = np.isin(functions, np.array(sorted(self.skipped), dtype=np.int64))
        kexec = (functions >= self.kexec.start) & (functions < self.kexec.stop)
        may: Mask = self.within(functions - self.size, canvas, self.size + 1) & ~skipped & ~kexec
        return may

    def padded(self, functions: Positions, canvas: Canvas) -> Mask:
        """Tell which functions have their pad on the canvas."""
        done = self.may_pad(functions, canvas)
        mine = functions[done]
        done[done] = np.all(canvas.gather(mine - self.size, self.size) == self.pads(mine), axis=1)
        return done

    def through(
        self, sites: Positions, functions: Positions, pads: tuple[Canvas, ...], live: Canvas
    ) -> Mask:
        """Tell which calls lead through the pad of their function.

        If one of ``pads`` has the function, it says so; else the live call does.
        """
        decided = np.zeros(len(sites), dtype=np.bool_)
        padded = np.zeros(len(sites), dtype=np.bool_)
        for canvas in pads:
            mine = ~decided & self.within(functions, canvas, 1)
            padded[mine] = self.padded(functions[mine], canvas)
            decided |= mine
        rest = ~decided & live.covers(sites, 5)
        calls = with_rel32(b"\xe8", sites[rest], functions[rest] - self.size)
        padded[rest] = np.all(live.gather(sites[rest], 5) == calls, axis=1)
        return padded


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


def apply(calls: Positions, instr: Positions, canvas: Canvas, thunks: CallThunks) -> None:
    """Paint the pads, then every call that goes through one (patch_call_sites).

    ``calls`` are .call_sites and ``instr`` the places of alternatives, which may be calls too.
    """
    sites = np.unique(np.concatenate((calls, instr)))
    sites, functions = _calls(sites[thunks.within(sites, canvas, 6)], canvas)
    may = thunks.may_pad(functions, canvas)
    sites, functions = sites[may], functions[may]
    wanted = np.unique(functions)
    before = canvas.gather(wanted - thunks.size, thunks.size)
    free = wanted[np.all(before == 0x90, axis=1)]
    canvas.paint(Rule.CALL_THUNK, free - thunks.size, thunks.pads(free))
    padded = np.isin(functions, wanted[thunks.padded(wanted, canvas)])
    _lead_through(sites[padded], functions[padded], canvas, thunks)


def apply_calls_out(
    calls: Positions,
    instr: Positions,
    canvas: Canvas,
    kernel: Canvas,
    live: Canvas,
    thunks: CallThunks,
) -> None:
    """Paint a module's calls out of it: of the kernel (pads on ``kernel``) and other modules.

    Whether another module's function has its pad is that module's proof; the call may lead
    there or to the function.
    """
    sites = np.unique(np.concatenate((calls, instr)))
    sites, functions = _calls(sites[thunks.within(sites, canvas, 6)], canvas)
    out = ~thunks.within(functions, canvas, 1)
    sites, functions = sites[out], functions[out]
    through = thunks.through(sites, functions, (kernel,), live)
    _lead_through(sites[through], functions[through], canvas, thunks)


def _lead_through(
    sites: Positions, functions: Positions, canvas: Canvas, thunks: CallThunks
) -> None:
    canvas.paint(Rule.CALL_THUNK, sites, with_rel32(b"\xe8", sites, functions - thunks.size))


def _calls(sites: Positions, canvas: Canvas) -> tuple[Positions, Positions]:
    """Return the sites that are calls now, and what they call (call_get_dest)."""
    rows = canvas.gather(sites, 6)
    plain = rows[:, 0] == 0xE8
    prefixed = np.isin(rows[:, 0], _PREFIXES) & (rows[:, 1] == 0xE8)
    functions = np.where(plain, sites + 5 + rel32(rows, 1), sites + 6 + rel32(rows, 2))
    kept = plain | prefixed
    return sites[kept], functions[kept]


def late_pads(
    starts: Positions,
    canvas: Canvas,
    live: Canvas,
    thunks: CallThunks,
    called: Positions,
) -> int:
    """Paint the pads that stand in ``live`` before functions whose pad is still free (7b).

    ``starts`` are where functions start.  Returns how many pads there are that no static call
    explains: ``called`` are the static calls' functions.
    """
    starts = starts[thunks.may_pad(starts, live)]
    free = np.all(canvas.gather(starts - thunks.size, thunks.size) == 0x90, axis=1)
    late = starts[free]
    late = late[thunks.padded(late, live)]
    canvas.paint(Rule.CALL_THUNK, late - thunks.size, thunks.pads(late))
    return int(np.count_nonzero(~np.isin(late, called)))


def functions(image: KernelImage) -> Positions:
    """Return where the kernel's functions start: the text symbols."""
    kinds = np.frombuffer(image.symbols.kinds, dtype=np.uint8)
    text = np.isin(kinds, np.frombuffer(b"tTwW", dtype=np.uint8))
    addresses = image.symbols.addresses[text]
    inside = addresses >= np.uint64(image.link_base)
    starts = (addresses[inside] - np.uint64(image.link_base)).astype(np.int64)
    return np.unique(starts)
