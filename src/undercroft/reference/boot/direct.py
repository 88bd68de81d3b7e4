"""Prediction for OVMF without Secure Boot and a kernel given to QEMU with ``-kernel``.

The chain: OVMF's own volumes (PCR 0), its variables (PCR 1 and 7), the kernel's EFI image
(PCR 4), and what the kernel's EFI stub measures: load options and initrd (PCR 9).  PCR 2, 3
and 6 hold a separator.  Sources: TCG PC Client Platform Firmware Profile 1.06, 3.3.4 (PCR
usage); edk2 SecurityPkg/Tcg/Tcg2Dxe; Linux drivers/firmware/efi/libstub/efi-stub-helper.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.formats.pe import parse_pe
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.measure import (
    DRIVER_CONFIG,
    EFI_GLOBAL_VARIABLE,
    IMAGE_SECURITY_DATABASE,
    action,
    boot_variable,
    event,
    separator,
    variable,
)
from undercroft.reference.boot.measure import image as measured_image
from undercroft.reference.boot.ovmf import CALLING, firmware_events, handover_events
from undercroft.reference.boot.qemu_loader import kernel_as_loaded
from undercroft.reference.model import Provenance

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
        *firmware_events(
            boot.pei_volume, boot.dxe_volume, boot.firmware_provenance, boot.pei_provenance
        ),
        *_boot_variables(boot.firmware_provenance),
        *_secure_boot_variables(boot.firmware_provenance),
        *_kernel(boot),
        *(separator(pcr) for pcr in (2, 3, 6)),
        *_stub(boot),
        separator(5),
        *handover_events(),
    )


def _boot_variables(package: Provenance) -> tuple[PredictedEvent, ...]:
    return (
        boot_variable("BootOrder", struct.pack("<H", 0), package),
        boot_variable("Boot0000", _UI_APP_OPTION, package),
        separator(1),
    )


def _secure_boot_variables(package: Provenance) -> tuple[PredictedEvent, ...]:
    variables = (
        (EFI_GLOBAL_VARIABLE, "SecureBoot", b"\0"),
        (EFI_GLOBAL_VARIABLE, "PK", b""),
        (EFI_GLOBAL_VARIABLE, "KEK", b""),
        (IMAGE_SECURITY_DATABASE, "db", b""),
        (IMAGE_SECURITY_DATABASE, "dbx", b""),
    )
    measured = (
        event(7, DRIVER_CONFIG, f"{name} (off or empty)", package, variable(guid, name, data), name)
        for guid, name, data in variables
    )
    return (*measured, separator(7))


def _kernel(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    image = parse_pe(
        kernel_as_loaded(
            boot.kernel, initrd_size=len(boot.initrd), memory_below_4g=boot.memory_below_4g
        )
    )
    what = "kernel (Authenticode digest, as QEMU loads it)"
    kernel = measured_image(image, what, boot.kernel_provenance, "kernel")
    return (kernel, action(4, CALLING), separator(4))


def _stub(boot: DirectBoot) -> tuple[PredictedEvent, ...]:
    # OVMF appends the initrd's name to the command line (QemuKernelLoaderFsDxe); the stub
    # measures the load options in UTF-16 with their terminator, then the initrd it loaded.
    kind, options = "EV_EVENT_TAG", f"{boot.cmdline} initrd=initrd\0".encode("utf-16-le")
    return (
        event(9, kind, "kernel command line", boot.cmdline_provenance, options, "command line"),
        event(9, kind, "initrd", boot.initrd_provenance, boot.initrd, "initrd"),
    )
