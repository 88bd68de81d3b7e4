"""Descriptor tables and register bits of x86-64 (Intel SDM vol. 3, 2.5, 3.4.5, 6.14.1; vol. 4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

CR0_PE, CR0_WP, CR0_PG = 1 << 0, 1 << 16, 1 << 31
CR4_UMIP, CR4_LA57, CR4_FSGSBASE = 1 << 11, 1 << 12, 1 << 16
CR4_SMEP, CR4_SMAP, CR4_CET = 1 << 20, 1 << 21, 1 << 23
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

CR4_NAMES = {
    CR4_UMIP: "UMIP",
    CR4_FSGSBASE: "FSGSBASE",
    CR4_SMEP: "SMEP",
    CR4_SMAP: "SMAP",
    CR4_CET: "CET",
}

IDT_ENTRIES = 256
GATE_SIZE = 16
GATE_INTERRUPT = 0xE
DESCRIPTOR_SIZE = 8

_GATE = struct.Struct("<HHHHII")


@dataclass(frozen=True, slots=True)
class Gate:
    """One IDT gate descriptor (SDM vol. 3, figure 6-8).  ``offset`` is the handler's address."""

    offset: int
    selector: int
    ist: int
    type: int
    dpl: int
    present: bool

    def encode(self) -> bytes:
        """Return the 16 bytes of the gate."""
        bits = self.ist | self.type << 8 | self.dpl << 13 | self.present << 15
        return _GATE.pack(
            self.offset & 0xFFFF,
            self.selector,
            bits,
            self.offset >> 16 & 0xFFFF,
            self.offset >> 32,
            0,
        )


def parse_gate(data: bytes) -> Gate:
    """Return the gate in 16 bytes.  Reserved bits are dropped: compare encodings, not gates."""
    low, selector, bits, middle, high, _ = _GATE.unpack(data)
    return Gate(
        offset=low | middle << 16 | high << 32,
        selector=selector,
        ist=bits & 7,
        type=bits >> 8 & 0xF,
        dpl=bits >> 13 & 3,
        present=bool(bits >> 15),
    )


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One 8-byte GDT descriptor (SDM vol. 3, figure 3-8), or the low half of a system one."""

    base: int
    limit: int
    type: int
    system: bool
    dpl: int
    present: bool


SYSTEM_LDT, SYSTEM_TSS_AVAILABLE, SYSTEM_TSS_BUSY = 0x2, 0x9, 0xB


def parse_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor in 8 bytes; ``limit`` is in the units that its G bit says."""
    low, high = struct.unpack("<II", data)
    return Descriptor(
        base=low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000,
        limit=low & 0xFFFF | high & 0xF0000,
        type=high >> 8 & 0xF,
        system=not high >> 12 & 1,
        dpl=high >> 13 & 3,
        present=bool(high >> 15 & 1),
    )


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """An enabled hardware breakpoint: DR0..DR3 with its bits of DR7 (SDM vol. 3, 17.2.4)."""

    number: int
    address: int
    condition: str
    size: int


_CONDITIONS = ("execute", "write", "io", "access")
_SIZES = (1, 2, 8, 4)


def enabled_breakpoints(dr: tuple[int, int, int, int, int, int]) -> tuple[Breakpoint, ...]:
    """Return the breakpoints that DR7 enables, locally or globally; ``dr`` as in VcpuState."""
    dr7 = dr[5]
    return tuple(
        Breakpoint(
            number,
            dr[number],
            _CONDITIONS[dr7 >> 16 + 4 * number & 3],
            _SIZES[dr7 >> 18 + 4 * number & 3],
        )
        for number in range(4)
        if dr7 >> 2 * number & 3
    )
