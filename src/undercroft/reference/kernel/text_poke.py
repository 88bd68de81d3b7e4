"""Rule 14: a patch in progress.

text_poke_bp_batch() changes running code in three steps: INT3 over the first byte, then the
tail, then the first byte.  In between a site holds a mixture of its old and its new
instruction, and on a large batch (a tracer that is switched on) that can take seconds.  The
sites under way are listed in ``bp_desc`` while it is in use, and queued in ``tp_vec``.

A mixture is taken only at a listed site, and only if both halves of it are instructions that
the site's own rule could put there.  So the list, which the guest could forge, hides nothing
that the rules would not allow anyway.
"""

from __future__ import annotations

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas
from undercroft.reference.kernel.guest import GuestStructs, GuestValues
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.returns import RET
from undercroft.reference.kernel.rules import Rule
from undercroft.reference.kernel.static_calls import XOR_EAX

MAX_BATCH = 256
"""TP_VEC_MAX: text_poke_locs in a page."""
_INT3 = 0xCC
_SITE = 5
_RULES = frozenset((Rule.JUMP_LABEL, Rule.STATIC_CALL, Rule.FTRACE, Rule.KPROBE))


def under_way(image: KernelImage, values: GuestValues) -> list[int]:
    """Return the positions that the kernel says it is patching at this moment."""
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
    size = guest.types.size_of("text_poke_loc")
    at = guest.types.offset_of("text_poke_loc", "rel_addr")
    count = min(count, MAX_BATCH)
    raw = guest.values.read(guest.values.position(vector), size * count)
    return [
        stext + int.from_bytes(raw[start + at : start + at + 4], "little", signed=True)
        for start in range(0, size * count, size)
    ]


def apply(
    image: KernelImage, sites: list[int], canvas: Canvas, live: Canvas, hooks: frozenset[int]
) -> int:
    """Paint the mixtures that stand at sites under way; return how many there are.

    ``hooks`` are the positions that a traced function may call.
    """
    pieces = []
    for site in dict.fromkeys(sites):
        if not (canvas.start <= site <= canvas.stop - _SITE and live.start <= site):
            continue
        if site + _SITE > live.stop:
            continue
        seen, expected = live.get(site, _SITE), canvas.get(site, _SITE)
        owner = canvas.owner(site)
        if seen == expected or owner is None or owner[0] not in _RULES:
            continue
        size = 2 if expected[0] == 0xEB or expected[:2] == NOPS[2] else _SITE
        if _mixture(image, site, seen[:size], expected[:size], owner[0], hooks):
            pieces.append((site, seen[:size]))
    canvas.overlay(Rule.TEXT_POKE, pieces)
    return len(pieces)


def _mixture(
    image: KernelImage, site: int, seen: bytes, expected: bytes, rule: Rule, hooks: frozenset[int]
) -> bool:
    """Tell whether a patch that leads to ``expected`` can leave ``seen`` at ``site``.

    With INT3 first the processor never gets to the rest, so that may be of any instruction that
    is patched in; without, it is a whole old instruction, of which only NOPs and hooks are
    taken: for the others we wait.
    """
    if seen[0] == _INT3:
        firsts = {expected[0], 0xE8, 0xE9, 0xEB, NOPS[len(seen)][0], RET[0], XOR_EAX[0]}
        return any(
            code == expected or _possible(image, site, code)
            for first in firsts
            for code in (bytes((first,)) + seen[1:],)
        )
    if seen == NOPS[len(seen)]:
        return True
    return rule is Rule.FTRACE and seen[0] == 0xE8 and _target(site, seen) in hooks


def _possible(image: KernelImage, site: int, code: bytes) -> bool:
    """Tell whether ``code`` is of a kind that is patched in: a NOP, or a branch to a function."""
    if code in (NOPS[len(code)], RET, XOR_EAX):
        return True
    if len(code) == _SITE and code[0] in (0xE8, 0xE9):
        target = _target(site, code)
        if not 0 <= target < image.text_size:
            return True  # a trampoline or a module's function: its own proof tells
        return image.symbols.locate(image.link_base + target)[1] == 0
    return len(code) == 2 and code[0] == 0xEB


def _target(site: int, code: bytes) -> int:
    return site + _SITE + int.from_bytes(code[1:], "little", signed=True)
