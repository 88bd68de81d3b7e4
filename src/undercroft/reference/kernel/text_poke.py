"""Rule 14: a patch in progress.

The kernel changes a variable first and the code that follows it later, under a lock, and each
change of code takes three steps.  So a guest that is held still may show

* an announced site: text_poke_bp_batch() writes INT3 over the first byte, then the tail, then
  the first byte.  In between a site holds a mixture of its old and its new instruction; on a
  large batch (a tracer that is switched on) that can take seconds.  The sites are listed in
  ``bp_desc`` while it is in use, and queued in ``tp_vec``;
* a site that its turn has not come to: whole, and still as the variable had it before.

========== ==================== =======================================================
rule        evidence             where the variable runs ahead
========== ==================== =======================================================
jump-label  ``jump_label_mutex``  static_key_disable(): the key is 0 before its sites are
                                  queued (kernel/jump_label.c).  While it is switched on
                                  the key itself says so: -1
static-call ``static_call_mutex`` __static_call_update(): key, trampoline, then one site
                                  after the other (kernel/static_call_inline.c)
ftrace      ``ftrace_lock``       ftrace_hash_move(): the filter before the sites;
                                  __register_ftrace_function(): ftrace_trace_function
                                  before ftrace_call (kernel/trace/ftrace.c)
kprobe      ``text_mutex``        arch_unoptimize_kprobe(): INT3, then the tail, with no
                                  announcement (arch/x86/kernel/kprobes/opt.c)
smp-lock    ``text_mutex``        alternatives_enable_smp(): prefix by prefix
========== ==================== =======================================================

Such a site is *moving*.  Only bytes that its own rule could put there are taken for that, and
only as long as the evidence, which a guest could forge, stands beside them; and nobody may
take it for rest: who asks waits until the site has been seen as its variables say, and not for
ever (securekernel/linux/settle.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas, Positions
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.jump_labels import JumpLabels
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.returns import RET
from undercroft.reference.kernel.rules import Rule
from undercroft.reference.kernel.simple_sites import DS, LOCK
from undercroft.reference.kernel.static_calls import XOR_EAX, StaticCalls

MAX_BATCH = 256
"""TP_VEC_MAX: text_poke_locs in a page."""
MAX_MOVING = 1024
"""Sites that one look takes for moving; the others are for the next look."""
_INT3 = 0xCC
_SITE = 5
_JCC = 6
_RULES = frozenset((Rule.JUMP_LABEL, Rule.STATIC_CALL, Rule.FTRACE, Rule.KPROBE))
_LOCKS = {
    "jump_label_mutex": (Rule.JUMP_LABEL,),
    "static_call_mutex": (Rule.STATIC_CALL,),
    "ftrace_lock": (Rule.FTRACE,),
    "text_mutex": (Rule.KPROBE, Rule.SMP_LOCK),
}
_MUTEX_FLAGS = 7
"""MUTEX_FLAGS: what mutex.owner holds besides the task."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What the kernel says that it is changing at this moment.

    ``announced`` are positions; ``locked`` the rules whose lock somebody holds.
    """

    announced: frozenset[int]
    locked: frozenset[Rule]

    def __bool__(self) -> bool:
        return bool(self.announced or self.locked)


@dataclass(frozen=True, slots=True)
class Movable:
    """The sites that may be moving, and what may stand there.

    ``changing`` tells of which labels the key says that it is being switched on; ``traced`` are
    the functions whose records say so, ``hooks`` the positions that these may call, and
    ``hook_calls`` the sites in the callers.
    """

    labels: JumpLabels
    changing: np.ndarray[tuple[int], np.dtype[np.bool_]]
    calls: StaticCalls
    traced: Positions
    locks: Positions
    hooks: frozenset[int]
    hook_calls: Positions
    pad: int = 0
    """The size of the pads before functions through which static calls may lead (rule 7)."""


def under_way(image: KernelImage, values: GuestValues) -> UnderWay:
    """Return what the kernel says it is changing at this moment."""
    return UnderWay(frozenset(_announced(image, values)), _locked(image, values))


def _locked(image: KernelImage, values: GuestValues) -> frozenset[Rule]:
    if not image.btf.has_member("mutex", "owner"):
        return frozenset()
    at = image.btf.offset_of("mutex", "owner")
    found: set[Rule] = set()
    for name, rules in _LOCKS.items():
        lock = image.find(name)
        if lock is not None and values.u64(lock + at) & ~_MUTEX_FLAGS:
            found.update(rules)
    return frozenset(found)


def _announced(image: KernelImage, values: GuestValues) -> list[int]:
    names = ("bp_desc", "tp_vec", "tp_vec_nr", "_stext")
    descriptor, queue, queued, stext = (image.find(name) for name in names)
    if descriptor is None or queue is None or queued is None or stext is None:
        return []
    if "bp_patching_desc" not in image.btf or "text_poke_loc" not in image.btf:
        return []
    guest = GuestStructs(values, image.btf)
    found: list[int] = []
    at = values.address(descriptor)
    if guest.u32(at, "bp_patching_desc", "refs"):
        vector = guest.u64(at, "bp_patching_desc", "vec")
        count = guest.u32(at, "bp_patching_desc", "nr_entries")
        found += _entries(guest, vector, count, stext)
    found += _entries(guest, values.address(queue), values.u32(queued), stext)
    return found


def _entries(guest: GuestStructs, vector: int, count: int, stext: int) -> list[int]:
    count = min(count, MAX_BATCH)
    if not count:
        return []
    size = guest.types.size_of("text_poke_loc")
    at = guest.types.offset_of("text_poke_loc", "rel_addr")
    raw = guest.values.read(guest.values.position(vector), size * count)
    return [
        stext + int.from_bytes(raw[start + at : start + at + 4], "little", signed=True)
        for start in range(0, size * count, size)
    ]


def apply(
    image: KernelImage,
    announced: frozenset[int],
    sites: Movable,
    canvas: Canvas,
    live: Canvas,
) -> list[int]:
    """Paint the mixtures that stand at announced sites; return those sites."""
    pieces = []
    for site in sorted(announced):
        if not (canvas.start <= site <= canvas.stop - _SITE and live.start <= site):
            continue
        if site + _SITE > live.stop:
            continue
        seen, expected = live.get(site, _SITE), canvas.get(site, _SITE)
        owner = canvas.owner(site)
        if seen == expected or owner is None or owner[0] not in _RULES:
            continue
        size = 2 if expected[0] == 0xEB or expected[:2] == NOPS[2] else _SITE
        # A key that is switched off: the tail is that of the label's own jump.
        old_label = (
            owner == (Rule.JUMP_LABEL, site)
            and seen[0] == _INT3
            and seen[1:size] == _label_jump(sites, site, size)[1:]
        )
        if old_label or _mixture(image, site, seen[:size], expected[:size], owner[0], sites):
            pieces.append((site, seen[:size]))
    canvas.overlay(Rule.TEXT_POKE, pieces)
    return [site for site, _ in pieces]


def moving(
    image: KernelImage, now: UnderWay, sites: Movable, canvas: Canvas, live: Canvas
) -> list[int]:
    """Return the sites that differ from the canvas because their turn has not come yet.

    Nothing is painted: what a moving site should hold is what the variables say already.
    """
    found: list[int] = []
    if now or bool(np.any(sites.changing)):
        found += _moving_labels(now, sites, canvas, live)
    if Rule.STATIC_CALL in now.locked or now.announced:
        found += _moving_calls(image, now, sites, canvas, live)
    if Rule.FTRACE in now.locked:
        for site, seen, _ in _differing(sites.traced, _SITE, canvas, live):
            if seen == NOPS[_SITE] or (seen[0] == 0xE8 and _target(site, seen) in sites.hooks):
                found.append(site)
        for site, seen, _ in _differing(sites.hook_calls, _SITE, canvas, live):
            if seen[0] == 0xE8 and _possible(image, site, seen):
                found.append(site)
    if Rule.SMP_LOCK in now.locked:
        for site, seen, _ in _differing(sites.locks, 1, canvas, live):
            if seen[0] in (LOCK, DS):
                found.append(site)
    return found


def _moving_labels(now: UnderWay, sites: Movable, canvas: Canvas, live: Canvas) -> list[int]:
    locked = Rule.JUMP_LABEL in now.locked
    found = []
    for size in (2, _SITE):
        mine = sites.labels.size == size
        code, changing = sites.labels.table.code[mine], sites.changing[mine]
        jumps = dict(zip(code.tolist(), sites.labels.jumps(mine, size), strict=True))
        running = set(code[changing].tolist())
        for site, seen, _ in _differing(code, size, canvas, live):
            evidence = locked or site in running or site in now.announced
            if evidence and seen in (NOPS[size], jumps[site].tobytes()):
                found.append(site)
    return found


def _moving_calls(
    image: KernelImage, now: UnderWay, sites: Movable, canvas: Canvas, live: Canvas
) -> list[int]:
    """Static calls follow one after the other; the six bytes of a conditional one as well."""
    calls, pad = sites.calls, sites.pad
    locked = Rule.STATIC_CALL in now.locked
    found = []
    for site, seen, _ in _differing(calls.site[~calls.jcc], _SITE, canvas, live):
        if locked and seen[0] != _INT3 and _possible(image, site, seen, pad):
            found.append(site)
    for site, seen, expected in _differing(calls.site[calls.jcc], _JCC, canvas, live):
        begun = seen[0] == _INT3 and site in now.announced
        whole = seen[0] == expected[0] and locked
        jump = b"\xe9" + seen[2:]
        same = seen[1] == expected[1]  # the condition
        if (begun or whole) and same and _possible(image, site + 1, jump, pad):
            found.append(site)
    return found


def _label_jump(sites: Movable, site: int, size: int) -> bytes:
    """Return the jump of the label at ``site``."""
    return bytes(sites.labels.jumps(sites.labels.table.code == site, size)[0].tobytes())


def _differing(
    sites: Positions, size: int, canvas: Canvas, live: Canvas
) -> list[tuple[int, bytes, bytes]]:
    """Return (site, seen, expected) where the guest's bytes are not those of the canvas."""
    mine = sites[canvas.covers(sites, size) & live.covers(sites, size)]
    seen, expected = live.gather(mine, size), canvas.gather(mine, size)
    odd = np.flatnonzero(np.any(seen != expected, axis=1))[:MAX_MOVING]
    return [(int(mine[at]), seen[at].tobytes(), expected[at].tobytes()) for at in odd.tolist()]


def _mixture(
    image: KernelImage, site: int, seen: bytes, expected: bytes, rule: Rule, sites: Movable
) -> bool:
    """Tell whether a patch that leads to ``expected`` can leave ``seen`` at ``site``.

    With INT3 first the processor never gets to the rest, so that may be of any instruction that
    is patched in; without, it is a whole old instruction, of which only NOPs and hooks are
    taken here: for the others there is :func:`moving`.
    """
    if seen[0] == _INT3:
        firsts = {expected[0], 0xE8, 0xE9, 0xEB, NOPS[len(seen)][0], RET[0], XOR_EAX[0]}
        return any(
            code == expected or _possible(image, site, code, sites.pad)
            for first in firsts
            for code in (bytes((first,)) + seen[1:],)
        )
    if seen == NOPS[len(seen)]:
        return True
    return rule is Rule.FTRACE and seen[0] == 0xE8 and _target(site, seen) in sites.hooks


def _possible(image: KernelImage, site: int, code: bytes, pad: int = 0) -> bool:
    """Tell whether ``code`` is of a kind that is patched in: a NOP, or a branch to a function."""
    if code in (NOPS[len(code)], RET, XOR_EAX):
        return True
    if len(code) == _SITE and code[0] in (0xE8, 0xE9):
        target = _target(site, code)
        if not 0 <= target < image.text_size:
            return True  # a trampoline or a module's function: its own proof tells
        starts = (image.symbols.locate(image.link_base + at) for at in (target, target + pad))
        return any(distance == 0 for _, distance in starts)
    return len(code) == 2 and code[0] == 0xEB


def _target(site: int, code: bytes) -> int:
    return site + _SITE + int.from_bytes(code[1:], "little", signed=True)
