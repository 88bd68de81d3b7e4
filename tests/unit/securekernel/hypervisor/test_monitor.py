"""The monitor's printed forms, from real machines (tests/vectors/qemu)."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft.base import FormatError
from undercroft.securekernel.hypervisor.monitor import (
    RamRange,
    parse_flat_view,
    parse_registers,
)

VECTORS = Path(__file__).parents[3] / "vectors" / "qemu"


def text(name: str) -> str:
    return (VECTORS / name).read_text()


def test_ram_above_the_pci_hole_is_found_where_the_monitor_puts_it() -> None:
    assert parse_flat_view(text("mtree-q35-4g.txt"), {"pc.ram"}) == (
        RamRange(0, 0xC0000, "pc.ram", 0),
        RamRange(0x100000, 0x7FF00000, "pc.ram", 0x100000),
        RamRange(0x1_0000_0000, 0x8000_0000, "pc.ram", 0x8000_0000),
    )


def test_shadowed_ram_counts_and_other_blocks_do_not() -> None:
    ranges = parse_flat_view(text("mtree-q35-ovmf-1g.txt"), {"m0"})
    assert [(entry.paddr, entry.size) for entry in ranges] == [
        (0, 0xA0000),
        (0xC0000, 0x4000),
        (0x100000, 0x3FF00000),
    ]
    assert {entry.block for entry in ranges} == {"m0"}


def test_a_kvm_mark_is_not_part_of_the_name() -> None:
    view = (
        'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
        "  0000000000000000-00000000000fffff (prio 0, ram): m0 KVM\n"
        "  0000000000100000-00000000001fffff (prio 0, ram): m0 @0000000000100000 KVM\n"
    )
    assert [entry.offset for entry in parse_flat_view(view, {"m0"})] == [0, 0x100000]


def test_a_view_of_another_address_space_is_not_taken() -> None:
    with pytest.raises(FormatError, match='no view of the address space "memory"'):
        parse_flat_view(text("mtree-q35-4g.txt").replace('AS "memory"', 'AS "else"'), {"pc.ram"})


def test_no_ram_is_refused() -> None:
    with pytest.raises(FormatError, match="no RAM"):
        parse_flat_view(text("mtree-q35-4g.txt"), {"m0"})


def test_overlapping_ram_is_refused() -> None:
    view = (
        'FlatView #0\n AS "memory", root: system\n'
        "  0000000000000000-00000000000fffff (prio 0, ram): m0\n"
        "  00000000000ff000-00000000001fffff (prio 0, ram): m0 @00000000000ff000\n"
    )
    with pytest.raises(FormatError, match="overlap"):
        parse_flat_view(view, {"m0"})


def test_registers_of_two_vcpus() -> None:
    first, second = parse_registers(text("registers-2cpu.txt"))
    assert (first.index, second.index) == (0, 1)
    assert first.idtr.base == 0xFFFFFE0000000000
    assert first.idtr.limit == 0xFFF
    assert first.gdtr != second.gdtr
    assert first.cr0 == 0x80050033
    assert first.efer == 0xD01
    assert first.dr == (0, 0, 0, 0, 0xFFFF0FF0, 0x400)
    assert first.lstar is None


def test_the_32_bit_form_is_refused() -> None:
    with pytest.raises(FormatError, match="64-bit form"):
        parse_registers(text("registers-reset.txt"))


def test_no_vcpu_is_refused() -> None:
    with pytest.raises(FormatError, match="no vCPUs"):
        parse_registers("")
