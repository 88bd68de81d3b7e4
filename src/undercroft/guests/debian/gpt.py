"""A GUID partition table, the same bytes every time (UEFI 2.10, 5.3).

GUIDs are given and not drawn: the firmware measures the table into PCR 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

SECTOR = 512
ENTRIES = 128
_ENTRY_SIZE = 128
_TABLE_SECTORS = ENTRIES * _ENTRY_SIZE // SECTOR
FIRST_USABLE = 2 + _TABLE_SECTORS

ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT_X86_64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition from sector ``first`` to ``last``, both included."""

    name: str
    kind: UUID
    guid: UUID
    first: int
    last: int


def _entry(partition: Partition) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        partition.kind.bytes_le,
        partition.guid.bytes_le,
        partition.first,
        partition.last,
        0,
        partition.name.encode("utf-16-le"),
    )


def _header(disk: UUID, table: bytes, sectors: int, *, at: int, other: int, table_at: int) -> bytes:
    fields = (
        b"EFI PART", 0x00010000, 92, 0, 0, at, other, FIRST_USABLE, sectors - FIRST_USABLE,
        disk.bytes_le, table_at, ENTRIES, _ENTRY_SIZE, zlib.crc32(table),
    )  # fmt: skip
    layout = "<8sIIIIQQQQ16sQIII"
    crc = zlib.crc32(struct.pack(layout, *fields))
    return struct.pack(layout, *fields[:3], crc, *fields[4:]).ljust(SECTOR, b"\0")


def _protective_mbr(sectors: int) -> bytes:
    # UEFI 2.10, table 5.4: one partition of type 0xEE over the whole disk.
    record = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, sectors - 1)
    return bytes(446) + record + bytes(48) + b"\x55\xaa"


def make_gpt(disk: UUID, partitions: Sequence[Partition], sectors: int) -> tuple[bytes, bytes]:
    """Return a disk's first ``FIRST_USABLE`` sectors and its last ``FIRST_USABLE - 1``.

    Raises ValueError for partitions that overlap or leave the disk.
    """
    end = FIRST_USABLE - 1
    for partition in sorted(partitions, key=lambda p: p.first):
        if not end < partition.first <= partition.last < sectors - FIRST_USABLE + 1:
            raise ValueError(f"partition {partition.name} overlaps or leaves the disk")
        end = partition.last
    table = b"".join(map(_entry, partitions)).ljust(ENTRIES * _ENTRY_SIZE, b"\0")
    last = sectors - 1
    primary = _header(disk, table, sectors, at=1, other=last, table_at=2)
    backup = _header(disk, table, sectors, at=last, other=1, table_at=last - _TABLE_SECTORS)
    return _protective_mbr(sectors) + primary + table, table + backup
