"""What a built Debian guest's boot will measure, from the files of its build."""

from __future__ import annotations

from undercroft.base import VerificationError
from undercroft.guests.debian import recipe
from undercroft.guests.firmware import FirmwareRun
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.qemu import DISK_SLOT
from undercroft.reference.boot import Firmware, GrubBoot, PredictedEvent, predict_grub_boot
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

    Raises FormatError for what cannot be predicted.
    """
    kernel_path = f"/boot/vmlinuz-{build.kernel_release}"
    initrd_path = f"/boot/initrd.img-{build.kernel_release}"
    boot = GrubBoot(
        firmware=Firmware(
            pei=firmware.pei,
            dxe=firmware.dxe,
            variables=build.firmware_vars.path.read_bytes(),
            disk_slot=DISK_SLOT,
            package=package,
            learned=learned,
        ),
        partition_table=build.boot_files["gpt"].path.read_bytes(),
        esp={path: build.boot_files[name].path.read_bytes() for path, name in _ESP.items()},
        root={
            kernel_path: build.kernel.path.read_bytes(),
            initrd_path: build.initrd.path.read_bytes(),
            "/boot/grub/grub.cfg": build.boot_files["grub.cfg"].path.read_bytes(),
        },
        root_uuid=str(recipe.ROOT_UUID),
        provenances={
            **{f"(esp){path}": build.boot_files[name].provenance for path, name in _ESP.items()},
            f"(root){kernel_path}": build.kernel.provenance,
            f"(root){initrd_path}": build.initrd.provenance,
        },
        ours=OURS,
    )
    return predict_grub_boot(boot, verifies)


_ESP = {
    "/EFI/BOOT/BOOTX64.EFI": "shim",
    "/EFI/BOOT/grubx64.efi": "grub",
    "/EFI/debian/grub.cfg": "esp-grub.cfg",
}
"""Where the ESP has what the build keeps under a name (see ``build``)."""
