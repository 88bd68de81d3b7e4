"""Prediction for OVMF with Secure Boot, systemd-boot and a unified kernel image.

Sources: systemd 252 src/boot/efi/stub.c and measure.c ("TPM2 PCR Measurements Made by systemd");
Linux drivers/firmware/efi/libstub/efi-stub-helper.c for PCR 9.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.pe import PeImage, parse_pe
from undercroft.formats.varstore import parse_varstore
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.measure import IPL, action, event, image, separator
from undercroft.reference.boot.ovmf import (
    CALLING,
    Verifies,
    authority_event,
    boot_option_events,
    firmware_events,
    handover_events,
    partition_event,
    secure_boot_events,
)
from undercroft.reference.boot.secure import Firmware
from undercroft.reference.model import Provenance

_MEASURED = (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb")
"""In this order, those that are there (systemd 252, src/fundamental/tpm-pcr.h)."""

_LOAD_OPTIONS, _INITRD = 0x8F3B22EC, 0x8F3B22ED
"""Tags of the kernel's events (libstub/efistub.h, LOAD_OPTIONS_EVENT_TAG_ID and INITRD's)."""


@dataclass(frozen=True, slots=True)
class UkiBoot:
    """A disk whose ESP has systemd-boot and one unified kernel image."""

    firmware: Firmware
    partition_table: bytes
    systemd_boot: bytes
    uki: bytes
    from_systemd_boot: Provenance
    from_uki: Provenance
    ours: Provenance


def predict_uki_boot(boot: UkiBoot, verifies: Verifies) -> tuple[PredictedEvent, ...]:
    """Return every measurement of PCR 0..9, 11 and 12, in order within each PCR.

    Later the guest may extend PCR 11 with the phases of its boot.  Raises FormatError for what
    cannot be read or would not boot.
    """
    firmware = boot.firmware
    variables = parse_varstore(firmware.variables)
    loader, uki = parse_pe(boot.systemd_boot), parse_pe(boot.uki)
    authorities = [
        authority_event(program, variables, verifies, firmware.package)
        for program in (boot.systemd_boot, boot.uki)
    ]
    return (
        *firmware_events(firmware.pei, firmware.dxe, firmware.package, firmware.learned),
        *boot_option_events(variables, firmware.disk_slot, firmware.package),
        *secure_boot_events(variables, firmware.package),
        *(separator(pcr) for pcr in (2, 3, 6)),
        action(4, CALLING),
        separator(4),
        separator(5),
        # The firmware remembers which entries it has measured.
        *dict.fromkeys(authorities),
        partition_event(boot.partition_table, boot.ours),
        image(loader, "systemd-boot (Authenticode digest)", boot.from_systemd_boot, "boot loader"),
        image(uki, "unified kernel image (Authenticode digest)", boot.from_uki, "kernel"),
        *_stub_events(uki, boot.from_uki),
        *handover_events(),
    )


def _stub_events(uki: PeImage, source: Provenance) -> tuple[PredictedEvent, ...]:
    parts = {name: data for name in _MEASURED if (data := uki.section(name)) is not None}
    command_line = parts.get(".cmdline")
    if ".linux" not in parts or command_line is None:
        raise FormatError("unified kernel image", 0, "no kernel or no command line in it")
    sections = []
    for name, data in parts.items():
        logged = f"{name}\0".encode("utf-16-le")
        sections += [
            event(11, IPL, f"name of the section {name}", source, f"{name}\0".encode(), name,
                  data=logged),
            event(11, IPL, f"content of the section {name}", source, data, f"{name} content",
                  data=logged),
        ]  # fmt: skip
    text = command_line.rstrip(b"\0").decode("utf-8", "replace").rstrip("\n")
    options = f"{text}\0".encode("utf-16-le")
    return (
        *sections,
        event(12, IPL, f"kernel command line: {text}", source, options, "command line"),
        event(9, "EV_EVENT_TAG", f"kernel command line: {text}", source, options, "command line",
              data=_tagged(_LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0")),
        event(9, "EV_EVENT_TAG", "initrd", source, parts.get(".initrd", b""), "initrd",
              data=_tagged(_INITRD, b"Linux initrd\0")),
    )  # fmt: skip


def _tagged(tag: int, name: bytes) -> bytes:
    return struct.pack("<II", tag, len(name)) + name
