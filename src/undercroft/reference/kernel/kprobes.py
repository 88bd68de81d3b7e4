"""Rule 13: kprobes.  A breakpoint, or a jump to a detour, where a probe was set.

``kprobe_table`` holds every probe.  An armed one puts INT3 over its first byte
(arch_arm_kprobe); one that is optimised is ``jmp`` to its detour instead, over five bytes of
which it keeps a copy (arch_optimize_kprobes).  Between the two the flag is ahead of the code, so
both forms are taken.  Probes at a function's start use ftrace (rule 12) and leave no INT3.

A probe that is disabled while it is optimised keeps its jump until the optimiser's next round,
which may be seconds away (kernel/kprobes.c: __disarm_kprobe, kprobe_optimizer).  Then the kernel
announces nothing: INT3 before the rest of the jump, before the instruction
(arch_unoptimize_kprobe, do_unoptimize_kprobes).

The probe's copy of what it replaced must equal what we expect there: a probe cannot be used to
hide another change.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.guest import GuestStructs
from undercroft.reference.kernel.rules import Rule

FLAG_GONE, FLAG_DISABLED, FLAG_OPTIMIZED, FLAG_FTRACE = 1, 2, 4, 8
"""KPROBE_FLAG_* in include/linux/kprobes.h."""
TABLE_SIZE = 64
_INT3, _JMP = 0xCC, 0xE9
_JMP_SIZE = 5
_MAX_SLOT = 2048
_HANDLERS = ("pre_handler", "post_handler")


@dataclass(frozen=True, slots=True)
class Probe:
    """A registered kprobe.  Positions; ``handlers`` are the functions it calls.

    ``address`` is the virtual address of its structure.  ``detour`` and ``copied`` are those of
    an optimised probe, else None and b"".  ``buffer`` is where the detour of one that may be
    optimised is kept ready, else None.
    """

    address: int
    site: int
    opcode: int
    flags: int
    handlers: tuple[int, ...]
    slot: int
    detour: int | None
    copied: bytes
    buffer: int | None


def read_probes(image: KernelImage, guest: GuestStructs) -> tuple[Probe, ...]:
    """Return every probe in kprobe_table; none if the kernel has no kprobes."""
    table = image.find("kprobe_table")
    if table is None or "kprobe" not in image.btf:
        return ()
    heads = guest.values.address(table)
    found = guest.hash_table(heads, TABLE_SIZE, "kprobe", "hlist")
    return tuple(_read(image, guest, at) for at, _ in found)


def _read(image: KernelImage, guest: GuestStructs, at: int) -> Probe:
    position = guest.values.position
    handlers = [guest.u64(at, "kprobe", name) for name in _HANDLERS]
    aggregate = image.find("aggr_pre_handler")
    flags = guest.u32(at, "kprobe", "flags")
    detour, copied, buffer = None, b"", None
    if aggregate is not None and handlers[0] == guest.values.address(aggregate):
        ready = guest.u64(at, "optimized_kprobe", "optinsn.insn")
        buffer = position(ready) if ready else None
        if flags & FLAG_OPTIMIZED:
            detour = buffer
            copied = guest.raw(at, "optimized_kprobe", "optinsn.copied_insn", _JMP_SIZE - 1)
        # An aggregate calls the handlers of the probes on its list.
        head = at + image.btf.offset_of("kprobe", "list")
        for each in guest.list(head, "kprobe", "list"):
            handlers += [
                guest.u64(each, "kprobe", name) for name in ("pre_handler", "post_handler")
            ]
    slot = guest.u64(at, "kprobe", "ainsn.insn")
    return Probe(
        address=at,
        site=position(guest.u64(at, "kprobe", "addr")),
        opcode=guest.raw(at, "kprobe", "opcode", 1)[0],
        flags=flags,
        handlers=tuple(dict.fromkeys(position(handler) for handler in handlers if handler)),
        slot=position(slot) if slot else 0,
        detour=detour,
        copied=copied,
        buffer=buffer,
    )


@dataclass(frozen=True, slots=True)
class SlotPage:
    """A page of slots: its position, the size of a slot, and whether they are for detours."""

    start: int
    slot: int
    detours: bool


def read_slot_pages(image: KernelImage, guest: GuestStructs) -> tuple[SlotPage, ...]:
    """Return the pages in kprobe_insn_slots and kprobe_optinsn_slots."""
    found = []
    if "kprobe_insn_cache" not in image.btf:
        return ()
    for name in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        symbol = image.find(name)
        if symbol is None:
            continue
        cache = guest.values.address(symbol)
        size = guest.u64(cache, "kprobe_insn_cache", "insn_size")
        if not 0 < size <= _MAX_SLOT:
            continue  # no detours yet: init_kprobes() sets it
        head = cache + image.btf.offset_of("kprobe_insn_cache", "pages")
        for page in guest.list(head, "kprobe_insn_page", "list"):
            start = guest.values.position(guest.u64(page, "kprobe_insn_page", "insns"))
            found.append(SlotPage(start, size, name == "kprobe_optinsn_slots"))
    return tuple(found)


def apply(
    probes: tuple[Probe, ...], canvas: Canvas, live: Canvas
) -> tuple[tuple[Probe, ...], list[int]]:
    """Paint the probes that are armed on this canvas; return them, and which are half way out.

    The latter are being written, if somebody holds text_mutex.  A probe whose copy of the
    original differs from what is expected is not painted.
    """
    pieces = []
    armed = []
    half_way = []
    for probe in probes:
        if probe.flags & (FLAG_GONE | FLAG_FTRACE):
            continue
        if not canvas.start <= probe.site <= canvas.stop - _JMP_SIZE:
            continue
        before, seen = canvas.get(probe.site, _JMP_SIZE), live.get(probe.site, _JMP_SIZE)
        if before[0] != probe.opcode or seen[0] == before[0]:
            continue  # registered, not armed (kprobes_all_disarmed, or just now)
        stop, jump = bytes((_INT3,)) + before[1:], _jump(probe, before)
        disabled = bool(probe.flags & FLAG_DISABLED)
        if (disabled and seen == stop) or (jump and seen == stop[:1] + jump[1:]):
            half_way.append(probe.site)
        if disabled and seen != jump:
            continue
        pieces.append((probe.site, jump if seen == jump else stop))
        armed.append(probe)
    canvas.overlay(Rule.KPROBE, pieces)
    return tuple(armed), half_way


def _jump(probe: Probe, before: bytes) -> bytes:
    """Return the jump to the detour of an optimised probe, or b""."""
    if probe.detour is None or probe.copied != before[1:]:
        return b""
    distance = (probe.detour - probe.site - _JMP_SIZE) % (1 << 32)
    return bytes((_JMP,)) + distance.to_bytes(4, "little")
