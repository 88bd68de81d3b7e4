"""UEFI_GPT_DATA: the partition table that was booted from (PFP 1.06, 10.2.5; UEFI 2.10, 5.3)."""

from __future__ import annotations

import struct

from undercroft.formats.eventlog.guid import guid_bytes
from undercroft.formats.eventlog.value import Decoded, Digests, EventValue, covered
from undercroft.formats.reader import BoundedReader

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_COUNT = struct.Struct("<Q")
_ENTRY = struct.Struct("<16s16sQQQ72s")

PARTITION_TYPES = {
    guid_bytes("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"): "EFI system partition",
    guid_bytes("21686148-6449-6e6f-744e-656564454649"): "BIOS boot partition",
    guid_bytes("0fc63daf-8483-4772-8e79-3d69d8477de4"): "Linux data",
    guid_bytes("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "Linux root (x86-64)",
    guid_bytes("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"): "Linux swap",
    guid_bytes("e6d6d379-f507-44c2-a23c-238f2a3df928"): "Linux LVM",
    guid_bytes("bc13c2ff-59e6-4262-a352-b275fd6f7172"): "Linux extended boot",
    guid_bytes("e3c9e316-0b5c-4db8-817d-f92df00215ae"): "Microsoft reserved",
    guid_bytes("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"): "basic data",
    guid_bytes("de94bba4-06d1-4d40-a16a-bfd50179d6ac"): "Windows recovery",
    guid_bytes("fe3a2a5d-4f32-41a7-b725-accc3285a309"): "ChromeOS kernel",
    guid_bytes("3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec"): "ChromeOS root",
}


class Partition(EventValue, frozen=True, gc=False):
    """EFI_PARTITION_ENTRY.  ``raw_name`` is 72 bytes of UTF-16LE, zero padded."""

    type_guid: bytes
    unique_guid: bytes
    first_lba: int
    last_lba: int
    attributes: int
    raw_name: bytes

    @property
    def name(self) -> str:
        """The partition's name, for people: what is not UTF-16 is replaced."""
        return self.raw_name.decode("utf-16-le", "replace").partition("\0")[0]

    def encode(self) -> bytes:
        """Return the 128 bytes of the entry."""
        return _ENTRY.pack(
            self.type_guid,
            self.unique_guid,
            self.first_lba,
            self.last_lba,
            self.attributes,
            self.raw_name,
        )


class PartitionTable(EventValue, frozen=True, gc=False):
    """UEFI_GPT_DATA: EFI_PARTITION_TABLE_HEADER and the entries in use.

    EV_EFI_GPT_EVENT2 has the same structure with the disk's and partitions' own GUIDs zeroed.
    """

    signature: bytes
    revision: int
    header_size: int
    header_crc32: int
    reserved: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: bytes
    partition_entry_lba: int
    number_of_entries: int
    entry_size: int
    entries_crc32: int
    partitions: tuple[Partition, ...]

    def encode(self) -> bytes:
        """Return the UEFI_GPT_DATA."""
        header = _HEADER.pack(
            self.signature,
            self.revision,
            self.header_size,
            self.header_crc32,
            self.reserved,
            self.my_lba,
            self.alternate_lba,
            self.first_usable_lba,
            self.last_usable_lba,
            self.disk_guid,
            self.partition_entry_lba,
            self.number_of_entries,
            self.entry_size,
            self.entries_crc32,
        )
        entries = b"".join([partition.encode() for partition in self.partitions])
        return header + _COUNT.pack(len(self.partitions)) + entries


def decode_gpt(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_GPT_EVENT and EV_EFI_GPT_EVENT2: hashed whole.  Raises FormatError."""
    reader = BoundedReader(data, "UEFI_GPT_DATA", order="little")
    header = reader.unpack(_HEADER, "the partition table header")
    (count,) = reader.unpack(_COUNT, "NumberOfPartitions")
    if reader.remaining != count * _ENTRY.size:
        raise reader.fail(
            "NumberOfPartitions does not fill the event",
            expected=f"{count} entries of {_ENTRY.size} bytes",
            got=f"{reader.remaining} bytes",
        )
    partitions = tuple([Partition(*entry) for entry in _ENTRY.iter_unpack(reader.rest())])
    return covered(PartitionTable(*(*header, partitions)), data, digests)
