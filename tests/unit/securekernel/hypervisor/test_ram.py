"""Guest RAM through a shared file and through a process's own memory."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.monitor import RamRange
from undercroft.securekernel.hypervisor.ram import GuestRam, ProcessBlock, SharedBlock

PAGE = 4096
RANGES = (
    RamRange(0, PAGE, "m0", 0),
    RamRange(PAGE, PAGE, "m0", 2 * PAGE),
    RamRange(0x1_0000_0000, PAGE, "m0", PAGE),
)


@pytest.fixture
def content() -> bytes:
    return b"".join(bytes([number]) * PAGE for number in range(3))


@pytest.fixture
def ram(tmp_path: Path, content: bytes) -> GuestRam:
    path = tmp_path / "ram"
    path.write_bytes(content)
    return GuestRam(RANGES, {"m0": SharedBlock(path, 3 * PAGE)})


def test_addresses_go_to_their_block_offset(ram: GuestRam) -> None:
    assert ram.read(0, 4) == bytes(4)
    assert ram.read(0x1_0000_0000, 4) == b"\x01" * 4
    assert ram.size == 0x1_0000_0000 + PAGE


def test_a_read_across_two_ranges_is_joined(ram: GuestRam) -> None:
    assert ram.read(PAGE - 2, 4) == b"\0\0\x02\x02"
    assert bytes(ram.view(PAGE - 2, 4)) == b"\0\0\x02\x02"


@pytest.mark.parametrize("paddr", [2 * PAGE, 0x1_0000_0000 + PAGE, 0xFFFF_FFFF])
def test_a_hole_faults(ram: GuestRam, paddr: int) -> None:
    with pytest.raises(MemoryFault) as fault:
        ram.read(paddr, 1)
    assert fault.value.address == paddr


def test_a_read_that_runs_into_a_hole_faults(ram: GuestRam) -> None:
    with pytest.raises(MemoryFault) as fault:
        ram.read(2 * PAGE - 2, 4)
    assert fault.value.address == 2 * PAGE


def test_a_view_shows_what_the_guest_writes_and_cannot_be_written(
    tmp_path: Path, ram: GuestRam
) -> None:
    view = ram.view(0, 4)
    with (tmp_path / "ram").open("r+b") as file:
        file.write(b"new!")
    assert bytes(view) == b"new!"
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_file_smaller_than_the_backend_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(10))
    with pytest.raises(EnvironmentFault, match="too small"):
        SharedBlock(path, PAGE)


def test_a_missing_file_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot map guest RAM"):
        SharedBlock(tmp_path / "none", PAGE)


def test_process_memory_is_read_in_place(content: bytes) -> None:
    buffer = ctypes.create_string_buffer(content, len(content))
    block = ProcessBlock(os.getpid(), ctypes.addressof(buffer))
    ram = GuestRam(RANGES, {"m0": block})
    assert ram.read(PAGE - 1, 2) == b"\0\x02"
    view = ram.view(PAGE, 2)
    assert bytes(view) == b"\x02\x02"
    assert view.readonly


def test_a_process_that_ended_is_gone() -> None:
    with pytest.raises(GuestGone):
        ProcessBlock(2**22 + 1, 0)


def test_process_memory_that_is_not_mapped_is_gone() -> None:
    with pytest.raises(GuestGone):
        ProcessBlock(os.getpid(), 8).read(0, 8)
