"""What we know of a guest that we started ourselves: references, and whom to trust."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.evidence import Trust
from undercroft.guests import qemu
from undercroft.guests.accel import Accel
from undercroft.guests.debian.files import file_references
from undercroft.guests.firmware import firmware_run
from undercroft.guests.info import GuestInfo
from undercroft.guests.launch import identity_references, manifest_references, vtpm_identity
from undercroft.guests.manifest import GuestBuild, load_build
from undercroft.guests.references import derive_references, predict_boot
from undercroft.guests.run import RunOptions
from undercroft.packages.filestore import FileStore
from undercroft.reference.boot import PredictedEvent
from undercroft.reference.model import ReferenceSet, merge
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.authorities import read_authorities
from undercroft.service.enrol import enrol


def guest_references(info: GuestInfo, home: Path, ek_certificate: bytes = b"") -> ReferenceSet:
    """Return the reference values of a running guest of ours, derived from its packages.

    ``ek_certificate`` (DER) is that of its TPM, which its descriptor names.
    """
    build = load_build(info.build.parent)
    machine = _machine_of(info, build, home)
    boot = _boot_references(build, machine, home)
    if build.disk is not None:
        files = file_references(build, FileStore(home / "references"))
        boot = merge(boot.name, (boot, files))
    return with_launch(boot, info, home, ek_certificate)


def with_launch(
    references: ReferenceSet, info: GuestInfo, home: Path, ek_certificate: bytes
) -> ReferenceSet:
    """Return ``references`` and what the launch of a running guest should have measured."""
    if info.vtpm_control is None:
        return references
    build = load_build(info.build.parent)
    machine = _machine_of(info, build, home)
    # A TPM that was made before certificates were kept is described without its identity.
    known = bool(vtpm_identity(info.folder / "tpm"))
    vtpm = hashlib.sha256(ek_certificate).digest() if known and ek_certificate else b""
    identity = identity_references(build, machine, vtpm, home)
    return merge(references.name, (references, identity))


def planned_references(
    build: GuestBuild, options: RunOptions, accel: Accel, home: Path
) -> ReferenceSet:
    """Return the reference values of a guest that has not been started yet."""
    machine = _planned_machine(build, options, accel, home)
    return merge(build.name, (_boot_references(build, machine, home), manifest_references(home)))


def _planned_machine(
    build: GuestBuild, options: RunOptions, accel: Accel, home: Path
) -> qemu.MachineSpec:
    return _machine(
        build,
        home,
        accel=accel,
        cpu=options.cpu or qemu.default_cpu(accel),
        cpus=options.cpus,
        memory_mb=options.memory_mb,
        command_line=f"{build.command_line} {options.extra_command_line}".strip(),
    )


def predicted_events(info: GuestInfo, home: Path) -> tuple[PredictedEvent, ...]:
    """Return what the boot of a guest of ours should have measured."""
    build = load_build(info.build.parent)
    return _predicted(build, _machine_of(info, build, home), home)


def planned_events(
    build: GuestBuild, options: RunOptions, accel: Accel, home: Path
) -> tuple[PredictedEvent, ...]:
    """Return what the boot of a guest that has not been started yet will measure."""
    return _predicted(build, _planned_machine(build, options, accel, home), home)


def _predicted(
    build: GuestBuild, machine: qemu.MachineSpec, home: Path
) -> tuple[PredictedEvent, ...]:
    return predict_boot(
        build,
        firmware_run(replace(machine, name="firmware"), home),
        command_line=machine.command_line,
        memory_mb=machine.memory_mb,
    )


def _machine_of(info: GuestInfo, build: GuestBuild, home: Path) -> qemu.MachineSpec:
    return _machine(
        build,
        home,
        name=info.name,
        accel=Accel(info.accel),
        cpu=info.cpu,
        cpus=info.cpus,
        memory_mb=info.memory_mb,
        command_line=info.command_line,
    )


def _machine(
    build: GuestBuild,
    home: Path,
    *,
    name: str = "firmware",
    accel: Accel,
    cpu: str,
    cpus: int,
    memory_mb: int,
    command_line: str,
) -> qemu.MachineSpec:
    return qemu.MachineSpec(
        name=name,
        folder=home,  # where it runs is chosen by the firmware run
        accel=accel,
        cpu=cpu,
        cpus=cpus,
        memory_mb=memory_mb,
        ram=home / "ram",
        kernel=build.kernel.path,
        initrd=build.initrd.path,
        command_line=command_line,
        firmware_code=build.firmware_code.path,
        firmware_vars=build.firmware_vars.path,
        vtpm=home / "vtpm.sock",
        chain=build.chain,
        disk=build.disk.path if build.disk else None,
    )


def _boot_references(build: GuestBuild, machine: qemu.MachineSpec, home: Path) -> ReferenceSet:
    return derive_references(
        build,
        firmware_run(replace(machine, name="firmware"), home),
        command_line=machine.command_line,
        memory_mb=machine.memory_mb,
    )


def connect_vtpm(info: GuestInfo) -> VtpmClient:
    """Return a connection to the guest's TPM.  Raises EnvironmentFault if it has no interposer."""
    if info.vtpm_control is None:
        raise EnvironmentFault(
            "the guest runs without the TPM interposer: nothing can be quoted from outside",
            where=info.name,
            remedy="stop it and start it again with `undercroft guest run`",
        )
    return VtpmClient(info.vtpm_control)


def enrol_guest(client: VtpmClient, info: GuestInfo, home: Path, now: dt.datetime) -> Trust:
    """Return whom to trust for a guest of ours: its EK is certified by our own authority."""
    authorities = read_authorities(home / "vtpm-ca")
    return enrol(client, info.name, authorities=authorities, now=now)
