"""Rule 5: retpolines.  An indirect branch, compiled as a call or jump of a register's thunk.

apply_retpolines() leaves it (a retpoline is wanted), or writes the branch itself, with LFENCE
before it, through the call-depth thunks, or through an ITS thunk.  Which of these holds is
decided once for the whole kernel; we see it at the sites.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Bytes, Canvas, Positions, rel32
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.rules import Rule

THUNK_SIZE = 32
_JMP, _CALL = 0xE9, 0xE8


class Mode(enum.Enum):
    """What the kernel does with an indirect branch."""

    THUNK = "thunk"
    INDIRECT = "indirect"
    LFENCE = "lfence"
    CALL_DEPTH = "call-depth"


@dataclass(frozen=True, slots=True)
class RetpolineSites:
    """The sites, decoded: ``size`` (5 or 6), opcode (e8, e9, or 80..8f for a Jcc), register."""

    sites: Positions
    size: Positions
    opcode: Positions
    register: Positions


def decode_sites(image: KernelImage, sites: Positions, canvas: Canvas) -> RetpolineSites:
    """Decode ``sites``; those that are no branch to a thunk of a register are left out.

    The kernel warns about such a site and skips it (apply_retpolines, patch_retpoline).
    """
    array = image.offset("__x86_indirect_thunk_array")
    mine = sites[canvas.covers(sites, 6)]
    rows = canvas.gather(mine, 6)
    first, second = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    plain = (first == _CALL) | (first == _JMP)
    prefixed = (first == 0x2E) & ((second == _CALL) | (second == _JMP))
    jcc = (first == 0x0F) & (second & 0xF0 == 0x80)
    size = np.where(plain, 5, 6)
    distance = np.where(plain, rel32(rows, 1), rel32(rows, 2))
    register, rest = np.divmod(mine + size + distance - array, THUNK_SIZE)
    valid = (plain | prefixed | jcc) & (rest == 0) & (register >= 0) & (register < 16)
    opcode = np.where(plain, first, second)
    return RetpolineSites(mine[valid], size[valid], opcode[valid], register[valid])


def _pieces(table: RetpolineSites, mode: Mode) -> list[tuple[int, bytes]]:
    """Return each site's bytes for a mode that writes the branch itself.

    A form that does not fit is not written at all: patch_retpoline() returns another length.
    """
    known: dict[tuple[int, int, int], bytes] = {}
    pieces = []
    columns = zip(
        table.sites.tolist(),
        table.size.tolist(),
        table.opcode.tolist(),
        table.register.tolist(),
        strict=True,
    )
    for site, size, opcode, register in columns:
        key = (size, opcode, register)
        if key not in known:
            known[key] = indirect(size, opcode, register, lfence=mode is Mode.LFENCE)
        if len(known[key]) == size:
            pieces.append((site, known[key]))
    return pieces


def indirect(size: int, opcode: int, register: int, *, lfence: bool) -> bytes:
    """Return ``[lfence] call/jmp *%register`` padded to ``size`` (emit_indirect and its caller)."""
    code = b""
    if opcode & 0xF0 == 0x80:  # Jcc thunk: jump over an indirect jump on the other condition
        code += bytes((0x70 + ((opcode & 0xF) ^ 1), size - 2))
        opcode = _JMP
    if lfence:
        code += b"\x0f\xae\xe8"
    if register >= 8:
        code += b"\x41"
    code += bytes((0xFF, (0xD0 if opcode == _CALL else 0xE0) + register % 8))
    if opcode == _JMP and len(code) < size:
        code += b"\xcc"
    gap = size - len(code)
    return code + NOPS[gap] if gap > 0 else code


def infer(table: RetpolineSites, canvas: Canvas, live: Canvas) -> Mode:
    """Return the mode whose bytes most sites show."""
    inside = live.covers(table.sites, 6)
    five = table.sites[inside]
    same = np.all(canvas.gather(five, 5) == live.gather(five, 5), axis=1)
    scores = {Mode.THUNK: int(np.count_nonzero(same))}
    for mode in (Mode.INDIRECT, Mode.LFENCE):
        scores[mode] = sum(
            live.data[site - live.start : site - live.start + len(piece)] == piece
            for site, piece in _pieces(table, mode)
            if live.start <= site and site + len(piece) <= live.stop
        )
    return max(scores, key=lambda mode: scores[mode])


def apply(table: RetpolineSites, canvas: Canvas, mode: Mode) -> None:
    """Paint every site."""
    if mode is Mode.THUNK:
        for size in (5, 6):
            mine = table.sites[table.size == size]
            rows: Bytes = canvas.gather(mine, size)
            canvas.paint(Rule.RETPOLINE, mine, rows)
    else:
        canvas.paint_each(Rule.RETPOLINE, _pieces(table, mode))
