"""The firmware's event log out of guest memory, by both ways the kernel knows."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import MemoryFault
from undercroft.securekernel.linux.live import StructureError
from undercroft.securekernel.linux.tcglog import log_length, read_event_log
from undercroft.testing.fakekernel import FakeKernel

LAYOUTS = {
    "efi": (264, {"tpm_log": 56, "tpm_final_log": 64}),
    "linux_efi_tpm_eventlog": (12, {"size": 0, "version": 8, "log": 9}),
    "efi_tcg2_final_events_table": (16, {"events": 16}),
    "acpi_table_list": (24, {"tables": 0, "current_table_count": 8}),
    "acpi_table_desc": (32, {"address": 0, "length": 16, "signature": 20}),
    "acpi_table_tpm2": (52, {}),
}
INVALID = (1 << 64) - 1


def spec_id(*algorithms: tuple[int, int]) -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    body += struct.pack("<I", len(algorithms))
    body += b"".join(struct.pack("<HH", *pair) for pair in algorithms) + b"\0"
    return struct.pack("<II20sI", 0, 3, bytes(20), len(body)) + body


def event(pcr: int, kind: int, data: bytes, sha256: int = 0x11) -> bytes:
    digests = struct.pack("<IHH", 1, 0x000B, 0)[:6] + bytes([sha256]) * 32
    return struct.pack("<II", pcr, kind) + digests + struct.pack("<I", len(data)) + data


HEAD = spec_id((0x000B, 32))
LOG = HEAD + event(0, 8, b"version") + event(7, 0x80000001, b"x" * 40)


class Guest(FakeKernel):
    """A kernel that took its log from ACPI or EFI."""

    def __init__(self) -> None:
        super().__init__(LAYOUTS)
        self.efi = self.symbol("efi", 264)
        self.put(self.efi, "efi", "tpm_log", INVALID)
        self.put(self.efi, "efi", "tpm_final_log", INVALID)
        self.final_size = self.symbol("efi_tpm_final_log_size")
        self.tables = self.symbol("acpi_gbl_root_table_list", 24)

    def physical(self, data: bytes) -> int:
        frames = [self.guest.frame() for _ in range(len(data) // 4096 + 2)]
        self.guest.memory.write(frames[0] + 0x123, data)
        return frames[0] + 0x123

    def acpi(self, *tables: bytes) -> None:
        entries = self.alloc(32 * len(tables))
        for number, table in enumerate(tables):
            at = entries + 32 * number
            self.put(at, "acpi_table_desc", "address", self.physical(table))
            self.put(at, "acpi_table_desc", "length", len(table), size=4)
            self.guest.write(at + 20, table[:4])
        self.put(self.tables, "acpi_table_list", "tables", entries)
        self.put(self.tables, "acpi_table_list", "current_table_count", len(tables), size=4)

    def tpm2(self, start: int, length: int) -> bytes:
        return b"TPM2" + bytes(60) + struct.pack("<IQ", length, start)

    def efi_log(self, log: bytes, *, preboot: int = 0, version: int = 2) -> None:
        table = self.physical(struct.pack("<IIB", len(log), preboot, version) + log)
        self.put(self.efi, "efi", "tpm_log", table)

    def final(self, events: bytes) -> None:
        table = self.physical(struct.pack("<QQ", 1, 1) + events)
        self.put(self.efi, "efi", "tpm_final_log", table)
        self.guest.put_u32(self.final_size, len(events))


@pytest.fixture
def fake() -> Guest:
    return Guest()


def test_the_acpi_area_is_cut_at_the_last_event(fake: Guest) -> None:
    area = LOG + bytes(500)
    fake.acpi(b"APIC" + bytes(40), fake.tpm2(fake.physical(area), len(area)))
    assert read_event_log(fake.kernel()) == LOG


def test_an_acpi_area_without_a_log_gives_way_to_efi(fake: Guest) -> None:
    fake.acpi(fake.tpm2(fake.physical(bytes(4096)), 4096))
    fake.efi_log(LOG)
    assert read_event_log(fake.kernel()) == LOG


@pytest.mark.parametrize(("start", "length"), [(0, 4096), (4096, 0)])
def test_an_acpi_table_without_an_area_gives_way_to_efi(
    fake: Guest, start: int, length: int
) -> None:
    fake.acpi(fake.tpm2(start, length))
    fake.efi_log(LOG)
    assert read_event_log(fake.kernel()) == LOG


def test_an_old_acpi_table_has_no_area(fake: Guest) -> None:
    fake.acpi(b"TPM2" + bytes(48))
    fake.efi_log(LOG)
    assert read_event_log(fake.kernel()) == LOG


def test_final_events_that_are_not_in_the_log_are_added(fake: Guest) -> None:
    both, last = event(4, 2, b"in both"), event(5, 7, b"exit")
    fake.efi_log(LOG + both, preboot=len(both))
    fake.final(both + last)
    assert read_event_log(fake.kernel()) == LOG + both + last


def test_an_old_log_has_no_final_events(fake: Guest) -> None:
    fake.efi_log(LOG, version=1)
    fake.final(event(5, 7, b"exit"))
    assert read_event_log(fake.kernel()) == LOG


def test_no_log_is_said_clearly(fake: Guest) -> None:
    with pytest.raises(StructureError, match="left no TPM event log"):
        read_event_log(fake.kernel())


def test_absurd_sizes_are_refused(fake: Guest) -> None:
    fake.acpi(fake.tpm2(0x1000, 1 << 30))
    with pytest.raises(StructureError, match="absurdly large"):
        read_event_log(fake.kernel())
    fake.put(fake.tables, "acpi_table_list", "current_table_count", 1 << 20, size=4)
    with pytest.raises(StructureError, match="absurdly many"):
        read_event_log(fake.kernel())


def test_an_absurd_acpi_table_is_refused(fake: Guest) -> None:
    fake.acpi(fake.tpm2(0x1000, 4096))
    entries = fake.kernel().member_u64(fake.tables, "acpi_table_list", "tables")
    fake.put(entries, "acpi_table_desc", "length", 1 << 20, size=4)
    with pytest.raises(StructureError, match="absurdly long"):
        read_event_log(fake.kernel())


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_an_absurd_efi_size_is_refused(fake: Guest, size: int) -> None:
    table = fake.physical(struct.pack("<IIB", size, 0, 2) + LOG)
    fake.put(fake.efi, "efi", "tpm_log", table)
    with pytest.raises(StructureError, match="absurd size"):
        read_event_log(fake.kernel())


def test_final_events_smaller_than_their_preboot_part_are_refused(fake: Guest) -> None:
    fake.efi_log(LOG, preboot=1000)
    fake.final(event(5, 7, b"exit"))
    with pytest.raises(StructureError, match="final events"):
        read_event_log(fake.kernel())


def test_a_log_outside_ram_faults(fake: Guest) -> None:
    fake.put(fake.efi, "efi", "tpm_log", 0x7000_0000_0000)
    with pytest.raises(MemoryFault):
        read_event_log(fake.kernel())


def test_the_end_of_a_log() -> None:
    assert log_length(LOG) == len(LOG)
    assert log_length(LOG + event(0, 0, b"")) == len(LOG)
    assert log_length(LOG[:-1]) == len(HEAD) + len(event(0, 8, b"version"))
    assert log_length(LOG + b"\xff" * 100) == len(LOG)
    other = event(0, 8, b"").replace(b"\x0b\0", b"\x0c\0")
    assert log_length(LOG + other) == len(LOG)
    assert log_length(HEAD) == len(HEAD)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        HEAD[:40],
        HEAD.replace(b"Event03", b"Event02"),
        b"\1" + HEAD[1:],
        HEAD[:10] + b"\1" + HEAD[11:],
        spec_id(),
        spec_id(*[(number, 1) for number in range(17)]),
        HEAD[:-1],
    ],
)
def test_a_log_must_begin_with_a_whole_spec_id_event(head: bytes) -> None:
    with pytest.raises(StructureError):
        log_length(head)


def test_a_spec_id_event_shorter_than_its_table_is_refused() -> None:
    short = bytearray(HEAD)
    struct.pack_into("<I", short, 28, 28)
    with pytest.raises(StructureError, match="cut short"):
        log_length(bytes(short))


@given(st.binary(max_size=200), st.integers(0, len(LOG)))
def test_the_end_is_always_inside(junk: bytes, cut: int) -> None:
    log = HEAD + LOG[len(HEAD) : max(cut, len(HEAD))] + junk
    assert len(HEAD) <= log_length(log) <= len(log)
