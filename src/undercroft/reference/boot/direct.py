"""Prediction for OVMF without Secure Boot and a kernel given to QEMU with ``-kernel``.

The chain: OVMF's own volumes (PCR 0), its variables (PCR 1 and 7), the kernel's EFI image
(PCR 4), and what the kernel's EFI stub measures: load options and initrd (PCR 9).  PCR 2, 3
and 6 hold a separator.  Sources: TCG PC Client Platform Firmware Profile 1.06, 3.3.4 (PCR
usage); edk2 SecurityPkg/Tcg/Tcg2Dxe; Linux drivers/firmware/efi/libstub/efi-stub-helper.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.base import Digest
from undercroft.formats.pe import parse_pe
from undercroft.reference.boot.event import PREDICTED_BANKS, PredictedEvent
from undercroft.reference.boot.qemu_loader import kernel_as_loaded
from undercroft.reference.model import Grade, Provenance

_EFI_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SPECIFICATION = Provenance(
    Grade.SPECIFICATION, origin="TCG PC Client Platform Firmware Profile 1.06"
)

_UI_APP_OPTION = (
    struct.pack("<IH", 0x00000109, 0x2C)
    + "UiApp\0".encode("utf-16-le")
    + bytes.fromhex("04071400c9bdb87cebf8344faaea3ee4af6516a1")  # the DXE volume
    + bytes.fromhex("0406140021aa2c4614760345836e8ab6f4662331")  # the UiApp file in it
    + bytes.fromhex("7fff0400")
)
"""Boot0000 as OVMF's PlatformBootManagerLib registers it: the set-up menu, and nothing else."""


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """What the boot depends on: file contents, the command line and the VM's shape.

    ``pei_volume`` and ``dxe_volume`` are the firmware volumes *as they stand in RAM when they
    are measured*; the DXE volume equals the package's, the PEI volume has globals filled in.
    """

    kernel: bytes
    initrd: bytes
    cmdline: str
    memory_below_4g: int
    pei_volume: bytes
    dxe_volume: bytes
    kernel_provenance: Provenance
    initrd_provenance: Provenance
    cmdline_provenance: Provenance
    firmware_provenance: Provenance
    pei_provenance: Provenance


def predict_direct_boot(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    """Return every measurement of PCR 0..9, in order within each PCR."""
    return (
        *_firmware(boot),
        *_boot_variables(boot.firmware_provenance),
        *_secure_boot_variables(boot.firmware_provenance),
        *_kernel(boot),
        *(_separator(pcr) for pcr in (2, 3, 6)),
        *_stub(boot),
        _separator(5),
        _action(5, "Exit Boot Services Invocation"),
        _action(5, "Exit Boot Services Returned with Success"),
    )


def _event(
    pcr: int, event_type: str, what: str, provenance: Provenance, measured: bytes, role: str = ""
) -> PredictedEvent:
    digests = tuple(bank.digest(measured) for bank in PREDICTED_BANKS)
    return PredictedEvent(pcr, event_type, what, provenance, digests, role)


def _separator(pcr: int) -> PredictedEvent:
    return _event(pcr, "EV_SEPARATOR", "end of firmware", _SPECIFICATION, bytes(4), "separator")


def _action(pcr: int, text: str) -> PredictedEvent:
    return _event(pcr, "EV_EFI_ACTION", text, _SPECIFICATION, text.encode("ascii"), text)


def _firmware(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    package, blob = boot.firmware_provenance, "EV_EFI_PLATFORM_FIRMWARE_BLOB"
    return (
        # Debian's build leaves PcdFirmwareVersionString empty: a UCS-2 string of no characters.
        _event(0, "EV_S_CRTM_VERSION", "firmware version", package, bytes(2), "firmware version"),
        _event(0, blob, "PEI volume", boot.pei_provenance, boot.pei_volume, "PEI volume"),
        _event(0, blob, "DXE volume", package, boot.dxe_volume, "DXE volume"),
        _separator(0),
    )


def _boot_variables(package: Provenance) -> tuple[PredictedEvent, ...]:
    # The digest is over the variable's data alone (PC Client PFP 1.06, 10.4.2 note for
    # EV_EFI_VARIABLE_BOOT); the log's event data has the name as well.
    kind = "EV_EFI_VARIABLE_BOOT"
    return (
        _event(1, kind, "BootOrder", package, struct.pack("<H", 0), "BootOrder"),
        _event(1, kind, "Boot0000 (UiApp)", package, _UI_APP_OPTION, "Boot0000"),
        _separator(1),
    )


def _variable(guid: bytes, name: str, data: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA (PC Client PFP 1.06, 10.4.2)."""
    text = name.encode("utf-16-le")
    return guid + struct.pack("<QQ", len(name), len(data)) + text + data


def _secure_boot_variables(package: Provenance) -> tuple[PredictedEvent, ...]:
    kind = "EV_EFI_VARIABLE_DRIVER_CONFIG"
    variables = (
        (_EFI_GLOBAL_VARIABLE, "SecureBoot", b"\0"),
        (_EFI_GLOBAL_VARIABLE, "PK", b""),
        (_EFI_GLOBAL_VARIABLE, "KEK", b""),
        (_IMAGE_SECURITY_DATABASE, "db", b""),
        (_IMAGE_SECURITY_DATABASE, "dbx", b""),
    )
    measured = (
        _event(7, kind, f"{name} (off or empty)", package, _variable(guid, name, data), name)
        for guid, name, data in variables
    )
    return (*measured, _separator(7))


def _kernel(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    image = parse_pe(
        kernel_as_loaded(
            boot.kernel, initrd_size=len(boot.initrd), memory_below_4g=boot.memory_below_4g
        )
    )
    kernel = PredictedEvent(
        4,
        "EV_EFI_BOOT_SERVICES_APPLICATION",
        "kernel (Authenticode digest, as QEMU loads it)",
        boot.kernel_provenance,
        tuple(Digest(bank, image.authenticode(bank)) for bank in PREDICTED_BANKS),
        "kernel",
    )
    return (kernel, _action(4, "Calling EFI Application from Boot Option"), _separator(4))


def _stub(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    # OVMF appends the initrd's name to the command line (QemuKernelLoaderFsDxe); the stub
    # measures the load options in UTF-16 with their terminator, then the initrd it loaded.
    kind, options = "EV_EVENT_TAG", f"{boot.cmdline} initrd=initrd\0".encode("utf-16-le")
    return (
        _event(9, kind, "kernel command line", boot.cmdline_provenance, options, "command line"),
        _event(9, kind, "initrd", boot.initrd_provenance, boot.initrd, "initrd"),
    )
