"""What OVMF measures on its own: itself, its variables, boot options, and the disk's table.

Sources: edk2 SecurityPkg/Tcg/Tcg2Pei and Tcg2Dxe, MdeModulePkg/Library/UefiBootManagerLib
(boot options), SecurityPkg/Library/DxeImageVerificationLib (authorities) and
DxeTpm2MeasureBootLib (partition table).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from undercroft.base import FormatError
from undercroft.formats.eventlog.signatures import EFI_CERT_X509, decode_signature_database
from undercroft.formats.reader import BoundedReader
from undercroft.formats.varstore import StoredVariable
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.measure import (
    AUTHORITY,
    DRIVER_CONFIG,
    EFI_GLOBAL_VARIABLE,
    IMAGE_SECURITY_DATABASE,
    action,
    boot_variable,
    event,
    firmware_volume,
    guid_of,
    separator,
    variable,
)
from undercroft.reference.model import Provenance

CALLING = "Calling EFI Application from Boot Option"
PEI_VOLUME_ADDRESS = 0x820000
DXE_VOLUME_ADDRESS = 0x900000
"""Where the volumes lie in RAM (OvmfPkg/OvmfPkgX64.fdf, MEMFD layout)."""

_BOOT_OPTION_MARK = guid_of("8108ac4e-9f11-4d59-850e-e21a522c59b2")
"""mBmAutoCreateBootOptionGuid: optional data of the options that the firmware makes itself."""
_END_OF_PATH = bytes.fromhex("7fff0400")
_PCI_ROOT = bytes.fromhex("02010c00d041030a00000000")
_FIRMWARE_FILE = bytes.fromhex("04071400")
_DATABASES = (
    ("PK", EFI_GLOBAL_VARIABLE),
    ("KEK", EFI_GLOBAL_VARIABLE),
    ("db", IMAGE_SECURITY_DATABASE),
    ("dbx", IMAGE_SECURITY_DATABASE),
)

Verifies = Callable[[bytes, bytes], bool]
"""Whether a PE image is signed under a certificate (DER), its chain and digest verified."""


def firmware_events(
    pei: bytes, dxe: bytes, package: Provenance, learned: Provenance
) -> tuple[PredictedEvent, ...]:
    """Return PCR 0: version, both volumes as they are in RAM, separator."""
    return (
        # Debian's build leaves PcdFirmwareVersionString empty: a UCS-2 string of no characters.
        event(0, "EV_S_CRTM_VERSION", "firmware version", package, bytes(2), "firmware version"),
        firmware_volume("PEI volume", learned, pei, PEI_VOLUME_ADDRESS),
        firmware_volume("DXE volume", package, dxe, DXE_VOLUME_ADDRESS),
        separator(0),
    )


def stored(variables: Sequence[StoredVariable], guid: bytes, name: str) -> bytes:
    """Return a variable's value, empty if it is not in the store."""
    return next((v.data for v in variables if (v.guid, v.name) == (guid, name)), b"")


def secure_boot_events(
    variables: Sequence[StoredVariable], package: Provenance
) -> tuple[PredictedEvent, ...]:
    """Return the start of PCR 7 with Secure Boot on: the variables that decide what is trusted."""
    return (
        event(
            7, DRIVER_CONFIG, "SecureBoot is on", package,
            variable(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\1"), "SecureBoot",
        ),
        *(
            event(
                7, DRIVER_CONFIG, f"Secure Boot variable {name}", package,
                variable(guid, name, stored(variables, guid, name)), name,
            )
            for name, guid in _DATABASES
        ),
        separator(7),
    )  # fmt: skip


def authority_event(
    image: bytes, variables: Sequence[StoredVariable], verifies: Verifies, package: Provenance
) -> PredictedEvent:
    """Return the db entry that verifies ``image``, the first application that is started.

    Raises FormatError if none does: the firmware would not start it.
    """
    database = decode_signature_database(stored(variables, IMAGE_SECURITY_DATABASE, "db"))
    for entry in database.of_type(EFI_CERT_X509):
        if verifies(image, entry.data):
            return event(
                7, AUTHORITY, "db entry that verified the boot loader", package,
                variable(IMAGE_SECURITY_DATABASE, "db", entry.encode()), "db authority",
            )  # fmt: skip
    raise FormatError("db", 0, "no certificate in it verifies the boot loader")


def boot_option_events(
    variables: Sequence[StoredVariable], slot: int, package: Provenance
) -> tuple[PredictedEvent, ...]:
    """Return PCR 1: the options for a virtio disk in PCI ``slot``, then those of the firmware.

    An option of the store stays if it leads into the firmware itself; the first number that is
    then free goes to the disk, which comes first because QEMU was told to start from it.
    """
    kept = {
        int(v.name.removeprefix("Boot"), 16): v.data
        for v in variables
        if v.guid == EFI_GLOBAL_VARIABLE and _is_option(v.name) and _inside_firmware(v.data)
    }
    number = next(n for n in range(0x10000) if n not in kept)
    path = _PCI_ROOT + bytes([1, 1, 6, 0, 0, slot]) + _END_OF_PATH
    name = "UEFI Misc Device\0".encode("utf-16-le")
    disk = struct.pack("<IH", 1, len(path)) + name + path + _BOOT_OPTION_MARK
    order = (number, *sorted(kept))
    options = {number: disk, **kept}
    return (
        boot_variable("BootOrder", struct.pack(f"<{len(order)}H", *order), package),
        *(boot_variable(f"Boot{n:04X}", options[n], package) for n in order),
        separator(1),
    )


def _is_option(name: str) -> bool:
    return len(name) == 8 and name.startswith("Boot") and name[4:].isalnum() and name != "BootNext"


def _inside_firmware(option: bytes) -> bool:
    """Whether a load option's device path starts with a firmware volume (UEFI 2.10, 10.3.5.8)."""
    reader = BoundedReader(option, "EFI_LOAD_OPTION", order="little")
    reader.take(6, "attributes and length")
    while reader.take(2, "Description") != b"\0\0":
        pass
    return reader.rest().startswith(_FIRMWARE_FILE)


def partition_event(start_of_disk: bytes, ours: Provenance) -> PredictedEvent:
    """Return the partition table's event: its header and the entries in use.

    ``start_of_disk`` reaches to the table's end.  Raises FormatError if that is no GPT.
    """
    reader = BoundedReader(start_of_disk, "GPT", order="little")
    reader.offset = 512
    header = reader.take(92, "the header")
    if not header.startswith(b"EFI PART"):
        raise FormatError("GPT", 512, "no partition table", expected="EFI PART")
    (at,) = struct.unpack_from("<Q", header, 72)
    count, size = struct.unpack_from("<II", header, 80)
    if count > 1024 or size != 128 or at > 1024:
        raise FormatError("GPT", 512 + 80, "the table's shape is strange", got=f"{count} x {size}")
    reader.offset = at * 512
    entries = [reader.take(size, "an entry") for _ in range(count)]
    used = [entry for entry in entries if entry[:16] != bytes(16)]
    measured = header + struct.pack("<Q", len(used)) + b"".join(used)
    return event(5, "EV_EFI_GPT_EVENT", "partition table", ours, measured, "partition table")


def handover_events() -> tuple[PredictedEvent, ...]:
    """Return what ends the firmware's part, in PCR 5."""
    return (
        action(5, "Exit Boot Services Invocation"),
        action(5, "Exit Boot Services Returned with Success"),
    )
