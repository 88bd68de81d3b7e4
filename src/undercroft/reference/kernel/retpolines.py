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
from undercroft.reference.kernel.canvas import Bytes, Canvas, Positions, rel32, with_rel32
from undercroft.reference.kernel.nops import NOPS
from undercroft.reference.kernel.rules import Rule

THUNK_SIZE = 32
CALL_DEPTH_ARRAYS = ("__x86_indirect_call_thunk_array", "__x86_indirect_jump_thunk_array")
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

    def through(self, call_array: int, jump_array: int) -> Positions:
        """Return each site's thunk in one of two arrays, for calls and for jumps."""
        array = np.where(self.opcode == _CALL, call_array, jump_array)
        return array + THUNK_SIZE * self.register


@dataclass(frozen=True, slots=True)
class Choice:
    """How the kernel does indirect branches; the arrays are those of Mode.CALL_DEPTH."""

    mode: Mode
    call_array: int = 0
    jump_array: int = 0


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


def _written(table: RetpolineSites, mode: Mode, size: int) -> tuple[Positions, Bytes]:
    """Return the sites of ``size`` bytes that hold the branch itself, and their bytes.

    A form that does not fit is not written at all: patch_retpoline() returns another length.
    """
    mine = table.size == size
    opcode, register = table.opcode[mine], table.register[mine]
    kinds, back = np.unique(opcode * 16 + register, return_inverse=True)
    codes = [
        indirect(size, kind // 16, kind % 16, lfence=mode is Mode.LFENCE) for kind in kinds.tolist()
    ]
    fits = np.array([len(code) == size for code in codes], dtype=np.bool_)[back]
    padded = b"".join(code[:size].ljust(size, b"\0") for code in codes)
    rows: Bytes = np.frombuffer(padded, dtype=np.uint8).reshape(-1, size)[back]
    return table.sites[mine][fits], rows[fits]


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


def _retargeted(table: RetpolineSites, choice: Choice, canvas: Canvas, size: int) -> Bytes:
    """Return the sites of ``size`` bytes with their displacement led to the arrays' thunks.

    __emit_trampoline() keeps the opcode and its prefix; the displacement is the last 4 bytes.
    """
    mine = table.size == size
    sites = table.sites[mine]
    targets = table.through(choice.call_array, choice.jump_array)[mine]
    rows = canvas.gather(sites, size)
    rows[:, size - 4 :] = with_rel32(bytes(size - 4), sites, targets)[:, size - 4 :]
    return rows


def infer(image: KernelImage, table: RetpolineSites, canvas: Canvas, live: Canvas) -> Choice:
    """Return the choice whose bytes most sites show."""
    scores: list[tuple[int, Choice]] = []
    calls, jumps = (image.find(name) for name in CALL_DEPTH_ARRAYS)
    choices = [Choice(Mode.THUNK), Choice(Mode.INDIRECT), Choice(Mode.LFENCE)]
    if calls is not None and jumps is not None:
        choices.append(Choice(Mode.CALL_DEPTH, calls, jumps))
    for choice in choices:
        score = 0
        for sites, rows in _rows(table, choice, canvas):
            inside = live.covers(sites, rows.shape[1])
            seen = live.gather(sites[inside], rows.shape[1])
            score += int(np.count_nonzero(np.all(seen == rows[inside], axis=1)))
        scores.append((score, choice))
    return max(scores, key=lambda scored: scored[0])[1]


def apply(table: RetpolineSites, canvas: Canvas, choice: Choice) -> None:
    """Paint every site."""
    for sites, rows in _rows(table, choice, canvas):
        canvas.paint(Rule.RETPOLINE, sites, rows)


def _rows(table: RetpolineSites, choice: Choice, canvas: Canvas) -> list[tuple[Positions, Bytes]]:
    """Return the sites of each size and what they hold under ``choice``."""
    found = []
    for size in (5, 6):
        sites = table.sites[table.size == size]
        if choice.mode is Mode.THUNK:
            found.append((sites, canvas.gather(sites, size)))
        elif choice.mode is Mode.CALL_DEPTH:
            found.append((sites, _retargeted(table, choice, canvas, size)))
        else:
            found.append(_written(table, choice.mode, size))
    return found
