"""Dump files: ELF cores as QEMU writes them, LiME, raw; and what is refused."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import EnvironmentFault, FormatError, MemoryFault
from undercroft.securekernel.hypervisor.dump import DumpGuest

PAGE = 4096


def lime(*ranges: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<IIQQ8s", 0x4C694D45, 1, at, at + len(data) - 1, b"") + data
        for at, data in ranges
    )


def cpu_note(cr3: int, *, version: int = 1) -> bytes:
    def segment(selector: int, limit: int, base: int) -> bytes:
        return struct.pack("<IIIIQ", selector, limit, 0, 0, base)

    body = struct.pack("<16Q", *range(16)) + struct.pack("<QQ", 0xFFFFFFFF81000000, 0x246)
    body += segment(0x33, 0xFFFFFFFF, 0) + segment(0, 0, 0) * 7
    body += segment(0, 0x7F, 0xFFFFFE0000001000) + segment(0, 0xFFF, 0xFFFFFE0000000000)
    body += struct.pack("<5Q", 0x80050033, 1, 2, cr3, 0x1000) + bytes(8)
    state = struct.pack("<II", version, len(body) + 8) + body
    return struct.pack("<III", 5, len(state), 0) + b"QEMU\0\0\0\0" + state


def core(
    segments: list[tuple[int, bytes]], notes: bytes = b"", *, machine: int = 62, kind: int = 4
) -> bytes:
    count = len(segments) + 1
    at = 64 + 56 * count
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    table = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)
    body = notes
    for paddr, data in segments:
        size = len(data)
        table += struct.pack("<IIQQQQQQ", 1, 0, at + len(body), 0, paddr, size, size, 0)
        body += data
    return header + table + body


MEMORY = [(0, b"low!".ljust(PAGE, b"\1")), (0x100000000, b"high".ljust(PAGE, b"\2"))]
CORE = core(MEMORY, cpu_note(0x5000) + cpu_note(0x6000))


def opened(tmp_path: Path, data: bytes) -> DumpGuest:
    path = tmp_path / "dump"
    path.write_bytes(data)
    return DumpGuest(path)


def test_an_elf_core_has_memory_and_registers(tmp_path: Path) -> None:
    guest = opened(tmp_path, CORE)
    assert guest.channels == ("dump:elf-core",)
    assert guest.memory.read(0, 4) == b"low!"
    assert guest.memory.read(0x100000000, 4) == b"high"
    assert guest.memory.size == 0x100001000
    first, second = guest.vcpus()
    assert (first.index, first.cr3, second.index, second.cr3) == (0, 0x5000, 1, 0x6000)
    assert (first.cr0, first.cr4, first.cpl) == (0x80050033, 0x1000, 3)
    assert (first.idtr.base, first.idtr.limit) == (0xFFFFFE0000000000, 0xFFF)
    assert (first.gdtr.base, first.gdtr.limit) == (0xFFFFFE0000001000, 0x7F)
    assert first.rip == 0xFFFFFFFF81000000
    assert (first.lstar, first.efer, first.dr) == (None, None, None)


def test_a_hole_between_segments_faults(tmp_path: Path) -> None:
    with pytest.raises(MemoryFault):
        opened(tmp_path, CORE).memory.read(PAGE, 1)


def test_lime_has_memory_only(tmp_path: Path) -> None:
    guest = opened(tmp_path, lime(*MEMORY))
    assert guest.channels == ("dump:lime",)
    assert guest.memory.read(0x100000000, 4) == b"high"
    assert guest.vcpus() == ()


def test_raw_memory_starts_at_zero(tmp_path: Path) -> None:
    guest = opened(tmp_path, b"raw!".ljust(2 * PAGE, b"\0"))
    assert guest.channels == ("dump:raw",)
    assert guest.memory.read(0, 4) == b"raw!"
    assert guest.memory.size == 2 * PAGE
    assert guest.vcpus() == ()


def test_a_dump_stands_still(tmp_path: Path) -> None:
    guest = opened(tmp_path, CORE)
    guest.check_alive()
    with guest.paused():
        assert guest.name == "dump"


def test_other_notes_are_passed_over(tmp_path: Path) -> None:
    note = struct.pack("<III", 5, 3, 1) + b"CORE\0\0\0\0" + b"abc\0"
    assert len(opened(tmp_path, core(MEMORY, note + cpu_note(0x5000))).vcpus()) == 1


LIME = lime(*MEMORY)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not whole pages"),
        (bytes(100), "not whole pages"),
        (b"KDUMP   ".ljust(PAGE, b"\0"), "kdump-compressed"),
        (b"makedumpfile".ljust(PAGE, b"\0"), "flattened makedumpfile"),
        (LIME[:-1], "longer than the file"),
        (LIME + b"x", "cut short"),
        (LIME + bytes(32), "not a LiME header"),
        (lime((0, bytes(16)), (8, bytes(16))), "overlap"),
        (b"\x7fELF\x01\x01\x01".ljust(PAGE, b"\0"), "64-bit"),
        (core(MEMORY, machine=183), "x86-64"),
        (core(MEMORY, kind=2), "core"),
        (core([]), "no memory"),
        (core([(0, bytes(PAGE)), (PAGE - 1, bytes(PAGE))]), "overlap"),
        (CORE[:100], "cut short"),
        (CORE[:-1], "longer than the file"),
        (core(MEMORY, cpu_note(0)[:-8]), "longer than the input"),
        (core(MEMORY, cpu_note(0, version=2)), "version 1"),
        (core(MEMORY).replace(struct.pack("<HH", 56, 3), struct.pack("<HH", 56, 0)), "shape"),
    ],
)
def test_each_defect_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        opened(tmp_path, data)


def test_a_segment_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    data = bytearray(CORE)
    struct.pack_into("<Q", data, 64 + 56 + 40, 2 * PAGE)  # p_memsz of the first PT_LOAD
    with pytest.raises(FormatError, match="not whole"):
        opened(tmp_path, bytes(data))


def test_a_missing_file_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read the dump"):
        DumpGuest(tmp_path / "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumps")


CHANGES = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4)


@given(st.booleans(), CHANGES, st.none() | st.integers(0, 2000))
def test_only_a_format_error_escapes(
    folder: Path, lime_dump: bool, changes: list[tuple[int, int]], size: int | None
) -> None:
    changed = bytearray(LIME if lime_dump else CORE)
    for at, value in changes:
        changed[at % len(changed)] = value
    with contextlib.suppress(FormatError):
        guest = opened(folder, bytes(changed[:size]))
        for entry in guest.memory.ranges:
            guest.memory.read(entry.paddr, entry.size)


def test_program_headers_behind_the_end_are_refused(tmp_path: Path) -> None:
    data = bytearray(CORE)
    struct.pack_into("<Q", data, 32, 1 << 63)  # e_phoff
    with pytest.raises(FormatError, match="behind"):
        opened(tmp_path, bytes(data))
