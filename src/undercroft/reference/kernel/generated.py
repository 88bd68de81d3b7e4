"""Code that the kernel makes while it runs: trampolines, slots and detours, byte for byte.

Each is built from the kernel's own text, after its patching, and from a few addresses.  What
cannot be computed without a compiler (BPF's JIT output) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.alternative_bytes import relocated
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.ftrace import OPS_FL_SAVE_REGS, Ops
from undercroft.reference.kernel.insn import decode
from undercroft.reference.kernel.kprobes import Probe
from undercroft.reference.kernel.nops import NOPS, merge_nops
from undercroft.reference.kernel.returns import ReturnChoice

OPS_FL_RECURSION, OPS_FL_RCU = 1 << 4, 1 << 14
SLOT_SIZE = 16
"""MAX_INSN_SIZE: a slot holds one instruction and what follows it."""
_RET_SIZE = 5
_POINTER = 8
_LOAD_OPS = b"\x48\x8b\x15"
"""``movq offset(%rip), %rdx``: the third argument of a tracer."""
_JNZ = 0x75
_JMP32, _INT3 = 0xE9, 0xCC
_CLAC = b"\x0f\x01\xca"


@dataclass(frozen=True, slots=True)
class Generated:
    """A piece of generated code: where it stands, and every form that it may have."""

    what: str
    start: int
    forms: tuple[bytes, ...]


def ftrace_trampoline(
    image: KernelImage, canvas: Canvas, ops: Ops, returns: ReturnChoice
) -> Generated | None:
    """Rebuild the trampoline of an ftrace_ops: create_trampoline() in arch/x86/kernel/ftrace.c.

    A copy of ftrace_caller (or ftrace_regs_caller), a return, and the address of the ops.  None
    if this kernel's ftrace is not built that way.
    """
    regs = bool(ops.flags & OPS_FL_SAVE_REGS)
    prefix = "ftrace_regs_caller" if regs else "ftrace_caller"
    call = image.find("ftrace_regs_call" if regs else "ftrace_call")
    start, end = image.find(prefix), image.find(f"{prefix}_end")
    load = image.find(f"{prefix}_op_ptr")
    if start is None or end is None or load is None or call is None:
        return None
    size = end - start
    code = bytearray(canvas.get(start, size))
    if regs and not _silence_jump(image, code, start):
        return None
    if image.sites.alternatives.wide:
        code = bytearray(merge_nops(relocated(bytes(code), ops.trampoline, start, size)))
    back = returns.code(np.array([ops.trampoline + size], dtype=np.int64)).tobytes()
    if back[0] == 0xC3:  # ``ret; int3`` and what the allocator left: zeros
        back = back[:2] + bytes(_RET_SIZE - 2)
    pointer = size + _RET_SIZE
    at = load - start
    if code[at : at + 3] != _LOAD_OPS:
        return None
    code[at + 3 : at + 7] = _s32(pointer - at - 7)
    at = call - start
    target = _tracer(image, ops)
    code[at : at + 5] = b"\xe8" + _s32(target - (ops.trampoline + at) - 5)
    whole = bytes(code) + back + ops.address.to_bytes(_POINTER, "little")
    return Generated("ftrace trampoline", ops.trampoline, (whole,))


def _silence_jump(image: KernelImage, code: bytearray, start: int) -> bool:
    """A trampoline of its own never makes a direct call: its jump to one becomes a NOP."""
    jump = image.find("ftrace_regs_caller_jmp")
    if jump is None or code[jump - start] != _JNZ:
        return False
    code[jump - start : jump - start + 2] = NOPS[2]
    return True


def _tracer(image: KernelImage, ops: Ops) -> int:
    """Return what the trampoline calls: ftrace_ops_get_func()."""
    assist = image.find("ftrace_ops_assist_func")
    if assist is not None and ops.flags & (OPS_FL_RECURSION | OPS_FL_RCU):
        return assist
    return ops.function


def probe_slot(probe: Probe, canvas: Canvas) -> Generated | None:
    """Rebuild a kprobe's slot: its instruction, then a jump back or INT3 (prepare_singlestep)."""
    if not probe.slot:
        return None
    copied = _copy(canvas, probe.site, probe.slot)
    if copied is None:
        return None
    after = probe.site + len(copied) - (probe.slot + len(copied)) - 5
    boosted = copied + b"\xe9" + _s32(after)
    return Generated("kprobe slot", probe.slot, (boosted, copied + b"\xcc"))


def probe_detour(
    image: KernelImage, text: Canvas, probe: Probe, canvas: Canvas
) -> Generated | None:
    """Rebuild an optimised kprobe's detour: arch_prepare_optimized_kprobe() in kprobes/opt.c.

    ``text`` is the kernel's, which has the template; ``canvas`` the code that is probed.
    """
    bodies = None
    if probe.buffer is not None:
        bodies = _detour_bodies(image, text, probe.buffer, probe.address)
    if probe.buffer is None or bodies is None:
        return None
    size = len(bodies[0])
    copied = b""
    while len(copied) < 5:
        part = _copy(canvas, probe.site + len(copied), probe.buffer + size + len(copied))
        if part is None:
            return None
        copied += part
    back = probe.site + len(copied) - (probe.buffer + size + len(copied)) - 5
    tail = copied + b"\xe9" + _s32(back)
    return Generated("kprobe detour", probe.buffer, tuple(body + tail for body in bodies))


def _detour_bodies(
    image: KernelImage, text: Canvas, start: int, address: int
) -> tuple[bytes, bytes] | None:
    """Return the filled template for the probe at ``address``, without and with SMAP."""
    names = ("entry", "clac", "val", "call", "end")
    marks = [image.find(f"optprobe_template_{name}") for name in names]
    callback = image.find("optimized_callback")
    if callback is None or any(mark is None for mark in marks):
        return None
    entry, clac, value, call, end = (mark for mark in marks if mark is not None)
    body = bytearray(text.get(entry, end - entry))
    body[value - entry : value - entry + 10] = b"\x48\xbf" + address.to_bytes(_POINTER, "little")
    at = call - entry
    body[at : at + 5] = b"\xe8" + _s32(callback - (start + at) - 5)
    smap = bytearray(body)
    smap[clac - entry : clac - entry + 3] = _CLAC
    return bytes(body), bytes(smap)


def given_back(
    image: KernelImage,
    text: Canvas,
    code: Callable[[int], Canvas | None],
    start: int,
    content: bytes,
    *,
    detour: bool,
) -> bool:
    """Tell whether a slot holds what a probe that is gone, or not registered yet, may leave there.

    The kernel does not wipe slots (__free_insn_slot): what was copied there stays until another
    probe gets the slot, and what is behind a shorter copy stays even then.  The jump behind the
    copy says from where it was, and it must be a copy of the code there (``code`` gives the
    expected code that a position falls in).  Nothing says that of one instruction before an
    INT3, nor of a module that is gone.
    """
    first = 0
    if detour:
        bodies = _left_bodies(image, text, start, content)
        first = len(bodies[0]) if bodies is not None else 0
        if bodies is None or content[:first] not in bodies:
            return False
    at = first
    while at < len(content) and (at == first or content[at] not in (_JMP32, _INT3)):
        insn = decode(content[at : at + 15])
        if insn is None or (not detour and at > first):
            return False
        at += insn.length
    if content[at : at + 1] == bytes((_INT3,)):
        return not detour
    if at + 5 > len(content):
        return False
    back = start + at + 5 + int.from_bytes(content[at + 1 : at + 5], "little", signed=True)
    site = back - (at - first)
    canvas = code(site)
    if canvas is None:
        return True
    copied = b""
    while len(copied) < at - first:
        part = _copy(canvas, site + len(copied), start + first + len(copied))
        if part is None:
            return False
        copied += part
    return content[first:at] == copied


def _left_bodies(
    image: KernelImage, text: Canvas, start: int, content: bytes
) -> tuple[bytes, bytes] | None:
    """Return the filled template for whatever probe the slot was for."""
    entry, value = (image.find(f"optprobe_template_{name}") for name in ("entry", "val"))
    if entry is None or value is None:
        return None
    at = value - entry + 2
    return _detour_bodies(image, text, start, int.from_bytes(content[at : at + 8], "little"))


def _copy(canvas: Canvas, site: int, to: int) -> bytes | None:
    """Copy one instruction to another place (__copy_instruction)."""
    if not canvas.start <= site <= canvas.stop - 15:
        return None
    insn = decode(canvas.beneath(site, 15))
    if insn is None:
        return None
    code = bytearray(canvas.beneath(site, insn.length))
    if insn.rip is not None:
        at, size = insn.rip
        moved = int.from_bytes(code[at : at + size], "little", signed=True) + site - to
        code[at : at + size] = moved.to_bytes(size, "little", signed=True)
    return bytes(code)


def _s32(value: int) -> bytes:
    return (value % (1 << 32)).to_bytes(4, "little")


def unexplained(page: bytes, start: int, pieces: Sequence[Generated], filler: int) -> list[int]:
    """Return the positions in ``page`` (from ``start``) that are neither a piece's nor filler."""
    wrong: list[int] = []
    covered = bytearray(len(page))
    for piece in pieces:
        at = piece.start - start
        best: list[int] | None = None
        for form in piece.forms:
            if at < 0 or at + len(form) > len(page):
                continue
            seen = page[at : at + len(form)]
            bad = [index for index in range(len(form)) if seen[index] != form[index]]
            if best is None or len(bad) < len(best):
                best = [start + at + index for index in bad]
                size = len(form)
        if best is None:
            continue
        covered[at : at + size] = b"\1" * size
        wrong += best
    wrong += [start + at for at, byte in enumerate(page) if not covered[at] and byte != filler]
    return sorted(wrong)
