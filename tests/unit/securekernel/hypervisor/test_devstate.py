"""Registers from QEMU's device state: a real one of two vCPUs, cut to its cpu sections."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.securekernel.hypervisor.devstate import parse_device_state
from undercroft.securekernel.hypervisor.monitor import parse_registers
from undercroft.securekernel.hypervisor.qemu import merge_registers

VECTORS = Path(__file__).parents[3] / "vectors" / "qemu"
STATE = (VECTORS / "device-state-2cpu.bin").read_bytes()
PRINTED = (VECTORS / "registers-2cpu.txt").read_text()
CPU_0 = STATE.index(b"\x03cpu\0\0\0\0") - 5
CPU_1 = STATE.index(b"\x03cpu\0\0\0\1") - 5


def test_the_device_state_agrees_with_what_the_monitor_printed() -> None:
    for saved, told in zip(parse_device_state(STATE), parse_registers(PRINTED), strict=True):
        assert (saved.rip, saved.cpl, saved.cr0, saved.cr3, saved.cr4, saved.efer) == (
            (told.rip, told.cpl, told.cr0, told.cr3, told.cr4, told.efer)
        )
        assert (saved.idtr, saved.gdtr, saved.dr) == (told.idtr, told.gdtr, told.dr)


def test_msrs_are_kernel_addresses() -> None:
    first, second = parse_device_state(STATE)
    assert first.lstar is not None
    assert first.lstar >> 31 == (1 << 33) - 1
    assert first.lstar == second.lstar
    assert first.cstar is not None
    assert first.sysenter_eip is not None
    assert first.cstar > first.lstar


def test_other_files_are_refused() -> None:
    with pytest.raises(FormatError, match="not a QEMU device state"):
        parse_device_state(b"ELF!" + STATE[4:])
    with pytest.raises(FormatError, match="unknown file version"):
        parse_device_state(STATE[:7] + b"\x04" + STATE[8:])


def test_an_unknown_cpu_layout_is_not_guessed() -> None:
    other = STATE.replace(b"\x03cpu\0\0\0\0\0\0\0\x0c", b"\x03cpu\0\0\0\0\0\0\0\x0e")
    with pytest.raises(FormatError, match="missing"):
        parse_device_state(other)


def test_a_forged_second_section_for_a_vcpu_is_refused() -> None:
    """A device whose data the guest writes could hold bytes that look like a cpu section."""
    forged = STATE[:-1] + STATE[CPU_0:CPU_1] + b"\0"
    with pytest.raises(FormatError, match="two cpu sections"):
        parse_device_state(forged)


def test_a_section_without_its_footer_does_not_count() -> None:
    section_id = STATE[CPU_1 + 1 : CPU_1 + 5]
    other = STATE.replace(b"\x7e" + section_id, b"\x7f" + section_id)
    assert len(parse_device_state(other)) == 1
    assert merge_registers(PRINTED, other) == parse_registers(PRINTED)


def test_merging_prefers_the_device_state_only_when_it_agrees() -> None:
    assert merge_registers(PRINTED, STATE) == parse_device_state(STATE)
    other = PRINTED.replace("EFER=0000000000000d01", "EFER=0000000000000501", 1)
    assert merge_registers(other, STATE) == parse_registers(other)
    assert merge_registers(PRINTED, b"") == parse_registers(PRINTED)


def test_merging_takes_the_device_state_where_the_monitor_cuts_to_32_bits() -> None:
    printed = (VECTORS / "registers-reset.txt").read_text()
    assert merge_registers(printed, STATE) == parse_device_state(STATE)
    with pytest.raises(FormatError):
        merge_registers(printed, b"")


@given(st.integers(0, len(STATE)), st.binary(max_size=8))
def test_only_a_format_error_escapes(position: int, junk: bytes) -> None:
    for data in (STATE[:position], STATE[:position] + junk + STATE[position + len(junk) :]):
        with contextlib.suppress(FormatError):
            parse_device_state(data)
