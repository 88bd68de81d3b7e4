"""What the launch measures of a guest of ours: the secure kernel, the machine, the kernel.

The same functions give what is measured when a guest starts (from the files as they are then) and
the reference values for it (from the digests that the packages' build left).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.descriptor import VmDescriptor, encode_descriptor
from undercroft.formats.launch import GUEST_KERNEL, VM_DESCRIPTOR
from undercroft.guests import qemu
from undercroft.guests.accel import Accel
from undercroft.guests.chain import Chain
from undercroft.guests.manifest import BuiltFile, GuestBuild
from undercroft.guests.qemu import MachineSpec
from undercroft.reference.launch import launch_references
from undercroft.reference.model import Grade, Provenance, ReferenceSet

MANIFEST_TIMEOUT_S = 60.0
MANIFESTS = "manifests"
"""Where the manifests of the secure kernels that guests were started with are kept."""
KEPT_MANIFESTS = 32
EK_CERTIFICATE = "ek-rsa2048.crt"
"""Where swtpm_setup leaves the certificate of the EK that we enrol with, in the TPM's folder."""

Q35_DEVICES = {
    "pci/00:00.0": "8086:29c0",
    "pci/00:1f.0": "8086:2918",
    "pci/00:1f.2": "8086:2922",
    "pci/00:1f.3": "8086:2930",
}
"""What QEMU's q35 has without being asked (hw/i386/pc_q35.c): host bridge, LPC, AHCI, SMBus."""


NOT_GIVEN = bytes(32)
"""Stands for the kernel and initrd of a machine that finds them on its disk."""


@dataclass(frozen=True, slots=True)
class LaunchFiles:
    """What the multiplexer is given: the manifest's file, identities by name, its key file."""

    manifest: Path
    identities: tuple[tuple[str, Path], ...]
    keys: Path


def secure_kernel_manifest() -> bytes:
    """Return the manifest of the secure kernel that is installed here.

    It is made by a process of its own: a manifest has the libraries that its process mapped.
    Raises EnvironmentFault.
    """
    command = [sys.executable, "-m", "undercroft.securekernel.vtpm.manifest"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=MANIFEST_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault("the manifest takes too long", where=command[-1]) from error
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise EnvironmentFault("no manifest could be made", where=command[-1], got=text[-500:])
    return done.stdout


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise EnvironmentFault(f"cannot be read: {error.strerror}", where=str(path)) from error


def _hypervisor() -> Path:
    found = shutil.which(qemu.QEMU)
    if found is None:
        raise EnvironmentFault(
            f"{qemu.QEMU} is not installed", remedy="apt-get install qemu-system-x86"
        )
    return Path(found).resolve()


def vtpm_identity(tpm: Path) -> bytes:
    """Return the SHA-256 of the EK certificate of the TPM in ``tpm``; empty if none is kept."""
    path = tpm / EK_CERTIFICATE
    return _digest(path) if path.is_file() else b""


def _describe(
    spec: MachineSpec, vtpm: bytes, firmware: bytes, variables: bytes, kernel: bytes, initrd: bytes
) -> bytes:
    return encode_descriptor(
        VmDescriptor(
            name=spec.name,
            hypervisor=_digest(_hypervisor()),
            machine=qemu.machine(spec.chain),
            accelerator="kvm" if spec.accel is Accel.KVM else "tcg",
            cpu=spec.cpu,
            vcpus=spec.cpus,
            memory=spec.memory_mb << 20,
            firmware=firmware,
            variables=variables,
            kernel=kernel,
            initrd=initrd,
            command_line="" if spec.disk else spec.command_line,
            devices={
                **Q35_DEVICES,
                **_boot_devices(spec),
                "chardev/compat_monitor0": "chardev-socket",
                "chardev/compat_monitor1": "chardev-socket",
                "chardev/serial": "chardev-socket",
                "chardev/vtpm": "chardev-socket",
                "object/ram": "memory-backend-file",
                "tpm/tpm": qemu.tpm_device(spec.chain),
            },
            network=(),
            vtpm=vtpm,
        )
    )


def _boot_devices(spec: MachineSpec) -> dict[str, str]:
    tpm = qemu.tpm_device(spec.chain)
    flash = {"block/pflash0": "raw read-only", "block/pflash1": "raw read-write"}
    if spec.chain is Chain.LEGACY:
        flash = {}
    if spec.disk is None:
        return {**flash, "peripheral-anon/device[0]": tpm}
    return {
        **flash,
        "block/disk": "raw read-write",
        "pci/00:01.0": "1af4:1001",  # virtio-blk on the root bus: transitional
        "peripheral-anon/device[0]": "virtio-blk-pci",
        "peripheral-anon/device[1]": tpm,
    }


def describe(build: GuestBuild, spec: MachineSpec, vtpm: bytes) -> bytes:
    """Return the descriptor of ``spec``, from the files as they are now."""
    firmware, variables = _digest(spec.firmware_code), _digest(build.firmware_vars.path)
    if spec.disk is not None:
        return _describe(spec, vtpm, firmware, variables, NOT_GIVEN, NOT_GIVEN)
    return _describe(spec, vtpm, firmware, variables, _digest(spec.kernel), _digest(spec.initrd))


def expected_descriptor(build: GuestBuild, spec: MachineSpec, vtpm: bytes) -> bytes:
    """Return the descriptor that ``spec`` should have, from the digests of ``build``."""

    def built(file: BuiltFile) -> bytes:
        return bytes.fromhex(file.sha256)

    firmware, variables = built(build.firmware_code), built(build.firmware_vars)
    if build.disk is not None:
        return _describe(spec, vtpm, firmware, variables, NOT_GIVEN, NOT_GIVEN)
    return _describe(spec, vtpm, firmware, variables, built(build.kernel), built(build.initrd))


def guest_kernel(release: str, vmlinuz: bytes) -> bytes:
    """Return the identity of the kernel that the machine is given: text of two lines."""
    return f"release: {release}\nvmlinuz: sha256:{vmlinuz.hex()}\n".encode()


def write_launch(build: GuestBuild, spec: MachineSpec, home: Path) -> LaunchFiles:
    """Write what the launch is to measure into the guest's folder.

    The manifest is kept under ``home`` too: the guest's secure kernel stays known when another
    version is installed while the guest runs.
    """
    folder = spec.folder / "launch"
    folder.mkdir(exist_ok=True)
    descriptor = describe(build, spec, vtpm_identity(spec.folder / "tpm"))
    contents = {
        "manifest": _kept(secure_kernel_manifest(), home / MANIFESTS),
        VM_DESCRIPTOR: descriptor,
        GUEST_KERNEL: guest_kernel(build.kernel_release, _digest(spec.kernel)),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    identities = tuple((name, folder / name) for name in (VM_DESCRIPTOR, GUEST_KERNEL))
    return LaunchFiles(folder / "manifest", identities, folder / "keys.json")


def _kept(manifest: bytes, folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(manifest).hexdigest()
    path.write_bytes(manifest)
    for old in sorted(folder.iterdir(), key=lambda kept: -kept.stat().st_mtime)[KEPT_MANIFESTS:]:
        old.unlink(missing_ok=True)
    return manifest


def _manifests(home: Path) -> list[tuple[bytes, Provenance]]:
    """Return the manifest of the secure kernel that is installed, then those that were."""
    found = {secure_kernel_manifest(): _INSTALLED}
    for path in sorted((home / MANIFESTS).glob("*")):
        found.setdefault(path.read_bytes(), _WAS_INSTALLED)
    return list(found.items())


def manifest_references(home: Path) -> ReferenceSet:
    """Return the reference values for PCR 17: the secure kernels that are or were installed."""
    return launch_references(_manifests(home), {})


def identity_references(
    build: GuestBuild, spec: MachineSpec, vtpm: bytes, home: Path
) -> ReferenceSet:
    """Return the reference values for PCR 17 and 18 of a machine of ours."""
    kernel = guest_kernel(build.kernel_release, bytes.fromhex(build.kernel.sha256))
    machine = Provenance(Grade.BUILT, note="described from the build and the machine's options")
    return launch_references(
        _manifests(home),
        {
            VM_DESCRIPTOR: (expected_descriptor(build, spec, vtpm), machine),
            GUEST_KERNEL: (kernel, build.kernel.provenance),
        },
    )


_INSTALLED = Provenance(Grade.BUILT, note="computed from the code that is installed here")
_WAS_INSTALLED = Provenance(
    Grade.BUILT, note="computed from the code that was installed here when a guest was started"
)
