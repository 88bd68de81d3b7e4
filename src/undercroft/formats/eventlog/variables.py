"""UEFI_VARIABLE_DATA and what the variables hold (PFP 1.06, section 10.2.6; UEFI 2.10, 3.1.3).

Secure Boot variables are measured whole, so that their digest proves GUID, name and data.  Of a
boot variable EV_EFI_VARIABLE_BOOT hashes the data alone: its GUID and name are only claimed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from undercroft.base import FormatError
from undercroft.formats.eventlog.devicepath import DevicePath, decode_device_path
from undercroft.formats.eventlog.signatures import (
    decode_signature,
    decode_signature_database,
)
from undercroft.formats.eventlog.text import utf16
from undercroft.formats.eventlog.value import (
    Claimed,
    Decoded,
    DigestCheck,
    Digests,
    EventValue,
    Malformed,
    hashes_to,
)
from undercroft.formats.reader import BoundedReader

_HEADER = struct.Struct("<16sQQ")
_NAME = "UEFI_VARIABLE_DATA"


class Flag(EventValue, frozen=True, gc=False):
    """A one-byte variable: SecureBoot, SetupMode, AuditMode, DeployedMode, MokSBState, ..."""

    value: int

    def encode(self) -> bytes:
        """Return the byte."""
        return bytes([self.value])


class Text(EventValue, frozen=True, gc=False):
    """A variable that holds ASCII text, such as SbatLevel."""

    text: str

    def encode(self) -> bytes:
        """Return the text's bytes."""
        return self.text.encode("ascii")


class Certificate(EventValue, frozen=True, gc=False):
    """A DER certificate without a signature owner, as shim logs its own key."""

    der: bytes

    def encode(self) -> bytes:
        """Return the certificate."""
        return self.der


class BootOrder(EventValue, frozen=True, gc=False):
    """BootOrder, DriverOrder and the like: numbers of options, first choice first."""

    options: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the variable's data."""
        return struct.pack(f"<{len(self.options)}H", *self.options)


class LoadOption(EventValue, frozen=True, gc=False):
    """EFI_LOAD_OPTION: Boot####, Driver####, SysPrep#### (UEFI 2.10, section 3.1.3)."""

    attributes: int
    description: str
    file_path_list: DevicePath
    optional_data: bytes

    def encode(self) -> bytes:
        """Return the variable's data."""
        path = self.file_path_list.encode()
        text = self.description.encode("utf-16-le") + b"\0\0"
        return struct.pack("<IH", self.attributes, len(path)) + text + path + self.optional_data


class UefiVariable(EventValue, frozen=True, gc=False):
    """UEFI_VARIABLE_DATA whose digest covers all of it.

    ``data`` is the variable's value and ``content`` the same decoded, None where the variable
    has no structure that we know.  ``trailing`` holds bytes after VariableData, which shim before
    15.3 wrote and hashed; ``uncovered`` the last byte, which it wrote and did not hash.
    """

    guid: bytes
    name: str
    data: bytes
    content: EventValue | None
    trailing: bytes = b""
    uncovered: bytes = b""

    def encode(self) -> bytes:
        """Return the UEFI_VARIABLE_DATA."""
        head = _variable_head(self.guid, self.name, self.data)
        return head + self.data + self.trailing + self.uncovered


class BootVariable(EventValue, frozen=True, gc=False):
    """UEFI_VARIABLE_DATA of which the digest covers ``data`` only.

    The name and the GUID are the log's word: a digest of Boot0001 may stand under any name.
    """

    claimed_guid: bytes
    claimed_name: str
    data: bytes
    content: EventValue | None

    def encode(self) -> bytes:
        """Return the UEFI_VARIABLE_DATA."""
        return _variable_head(self.claimed_guid, self.claimed_name, self.data) + self.data


def _variable_head(guid: bytes, name: str, data: bytes) -> bytes:
    encoded = name.encode("utf-16-le")
    return _HEADER.pack(guid, len(encoded) // 2, len(data)) + encoded


def decode_load_option(data: bytes, base: int = 0) -> LoadOption:
    """Decode an EFI_LOAD_OPTION.  Raises FormatError."""
    reader = BoundedReader(data, "EFI_LOAD_OPTION", order="little", base=base)
    attributes = reader.u32("Attributes")
    path_size = reader.u16("FilePathListLength")
    end = _utf16_end(data, reader.offset)
    if end < 0:
        raise reader.fail("Description has no end", expected="a 16-bit zero")
    description = utf16(reader, end - reader.offset, "Description")
    reader.take(2, "the end of Description")
    at = base + reader.offset
    path = decode_device_path(reader.take(path_size, "FilePathList"), at)
    return LoadOption(attributes, description, path, reader.rest())


def _utf16_end(data: bytes, start: int) -> int:
    end = data.find(b"\0\0", start)
    while end >= 0 and (end - start) % 2:
        end = data.find(b"\0\0", end + 1)
    return end


def _flag(data: bytes, _base: int) -> EventValue | None:
    return Flag(data[0]) if len(data) == 1 else None


def _sbat(data: bytes, _base: int) -> EventValue | None:
    return Text(data.decode("ascii")) if data.isascii() else None


def _boot_order(data: bytes) -> EventValue | None:
    return None if len(data) % 2 else BootOrder(struct.unpack(f"<{len(data) // 2}H", data))


_Content = Callable[[bytes, int], EventValue | None]

_DATABASES = ("PK", "KEK", "db", "dbx", "dbr", "dbt", "vendor_db", "vendor_dbx", "devdb")
_FLAGS = ("SecureBoot", "SetupMode", "AuditMode", "DeployedMode", "VendorKeys", "OsRecoveryMode")
_MOK_FLAGS = ("MokSBState", "MokDBState", "MokIgnoreDB", "MokListTrusted", "MokPolicy")

_CONFIG: dict[str, _Content] = {
    **dict.fromkeys(_DATABASES, decode_signature_database),
    **dict.fromkeys((*_FLAGS, *_MOK_FLAGS), _flag),
}
_AUTHORITY: dict[str, _Content] = {
    **dict.fromkeys(_MOK_FLAGS, _flag),
    "SbatLevel": _sbat,
    "SbatLevelRT": _sbat,
}
_ORDERS = ("BootOrder", "DriverOrder", "SysPrepOrder")
_OPTIONS = ("Boot", "Driver", "SysPrep", "PlatformRecovery", "OsRecovery")


def _authority(data: bytes, base: int) -> EventValue:
    # shim logs a bare certificate for its own key, EFI_SIGNATURE_DATA for a list's entry; a GUID
    # that starts like a DER SEQUENCE with a two-byte length does not occur.
    return Certificate(data) if data[:2] == b"\x30\x82" else decode_signature(data, base)


def _is_option(name: str) -> bool:
    number = name[-4:]
    return name[:-4] in _OPTIONS and all(digit in "0123456789ABCDEFabcdef" for digit in number)


def _content(decode: _Content, data: bytes, base: int) -> EventValue | None:
    try:
        return decode(data, base)
    except FormatError as error:
        return Malformed(data, str(error))


def _split(data: bytes) -> tuple[bytes, str, bytes, bytes, int]:
    """Return GUID, name, value, the bytes after it and the offset of the value."""
    reader = BoundedReader(data, _NAME, order="little")
    guid, name_length, data_length = reader.unpack(_HEADER, "the header")
    name = utf16(reader, name_length * 2, "UnicodeName")
    at = reader.offset
    return guid, name, reader.take(data_length, "VariableData"), reader.rest(), at


def decode_driver_config(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_VARIABLE_DRIVER_CONFIG and EV_EFI_SPDM_DEVICE_POLICY: hashed whole."""
    guid, name, value, trailing, at = _split(data)
    decode = _CONFIG.get(name)
    content = _content(decode, value, at) if decode else None
    return _whole(UefiVariable(guid, name, value, content, trailing), data, digests)


def decode_authority(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_VARIABLE_AUTHORITY and EV_EFI_SPDM_DEVICE_AUTHORITY: hashed whole.

    The value is the one database entry that verified an image, not the database.
    """
    guid, name, value, trailing, at = _split(data)
    content = _content(_AUTHORITY.get(name, _authority), value, at)
    return _whole(UefiVariable(guid, name, value, content, trailing), data, digests)


def _whole(variable: UefiVariable, data: bytes, digests: Digests) -> Decoded:
    if hashes_to(digests, data):
        return variable, DigestCheck.MATCHES
    if variable.trailing and hashes_to(digests, data[:-1]):
        # shim before 15.3 counted one byte too many into the event; quirk shim-event-slack.
        rest, last = variable.trailing[:-1], variable.trailing[-1:]
        fixed = UefiVariable(
            variable.guid, variable.name, variable.data, variable.content, rest, last
        )
        return fixed, DigestCheck.MATCHES
    return Claimed(variable), DigestCheck.DIFFERS


def _boot_content(name: str, value: bytes, at: int) -> EventValue | None:
    if name in _ORDERS:
        return _boot_order(value)
    # An option that does not exist is measured with no data.
    return _content(decode_load_option, value, at) if value and _is_option(name) else None


def decode_boot(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_VARIABLE_BOOT: the data is hashed; on some firmware the whole structure is."""
    guid, name, value, trailing, at = _split(data)
    content = _boot_content(name, value, at)
    if not trailing and hashes_to(digests, value):
        return BootVariable(guid, name, value, content), DigestCheck.MATCHES
    return _whole(UefiVariable(guid, name, value, content, trailing), data, digests)


def decode_boot2(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_VARIABLE_BOOT2: hashed whole (PFP 1.06, section 10.4.1)."""
    guid, name, value, trailing, at = _split(data)
    content = _boot_content(name, value, at)
    return _whole(UefiVariable(guid, name, value, content, trailing), data, digests)
