"""Rule 2, the bytes: what one ``struct alt_instr`` leaves behind when it is applied or not.

Two generations of arch/x86/kernel/alternative.c are told apart by the entry's layout:

* *narrow* (12 bytes, until 6.2): apply_alternatives() copies the replacement, adjusts only a
  leading CALL or JMP, pads with 0x90 and merges the NOPs in place;
* *wide* (14 bytes): text_poke_apply_relocation() adjusts every relative branch and
  RIP-relative operand that leaves the replacement, shortens JMP.d32, and merges NOPs of every
  length.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.reference.kernel.insn import Insn, decode
from undercroft.reference.kernel.nops import INT3, NOPS, merge_nops, merge_single_nops

LOOKAHEAD = 15
"""Bytes behind a site that the narrow generation may decode into."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """One entry's replacement, ready to be placed.

    ``code`` are the bytes in .altinstr_replacement and ``at`` their position; ``size`` is the
    site's padded length.
    """

    code: bytes
    at: int
    size: int


def narrow(current: bytes, site: int, replacement: Replacement | None, size: int) -> bytes:
    """Return the ``size`` bytes at ``site`` after the narrow apply_alternatives().

    ``current`` are the bytes before, with LOOKAHEAD more behind; ``replacement`` is None when
    the entry is not applied: then NOPs are merged all the same.
    """
    if replacement is not None:
        current = _placed(replacement, site) + current[max(size, len(replacement.code)) :]
    return merge_single_nops(current, size)


def _placed(replacement: Replacement, site: int) -> bytes:
    """Copy the replacement, adjust a leading CALL or JMP, pad with single-byte NOPs."""
    code = bytearray(replacement.code)
    if len(code) == 5 and code[0] == 0xE8:
        code[1:5] = _s32(_signed(code[1:5]) + replacement.at - site)
    elif len(code) == 5 and code[0] in (0xEB, 0xE9):
        code = bytearray(_recompute_jump(code, replacement.at, site))
    return bytes(code).ljust(replacement.size, NOPS[1])


def _recompute_jump(code: bytearray, at: int, site: int) -> bytes:
    """Return the JMP at ``site`` to the replacement's target, short if it fits forwards.

    recompute_jump() tests a backward jump with (d & 0xff) == d, which no negative d passes: a
    jump backwards always keeps five bytes.
    """
    target = at + 5 + _signed(code[1:5])
    distance = target - site
    if 0 <= distance <= 129:
        return b"\xeb" + ((distance - 2) & 0xFF).to_bytes(1, "little") + NOPS[3]
    return b"\xe9" + _s32(distance - 5)


def wide(current: bytes, site: int, replacement: Replacement | None, size: int) -> bytes:
    """Return the ``size`` bytes at ``site`` after the wide apply_alternatives()."""
    if replacement is None:
        return merge_nops(current[:size])
    padded = replacement.code.ljust(size, NOPS[1])
    return merge_nops(relocated(padded, site, replacement.at, len(replacement.code)))


def relocated(code: bytes, site: int, at: int, inside: int) -> bytes:
    """Adjust ``code`` from position ``at`` to ``site``: __apply_relocation().

    References into the first ``inside`` bytes of the code itself stay as they are.
    """
    out = bytearray(code)
    start = 0
    while start < len(out):
        insn = decode(bytes(out[start : start + 15]))
        if insn is None:
            break
        end = start + insn.length
        for place in (insn.branch, insn.rip):
            if place is not None:
                _adjust(out, start + place[0], place[1], end, at - site, inside)
        if insn.opcode == 0xE9 and insn.branch is not None:
            _shorten(out, code, start, insn, at - site)
        start = end
    return bytes(out)


def _adjust(out: bytearray, field: int, size: int, end: int, shift: int, inside: int) -> None:
    """Add ``shift`` to a displacement unless it points into the code itself (need_reloc)."""
    value = _signed(out[field : field + size])
    if not 0 <= end + value <= inside:
        out[field : field + size] = ((value + shift) % (1 << 8 * size)).to_bytes(size, "little")


def _shorten(out: bytearray, code: bytes, start: int, insn: Insn, shift: int) -> None:
    """Make a JMP.d32 a JMP.d8 where its distance fits, padded with INT3.

    As in the kernel the test uses the displacement in the replacement plus the shift, whether
    or not the target lies inside.
    """
    field = start + insn.length - 4
    distance = _signed(code[field : field + 4]) + shift + 3
    if -128 <= distance <= 127:
        out[start : start + insn.length] = (
            b"\xeb" + (distance & 0xFF).to_bytes(1, "little")
        ).ljust(insn.length, INT3)


def _signed(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "little", signed=True)


def _s32(value: int) -> bytes:
    return (value % (1 << 32)).to_bytes(4, "little")
