"""What we know of a guest that we started ourselves: references, and whom to trust."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.evidence import Trust
from undercroft.guests import qemu
from undercroft.guests.accel import Accel
from undercroft.guests.firmware import firmware_run
from undercroft.guests.info import GuestInfo
from undercroft.guests.manifest import GuestBuild, load_build
from undercroft.guests.references import derive_references
from undercroft.guests.run import RunOptions
from undercroft.reference.model import ReferenceSet
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.enrol import authority_certificates, enrol


def guest_references(info: GuestInfo, home: Path) -> ReferenceSet:
    """Return the reference values of a running guest of ours, derived from its packages."""
    build = load_build(info.build.parent)
    return _references(
        build,
        home,
        accel=Accel(info.accel),
        cpu=info.cpu,
        cpus=info.cpus,
        memory_mb=info.memory_mb,
        command_line=info.command_line,
    )


def planned_references(
    build: GuestBuild, options: RunOptions, accel: Accel, home: Path
) -> ReferenceSet:
    """Return the reference values of a guest that has not been started yet."""
    return _references(
        build,
        home,
        accel=accel,
        cpu=options.cpu or qemu.default_cpu(accel),
        cpus=options.cpus,
        memory_mb=options.memory_mb,
        command_line=f"{build.command_line} {options.extra_command_line}".strip(),
    )


def _references(
    build: GuestBuild,
    home: Path,
    *,
    accel: Accel,
    cpu: str,
    cpus: int,
    memory_mb: int,
    command_line: str,
) -> ReferenceSet:
    machine = qemu.MachineSpec(
        name="firmware",
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
    )
    return derive_references(
        build, firmware_run(machine, home), command_line=command_line, memory_mb=memory_mb
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
    roots = authority_certificates(home / "vtpm-ca")
    return enrol(client, info.name, roots=roots, now=now)
