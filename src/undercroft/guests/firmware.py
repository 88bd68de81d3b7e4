"""What the packaged firmware measures of itself, learned by running it alone.

OVMF unpacks its PEI volume into RAM and runs it there; PlatformPei writes the machine's shape
(memory, vCPUs, address width) into its globals before Tcg2Pei hashes the volume into PCR 0. So
the firmware is run once in the guest's shape, with no disk and no kernel, and the volume is read
from RAM. What is read is checked twice: it differs from the packaged volume in a few bytes only,
and with it PCR 0 replays to what the vTPM then holds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from undercroft.base import EnvironmentFault, HashAlgorithm
from undercroft.formats.firmware import ovmf_volumes
from undercroft.guests import qemu, tpm
from undercroft.guests.chain import Chain
from undercroft.guests.processes import ProcessId, end, spawn, tail
from undercroft.securekernel.vtpm.client import VtpmClient
from undercroft.securekernel.vtpm.rc import TpmError, VtpmUnavailable

PEI_VOLUME_ADDRESS = 0x820000
"""Guest-physical address of OVMF's PEI volume (OvmfPkg/OvmfPkgX64.fdf, MEMFD layout)."""

MAX_DIFFERING = 256
"""Bytes that PlatformPei may fill in; Debian 12's build fills in 20 to 30."""

TIMEOUT_S = 90.0
_BANK = HashAlgorithm.SHA256
_DIRECT_BOOT = ("-kernel", "-initrd", "-append")


@dataclass(frozen=True, slots=True)
class FirmwareRun:
    """The firmware's volumes as they are measured.

    ``pei`` is the PEI volume as it stands in RAM, ``differing`` in how many bytes it differs
    from the packaged one; ``dxe`` is the packaged DXE volume, which is measured as it is.
    """

    pei: bytes
    dxe: bytes
    differing: int


def firmware_run(machine: qemu.MachineSpec, home: Path) -> FirmwareRun:
    """Return what ``machine``'s firmware measures of itself, from the cache or by running it.

    The cache under ``home`` is keyed by firmware and machine shape. Raises EnvironmentFault if
    the firmware does not do what is expected of it, FormatError if it is no OVMF image.
    """
    if machine.chain is Chain.LEGACY:
        return FirmwareRun(b"", b"", 0)  # SeaBIOS does not measure itself
    code = machine.firmware_code.read_bytes()
    packaged, dxe, *_ = ovmf_volumes(code)
    kept = home / "firmware" / f"{_shape(machine, code)}.pei"
    if kept.is_file() and len(pei := kept.read_bytes()) == len(packaged):
        differing = _differing(pei, packaged)
    else:
        pei = _learn(machine, home, packaged, dxe)
        differing = _differing(pei, packaged)
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(".new")
        new.write_bytes(pei)
        new.replace(kept)
    if differing > MAX_DIFFERING:
        raise EnvironmentFault(
            "the firmware in RAM is not the packaged one",
            where=f"PEI volume at {PEI_VOLUME_ADDRESS:#x}",
            expected=f"at most {MAX_DIFFERING} bytes filled in",
            got=f"{differing} bytes differ",
        )
    return FirmwareRun(pei, dxe, differing)


def _shape(machine: qemu.MachineSpec, code: bytes) -> str:
    """Return what names this firmware on a machine of this shape."""
    variables = hashlib.sha256(machine.firmware_vars.read_bytes()).hexdigest()
    shape = [
        hashlib.sha256(code).hexdigest(), variables, machine.accel.value, machine.cpu,
        machine.cpus, machine.memory_mb, machine.chain,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()


def _differing(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _without_kernel(arguments: Sequence[str]) -> list[str]:
    """Return QEMU's command line without the options of direct boot and their values."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument not in _DIRECT_BOOT:
            kept.append(argument)
        skip = argument in _DIRECT_BOOT
    return kept


def _replayed(pei: bytes, dxe: bytes) -> bytes:
    """Return PCR 0 after version string, both volumes and the separator."""
    value = bytes(_BANK.size)
    for measured in (bytes(2), pei, dxe, bytes(4)):
        value = _BANK.hash(value, _BANK.hash(measured))
    return value


def _learn(machine: qemu.MachineSpec, home: Path, packaged: bytes, dxe: bytes) -> bytes:
    with _bare_machine(machine, home) as (bare, control, process):
        deadline = time.monotonic() + TIMEOUT_S
        with VtpmClient(control) as client, bare.ram.open("rb") as ram:
            while time.monotonic() < deadline and process.is_alive():
                ram.seek(PEI_VOLUME_ADDRESS)
                pei = ram.read(len(packaged))
                if _pcr0(client) == _replayed(pei, dxe):
                    return pei
                time.sleep(0.1)
        log = tail(bare.folder / "qemu.log")
    raise EnvironmentFault(
        "the firmware, run alone, did not measure itself as expected",
        where=str(machine.firmware_code),
        expected=f"PCR 0 over version, PEI and DXE volume within {TIMEOUT_S:.0f} s",
        got=log or "another value",
        remedy="this firmware build is not supported; use the distribution's ovmf package",
    )


def _pcr0(client: VtpmClient) -> bytes:
    """Return PCR 0, or nothing while the TPM is not powered or the firmware has not started it."""
    try:
        (bank,) = client.pcr_read({_BANK: (0,)})
    except (TpmError, VtpmUnavailable):
        return b""
    return bank.values[0]


@contextmanager
def _bare_machine(
    machine: qemu.MachineSpec, home: Path
) -> Iterator[tuple[qemu.MachineSpec, Path, ProcessId]]:
    """Run the machine without a kernel, on a vTPM of its own, in a folder that goes away."""
    folder = Path(tempfile.mkdtemp(prefix="undercroft-fw-"))
    processes: list[ProcessId] = []
    try:
        state = folder / "tpm"
        tpm.manufacture(state, home / "vtpm-ca", name="firmware-run")
        swtpm, upstream = tpm.start_swtpm(state, folder)
        processes.append(swtpm)
        interposer, listen, control = tpm.start_interposer(upstream, folder)
        processes.append(interposer)
        bare = replace(
            machine,
            folder=folder,
            ram=folder / "ram",
            firmware_vars=Path(shutil.copy(machine.firmware_vars, folder / "OVMF_VARS.fd")),
            vtpm=listen,
            disk=None,
        )
        with bare.ram.open("wb") as ram:
            ram.truncate(bare.memory_mb << 20)
        command = _without_kernel(qemu.arguments(bare))
        process = spawn(command, pid_file=folder / "qemu.pid", log=folder / "qemu.log")
        processes.append(process)
        yield bare, control, process
    finally:
        for process in reversed(processes):
            end(process)
        shutil.rmtree(folder)
