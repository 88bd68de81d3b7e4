"""Prediction for OVMF with Secure Boot, shim and GRUB: the way a distribution's disk boots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.pe import parse_pe
from undercroft.formats.varstore import parse_varstore
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.grub import GrubDisk, GrubEvent, run_grub
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
from undercroft.reference.boot.shim import shim_authority, shim_events, shim_parts
from undercroft.reference.model import Provenance

ESP, ROOT = "hd0,gpt1", "hd0,gpt2"
"""GRUB's names of the first two partitions of the first disk."""


_SHOWN = 240
"""Characters of a command that a description shows; a menu entry's is its whole block."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """The firmware as it runs and as it starts: ``pei`` and ``dxe`` are volumes as in RAM.

    ``variables`` is the variable store that the machine starts with, ``disk_slot`` the PCI slot of
    its disk.  ``learned`` is where ``pei`` came from, ``package`` all the rest.
    """

    pei: bytes
    dxe: bytes
    variables: bytes
    disk_slot: int
    package: Provenance
    learned: Provenance


@dataclass(frozen=True, slots=True)
class GrubBoot:
    """A disk with shim and GRUB.

    ``partition_table`` is the start of the disk. ``esp`` and ``root`` are files by path; ``esp``
    has shim as ``/EFI/BOOT/BOOTX64.EFI`` and GRUB beside it.  ``provenances`` is where each comes
    from, by ``(esp)`` or ``(root)`` and path; what is missing there is ``ours``.
    """

    firmware: Firmware
    partition_table: bytes
    esp: Mapping[str, bytes]
    root: Mapping[str, bytes]
    root_uuid: str
    provenances: Mapping[str, Provenance]
    ours: Provenance
    shim_path: str = "/EFI/BOOT/BOOTX64.EFI"
    grub_path: str = "/EFI/BOOT/grubx64.efi"


def predict_grub_boot(boot: GrubBoot, verifies: Verifies) -> tuple[PredictedEvent, ...]:
    """Return every measurement of PCR 0..9 and 14, in order within each PCR.

    Raises FormatError for files that cannot be read, that nobody vouches for (they would not
    boot), and for a configuration that does something that is not modelled.
    """
    firmware = boot.firmware
    variables = parse_varstore(firmware.variables)
    shim_file, grub_file = boot.esp[boot.shim_path], boot.esp[boot.grub_path]
    shim, grub = parse_pe(shim_file), parse_pe(grub_file)
    parts = shim_parts(shim)
    from_shim = boot.provenances.get(f"(esp){boot.shim_path}", boot.ours)
    from_grub = boot.provenances.get(f"(esp){boot.grub_path}", boot.ours)
    if not verifies(grub_file, parts.vendor_certificate):
        raise FormatError("GRUB", 0, "shim's vendor certificate does not verify it")
    disk = GrubDisk({ESP: boot.esp, ROOT: boot.root}, {boot.root_uuid: ROOT})
    folder = boot.grub_path.rpartition("/")[0]
    run = run_grub(
        disk, device=ESP, prefix=f"({ESP})/EFI/debian", cmdpath=f"({ESP}){folder}"
    )  # fmt: skip
    if not verifies(run.kernel, parts.vendor_certificate):
        raise FormatError("kernel", 0, "shim's vendor certificate does not verify it")
    kernel = image(
        parse_pe(run.kernel), "kernel (Authenticode digest)", _kernel_source(boot, run.kernel),
        "kernel",
    )  # fmt: skip
    return (
        *firmware_events(firmware.pei, firmware.dxe, firmware.package, firmware.learned),
        *boot_option_events(variables, firmware.disk_slot, firmware.package),
        *secure_boot_events(variables, firmware.package),
        *(separator(pcr) for pcr in (2, 3, 6)),
        action(4, CALLING),
        separator(4),
        separator(5),
        authority_event(shim_file, variables, verifies, firmware.package),
        partition_event(boot.partition_table, boot.ours),
        image(shim, "shim (Authenticode digest)", from_shim, "shim"),
        *shim_events(parts, variables, from_shim),
        shim_authority(parts, from_shim),
        image(grub, "GRUB (Authenticode digest)", from_grub, "boot loader"),
        *(_grub_event(boot, one) for one in run.events),
        # GRUB's verifier asks shim, and so does its loader for EFI kernels: two measurements.
        kernel,
        kernel,
        *handover_events(),
    )


def _kernel_source(boot: GrubBoot, kernel: bytes) -> Provenance:
    for path, data in boot.root.items():
        if data == kernel and f"(root){path}" in boot.provenances:
            return boot.provenances[f"(root){path}"]
    return boot.ours


def _grub_event(boot: GrubBoot, one: GrubEvent) -> PredictedEvent:
    if one.kind == "file":
        device, path = _file_of(one.text)
        source = boot.provenances.get(f"({'esp' if device == ESP else 'root'}){path}", boot.ours)
        what = f"file read by GRUB: {one.text}"
        return event(9, IPL, what, source, one.measured, what, data=f"{one.text}\0".encode())
    prefix = "grub_cmd: " if one.kind == "command" else "kernel_cmdline: "
    said = " ".join(one.text.split())
    said = said if len(said) <= _SHOWN else said[:_SHOWN] + " ..."
    what = f"GRUB command: {said}" if one.kind == "command" else f"kernel command line: {said}"
    role = "command line" if one.kind == "kernel_cmdline" else ""
    data = f"{prefix}{one.text}\0".encode()
    return event(8, IPL, what, boot.ours, one.measured, role, data=data)


def _file_of(name: str) -> tuple[str, str]:
    """Return device and path; a name without a device is on the root device."""
    if name.startswith("("):
        device, _, path = name[1:].partition(")")
        return device, path
    return ROOT, name
