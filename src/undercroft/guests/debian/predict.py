"""What a built Debian guest's boot will measure, from the files of its build."""

from __future__ import annotations

from undercroft.base import VerificationError
from undercroft.guests.chain import Chain
from undercroft.guests.debian import recipe
from undercroft.guests.firmware import FirmwareRun
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.qemu import DISK_SLOT
from undercroft.reference.boot import (
    Firmware,
    GrubBoot,
    LegacyBoot,
    PredictedEvent,
    UkiBoot,
    predict_grub_boot,
    predict_legacy_boot,
    predict_uki_boot,
)
from undercroft.reference.model import Grade, Provenance
from undercroft.verify.kernel_signature import verify_vmlinuz

OURS = Provenance(Grade.BUILT, origin="Debian guest")


def verifies(image: bytes, certificate: bytes) -> bool:
    """Whether a PE image is signed under ``certificate`` (DER)."""
    try:
        verify_vmlinuz(image, [certificate])
    except VerificationError:
        return False
    return True


def predict_debian(
    build: GuestBuild, firmware: FirmwareRun, package: Provenance, learned: Provenance
) -> tuple[PredictedEvent, ...]:
    """Return every measurement of the guest's first boot, on a machine of ours.

    Of ``Chain.LEGACY`` all but the PCRs of ``legacy.UNPREDICTED``.  Raises FormatError for what
    cannot be predicted.
    """
    if build.chain is Chain.LEGACY:
        return predict_legacy_boot(_legacy(build))
    starts = Firmware(
        pei=firmware.pei,
        dxe=firmware.dxe,
        variables=build.firmware_vars.path.read_bytes(),
        disk_slot=DISK_SLOT,
        package=package,
        learned=learned,
    )
    if build.chain is Chain.UKI:
        return predict_uki_boot(_uki(build, starts), verifies)
    return predict_grub_boot(_grub(build, starts), verifies)


def _legacy(build: GuestBuild) -> LegacyBoot:
    rom = build.boot_files["option-rom"]
    return LegacyBoot(_content(build, "gpt")[:512], rom.path.read_bytes(), rom.provenance, OURS)


def _uki(build: GuestBuild, firmware: Firmware) -> UkiBoot:
    loader, image = build.boot_files["systemd-boot"], build.boot_files["uki"]
    return UkiBoot(
        firmware=firmware,
        partition_table=_content(build, "gpt"),
        systemd_boot=loader.path.read_bytes(),
        uki=image.path.read_bytes(),
        from_systemd_boot=loader.provenance,
        from_uki=image.provenance,
        ours=OURS,
    )


def _content(build: GuestBuild, name: str) -> bytes:
    return build.boot_files[name].path.read_bytes()


def _grub(build: GuestBuild, firmware: Firmware) -> GrubBoot:
    kernel_path = f"/boot/vmlinuz-{build.kernel_release}"
    initrd_path = f"/boot/initrd.img-{build.kernel_release}"
    return GrubBoot(
        firmware=firmware,
        partition_table=_content(build, "gpt"),
        esp={path: _content(build, name) for path, name in _ESP.items()},
        root={
            kernel_path: build.kernel.path.read_bytes(),
            initrd_path: build.initrd.path.read_bytes(),
            "/boot/grub/grub.cfg": _content(build, "grub.cfg"),
        },
        root_uuid=str(recipe.ROOT_UUID),
        provenances={
            **{f"(esp){path}": build.boot_files[name].provenance for path, name in _ESP.items()},
            f"(root){kernel_path}": build.kernel.provenance,
            f"(root){initrd_path}": build.initrd.provenance,
        },
        ours=OURS,
    )


_ESP = {
    "/EFI/BOOT/BOOTX64.EFI": "shim",
    "/EFI/BOOT/grubx64.efi": "grub",
    "/EFI/debian/grub.cfg": "esp-grub.cfg",
}
"""Where the ESP has what the build keeps under a name (see ``build``)."""
