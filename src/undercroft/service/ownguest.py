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
from undercroft.reference.model import ReferenceSet
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.service.enrol import authority_certificates, enrol


def guest_references(info: GuestInfo, home: Path) -> ReferenceSet:
    """Return the reference values of a running guest of ours, derived from its packages."""
    build = load_build(info.build.parent)
    return derive_references(
        build,
        firmware_run(machine_of(info, build), home),
        command_line=info.command_line,
        memory_mb=info.memory_mb,
    )


def machine_of(info: GuestInfo, build: GuestBuild) -> qemu.MachineSpec:
    """Return the shape of a running guest: what its firmware sees."""
    return qemu.MachineSpec(
        name=info.name,
        folder=info.folder,
        accel=Accel(info.accel),
        cpu=info.cpu,
        cpus=info.cpus,
        memory_mb=info.memory_mb,
        ram=info.ram,
        kernel=build.kernel.path,
        initrd=build.initrd.path,
        command_line=info.command_line,
        firmware_code=build.firmware_code.path,
        firmware_vars=build.firmware_vars.path,
        vtpm=info.vtpm,
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
