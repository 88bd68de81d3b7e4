"""Descriptors and debug registers, against values from the manual and a real kernel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from undercroft.securekernel.arch.x86_64.cpu import (
    Breakpoint,
    Gate,
    enabled_breakpoints,
    parse_descriptor,
    parse_gate,
)


def test_a_gate_of_a_real_kernel() -> None:
    """asm_exc_nmi of Linux 6.1: interrupt gate, stack 2, through the kernel's code segment."""
    gate = parse_gate(bytes.fromhex("1015100002 8ec081ffffffff00000000".replace(" ", "")))
    assert gate == Gate(0xFFFFFFFF81C01510, 0x10, 2, 0xE, 0, True)


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 0xFFFF),
    st.integers(0, 7),
    st.integers(0, 15),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_gate_is_what_it_encodes(
    offset: int, selector: int, ist: int, kind: int, dpl: int, present: bool
) -> None:
    gate = Gate(offset, selector, ist, kind, dpl, present)
    assert len(gate.encode()) == 16
    assert parse_gate(gate.encode()) == gate


def test_segments_of_a_real_kernel() -> None:
    code = parse_descriptor(bytes.fromhex("ffff0000009baf00"))
    assert (code.base, code.limit, code.type, code.system) == (0, 0xFFFFF, 0xB, False)
    assert (code.dpl, code.present) == (0, True)
    tss = parse_descriptor(bytes.fromhex("874000300 08b0000".replace(" ", "")))
    assert (tss.base, tss.limit, tss.type, tss.system) == (0x3000, 0x4087, 0xB, True)


def test_breakpoints_that_are_enabled() -> None:
    at = 0xFFFFFFFF81000000
    off = (at, at, 0, 0, 0xFFFF0FF0, 0x400)
    assert enabled_breakpoints(off) == ()
    local_execute = (at, 0, 0, 0, 0, 0x401)
    assert enabled_breakpoints(local_execute) == (Breakpoint(0, at, "execute", 1),)
    write_4 = (0, at, 0, 0, 0, 0x400 | 1 << 3 | 0b1101 << 20)
    assert enabled_breakpoints(write_4) == (Breakpoint(1, at, "write", 4),)
