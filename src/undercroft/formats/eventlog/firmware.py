"""What firmware says of the code and tables that it measured.

Volumes, images and tables are measured by their contents, which are not in the log: base,
length, description and device path are therefore all ``claimed_`` (PFP 1.06, sections 10.2.2 to
10.2.4 and 10.4.1).
"""

from __future__ import annotations

import struct

from undercroft.formats.eventlog.devicepath import DevicePath, decode_device_path
from undercroft.formats.eventlog.text import ascii_text, utf16_text
from undercroft.formats.eventlog.value import (
    Claimed,
    Decoded,
    DigestCheck,
    Digests,
    EventValue,
    Opaque,
    covered,
    perhaps_covered,
)
from undercroft.formats.reader import BoundedReader

_BLOB = struct.Struct("<QQ")
_TABLE = struct.Struct("<16sQ")
_IMAGE = struct.Struct("<QQQQ")

NOT_RECOMPUTABLE = DigestCheck.NOT_RECOMPUTABLE


class FirmwareBlob(EventValue, frozen=True, gc=False):
    """UEFI_PLATFORM_FIRMWARE_BLOB: where in memory the measured code stood."""

    claimed_base: int
    claimed_length: int

    def encode(self) -> bytes:
        """Return the structure."""
        return _BLOB.pack(self.claimed_base, self.claimed_length)


class FirmwareBlob2(EventValue, frozen=True, gc=False):
    """UEFI_PLATFORM_FIRMWARE_BLOB2: the same with a description."""

    claimed_description: bytes
    claimed_base: int
    claimed_length: int

    def encode(self) -> bytes:
        """Return the structure."""
        head = bytes([len(self.claimed_description)]) + self.claimed_description
        return head + _BLOB.pack(self.claimed_base, self.claimed_length)


class ConfigurationTable(EventValue, frozen=True, gc=False):
    """EFI_CONFIGURATION_TABLE: a vendor GUID (16 bytes) and the table's address."""

    claimed_guid: bytes
    claimed_address: int

    def encode(self) -> bytes:
        """Return the structure."""
        return _TABLE.pack(self.claimed_guid, self.claimed_address)


class HandoffTables(EventValue, frozen=True, gc=False):
    """UEFI_HANDOFF_TABLE_POINTERS (``claimed_description`` None) or ..._POINTERS2."""

    claimed_tables: tuple[ConfigurationTable, ...]
    claimed_description: bytes | None = None

    def encode(self) -> bytes:
        """Return the structure."""
        head = b""
        if self.claimed_description is not None:
            head = bytes([len(self.claimed_description)]) + self.claimed_description
        tables = b"".join([table.encode() for table in self.claimed_tables])
        return head + struct.pack("<Q", len(self.claimed_tables)) + tables


class ImageLoad(EventValue, frozen=True, gc=False):
    """UEFI_IMAGE_LOAD_EVENT.  The digest is the image's Authenticode hash, not in the log.

    ``claimed_trailing`` is what stands after the device path: shim before 15.3 logs a path of
    length 0 and some bytes of its own memory.
    """

    claimed_location: int
    claimed_length: int
    claimed_link_time_address: int
    claimed_device_path: DevicePath
    claimed_trailing: bytes = b""

    def encode(self) -> bytes:
        """Return the structure."""
        path = self.claimed_device_path.encode()
        numbers = (self.claimed_location, self.claimed_length, self.claimed_link_time_address)
        return _IMAGE.pack(*numbers, len(path)) + path + self.claimed_trailing


class CrtmVersion(EventValue, frozen=True, gc=False):
    """EV_S_CRTM_VERSION: a version in UTF-16, or a GUID (16 bytes)."""

    version: str
    guid: bytes = b""
    end: bytes = b""

    def encode(self) -> bytes:
        """Return the event data."""
        return self.guid or self.version.encode("utf-16-le") + self.end


class NonHostInfo(EventValue, frozen=True, gc=False):
    """EV_NONHOST_INFO as Google Compute Engine writes it: what encrypts the guest's memory."""

    technology: int
    reserved: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        return _GCE_NONHOST + bytes([self.technology]) + self.reserved


_GCE_NONHOST = b"GCE NonHostInfo\0"
MEMORY_ENCRYPTION = {0: "none", 1: "AMD SEV", 2: "AMD SEV-ES", 3: "Intel TDX", 4: "AMD SEV-SNP"}


def decode_blob(data: bytes) -> FirmwareBlob:
    """EV_EFI_PLATFORM_FIRMWARE_BLOB.  Raises FormatError."""
    reader = BoundedReader(data, "UEFI_PLATFORM_FIRMWARE_BLOB", order="little")
    blob = FirmwareBlob(*reader.unpack(_BLOB, "BlobBase and BlobLength"))
    reader.finish()
    return blob


def decode_blob2(data: bytes) -> FirmwareBlob2:
    """EV_EFI_PLATFORM_FIRMWARE_BLOB2.  Raises FormatError."""
    reader = BoundedReader(data, "UEFI_PLATFORM_FIRMWARE_BLOB2", order="little")
    description = reader.sized(1, "BlobDescription")
    blob = FirmwareBlob2(description, *reader.unpack(_BLOB, "BlobBase and BlobLength"))
    reader.finish()
    return blob


def decode_code(data: bytes, digests: Digests) -> Decoded:
    """EV_POST_CODE, EV_POST_CODE2, EV_S_CRTM_CONTENTS: words, or either blob structure."""
    text = ascii_text(data)
    if text is not None:
        return perhaps_covered(text, data, digests)
    if len(data) == _BLOB.size:
        return FirmwareBlob(*_BLOB.unpack(data)), NOT_RECOMPUTABLE
    if data and len(data) == 1 + data[0] + _BLOB.size:
        return decode_blob2(data), NOT_RECOMPUTABLE
    return perhaps_covered(Opaque(data, "vendor-defined"), data, digests)


def decode_handoff(data: bytes) -> HandoffTables:
    """EV_EFI_HANDOFF_TABLES.  Raises FormatError."""
    reader = BoundedReader(data, "UEFI_HANDOFF_TABLE_POINTERS", order="little")
    return HandoffTables(_tables(reader))


def decode_handoff2(data: bytes) -> HandoffTables:
    """EV_EFI_HANDOFF_TABLES2.  Raises FormatError."""
    reader = BoundedReader(data, "UEFI_HANDOFF_TABLE_POINTERS2", order="little")
    description = reader.sized(1, "TableDescription")
    return HandoffTables(_tables(reader), description)


def _tables(reader: BoundedReader) -> tuple[ConfigurationTable, ...]:
    count = reader.u64("NumberOfTables")
    raw = reader.take(count * _TABLE.size, "TableEntry")
    reader.finish()
    return tuple([ConfigurationTable(*entry) for entry in _TABLE.iter_unpack(raw)])


def decode_image(data: bytes) -> ImageLoad:
    """EV_EFI_BOOT_SERVICES_APPLICATION, ..._DRIVER, EV_EFI_RUNTIME_SERVICES_DRIVER.

    Raises FormatError.
    """
    reader = BoundedReader(data, "UEFI_IMAGE_LOAD_EVENT", order="little")
    location, length, link_time, path_size = reader.unpack(_IMAGE, "the image's place")
    at = reader.offset
    path = decode_device_path(reader.take(path_size, "DevicePath"), at)
    return ImageLoad(location, length, link_time, path, reader.rest())


def decode_crtm_version(data: bytes, digests: Digests) -> Decoded:
    """EV_S_CRTM_VERSION: hashed whole."""
    text = utf16_text(data)
    if text is not None:
        return covered(CrtmVersion(text.text, end=text.end), data, digests)
    if data in (b"", b"\0\0"):
        return covered(CrtmVersion("", end=data), data, digests)
    if len(data) == 16:
        return covered(CrtmVersion("", guid=data), data, digests)
    return covered(ascii_text(data) or Opaque(data, "vendor-defined"), data, digests)


def decode_nonhost_info(data: bytes, digests: Digests) -> Decoded:
    """EV_NONHOST_INFO: hashed whole where the platform says so."""
    if data.startswith(_GCE_NONHOST) and len(data) > len(_GCE_NONHOST):
        at = len(_GCE_NONHOST)
        return perhaps_covered(NonHostInfo(data[at], data[at + 1 :]), data, digests)
    return decode_vendor(data, digests)


def decode_vendor(data: bytes, digests: Digests) -> Decoded:
    """Types whose data is words or the vendor's own structure, hashed or not."""
    value = ascii_text(data) or Opaque(data, "vendor-defined")
    return perhaps_covered(value, data, digests)


def decode_label(data: bytes) -> Claimed:
    """Types whose data only names what was measured (Intel TXT, EV_EFI_HCRTM_EVENT)."""
    return Claimed(ascii_text(data) or Opaque(data, "vendor-defined"))
