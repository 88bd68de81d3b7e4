"""The little of x86-64 that the kernel's patching looks at: lengths, branches, RIP-relatives.

The kernel uses its own decoder (arch/x86/lib/insn.c); we use capstone and keep the fields that
apply_alternatives() and its helpers ask for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import capstone
from capstone import x86_const

_LEGACY_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_MAX_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Insn:
    """One decoded instruction.

    ``opcode`` is its first opcode byte after legacy and REX prefixes, ``second`` the next.
    ``branch`` is (offset, size) of a relative branch's displacement, ``rip`` of a RIP-relative
    memory operand's; None where there is none.
    """

    length: int
    opcode: int
    second: int
    rep: bool
    branch: tuple[int, int] | None
    rip: tuple[int, int] | None

    @property
    def is_nop(self) -> bool:
        """NOP and NOPL but not PAUSE: insn_is_nop() in alternative.c."""
        return (self.opcode == 0x90 and not self.rep) or (self.opcode, self.second) == (0x0F, 0x1F)


_engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_engine.detail = True


def decode(code: bytes, at: int = 0) -> Insn | None:
    """Return the instruction at ``code[at:]``, or None if there is none."""
    return _decode(code[at : at + _MAX_LENGTH])


@functools.lru_cache(maxsize=1 << 16)
def _decode(window: bytes) -> Insn | None:
    found = next(_engine.disasm(window, 0, 1), None)
    if found is None:
        return None
    at = 0
    while window[at] in _LEGACY_PREFIXES:
        at += 1
    if 0x40 <= window[at] <= 0x4F:
        at += 1
    opcode = window[at]
    second = window[at + 1] if at + 1 < found.size else 0
    size = _branch_size(opcode, second)
    rip = None
    if found.disp_offset and any(
        operand.type == x86_const.X86_OP_MEM and operand.mem.base == x86_const.X86_REG_RIP
        for operand in found.operands
    ):
        rip = (found.disp_offset, found.disp_size)
    return Insn(
        length=found.size,
        opcode=opcode,
        second=second,
        rep=window[0] == 0xF3,
        branch=(found.size - size, size) if size else None,
        rip=rip,
    )


def _branch_size(opcode: int, second: int) -> int:
    """Return the displacement's size of Jcc, JMP and CALL, and 0 for everything else."""
    if opcode in (0xE8, 0xE9) or (opcode == 0x0F and 0x80 <= second <= 0x8F):
        return 4
    return 1 if opcode == 0xEB or 0x70 <= opcode <= 0x7F else 0


def disassemble(code: bytes, address: int) -> list[str]:
    """Return ``code`` as text, one instruction a line, for a person."""
    lines = [
        f"{line.address:#x}: {bytes(line.bytes).hex():<20} {line.mnemonic} {line.op_str}".rstrip()
        for line in _engine.disasm(code, address)
    ]
    covered = sum(line.size for line in _engine.disasm(code, address))
    if covered < len(code):
        lines.append(f"{address + covered:#x}: {code[covered:].hex():<20} (bytes)")
    return lines
