"""Reference values of a built guest, in the shape it will run in: known good before it boots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from undercroft.base import Digest, HashAlgorithm
from undercroft.formats.kernel import load_kernel
from undercroft.guests.chain import Chain
from undercroft.guests.debian.predict import predict_debian
from undercroft.guests.firmware import FirmwareRun
from undercroft.guests.manifest import GuestBuild
from undercroft.reference.boot import (
    DirectBoot,
    PredictedEvent,
    boot_references,
    predict_direct_boot,
)
from undercroft.reference.boot.legacy import UNPREDICTED, UNVOUCHED
from undercroft.reference.model import (
    Grade,
    KernelReference,
    Provenance,
    ReferenceSet,
    ReferenceValue,
    merge,
)

ADVERSARIES = "/adversaries/"
"""Files of the guest that are never good: the test adversaries, built in but not loaded."""

_LOW_MEMORY_LIMIT_MB = 2816
"""q35: RAM beyond 0xb0000000 moves above 4 GiB (QEMU hw/i386/pc_q35.c, pc_q35_init)."""
_LOW_MEMORY_SPLIT_MB = 2048


def memory_below_4g(memory_mb: int) -> int:
    """Return the bytes of a q35 guest's RAM below 4 GiB."""
    low = memory_mb if memory_mb < _LOW_MEMORY_LIMIT_MB else _LOW_MEMORY_SPLIT_MB
    return low << 20


def derive_references(
    build: GuestBuild, firmware: FirmwareRun, *, command_line: str, memory_mb: int
) -> ReferenceSet:
    """Return everything that is good for ``build`` on a machine of this shape.

    Boot events and PCRs 0 to 9, the kernel, and every file of the initramfs. Raises FormatError
    if the kernel is not one that we can read.
    """
    return merge(
        build.name,
        (
            _boot(build, firmware, command_line, memory_mb),
            ReferenceSet(
                build.name,
                files={
                    path: (
                        ReferenceValue(
                            (Digest(HashAlgorithm.SHA256, bytes.fromhex(file.sha256)),),
                            path,
                            file.provenance,
                        ),
                    )
                    for path, file in build.files.items()
                    if not path.startswith(ADVERSARIES)
                },
                kernels=(_kernel(build),),
            ),
        ),
    )


def _kernel(build: GuestBuild) -> KernelReference:
    image = load_kernel(build.kernel.path.read_bytes())
    return KernelReference(
        release=image.release,
        vmlinuz=Digest(HashAlgorithm.SHA256, bytes.fromhex(image.sha256)),
        build_id=bytes.fromhex(image.build_id),
        provenance=build.kernel.provenance,
    )


def _boot(
    build: GuestBuild, firmware: FirmwareRun, command_line: str, memory_mb: int
) -> ReferenceSet:
    events = predict_boot(build, firmware, command_line=command_line, memory_mb=memory_mb)
    left_out = set(unpredicted_pcrs(build.chain))
    if build.chain is Chain.LEGACY:
        # Known values of PCRs that hold nothing would pass for knowledge of what was started.
        left_out |= set(UNVOUCHED)
        events = tuple(event for event in events if event.pcr not in left_out)
    return boot_references(build.name, events, left_out)


def unpredicted_pcrs(chain: Chain) -> Mapping[int, str]:
    """Return the PCRs that no value is predicted for, each with the reason."""
    return UNPREDICTED if chain is Chain.LEGACY else {}


def predict_boot(
    build: GuestBuild, firmware: FirmwareRun, *, command_line: str, memory_mb: int
) -> tuple[PredictedEvent, ...]:
    """Return every measurement of ``build``'s boot on a machine of this shape.

    Raises FormatError for what cannot be predicted.
    """
    package = build.firmware_code.provenance
    pei = replace(
        package,
        grade=Grade.FIRMWARE_RUN,
        note=f"packaged PEI volume with {firmware.differing} bytes filled in at run time",
    )
    if build.chain is not Chain.DIRECT:
        return predict_debian(build, firmware, package, pei)
    boot = DirectBoot(
        kernel=build.kernel.path.read_bytes(),
        initrd=build.initrd.path.read_bytes(),
        cmdline=command_line,
        memory_below_4g=memory_below_4g(memory_mb),
        pei_volume=firmware.pei,
        dxe_volume=firmware.dxe,
        kernel_provenance=build.kernel.provenance,
        initrd_provenance=build.initrd.provenance,
        cmdline_provenance=Provenance(Grade.BUILT, note="the command line given to the guest"),
        firmware_provenance=package,
        pei_provenance=pei,
    )
    return predict_direct_boot(boot)
