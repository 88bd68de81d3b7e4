"""QEMU's command line for a guest, as a function of what the guest is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from undercroft.guests.accel import Accel
from undercroft.guests.chain import Chain

QEMU = "qemu-system-x86_64"
DISK_SLOT = 1
"""PCI slot of a guest's disk.  It is measured: the firmware makes a boot option of it (PCR 1)."""


def machine(chain: Chain) -> str:
    """Return machine type and options: only with SMM can the firmware keep its variables."""
    return f"q35,smm={'on' if chain.secure_boot else 'off'},memory-backend=ram,vmport=off"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that decides QEMU's command line.  ``cpu`` is QEMU's CPU model and flags.

    Kernel, initrd and command line are given to the machine with ``Chain.DIRECT`` only; otherwise
    ``disk`` has them.
    """

    name: str
    folder: Path
    accel: Accel
    cpu: str
    cpus: int
    memory_mb: int
    ram: Path
    kernel: Path
    initrd: Path
    command_line: str
    firmware_code: Path
    firmware_vars: Path
    vtpm: Path
    one_thread: bool = False
    chain: Chain = Chain.DIRECT
    disk: Path | None = None

    @property
    def qmp(self) -> Path:
        """The control socket for whoever attaches."""
        return self.folder / "qmp.sock"

    @property
    def run_qmp(self) -> Path:
        """The control socket that starts and stops the guest."""
        return self.folder / "qmp-run.sock"

    @property
    def serial(self) -> Path:
        """The serial line."""
        return self.folder / "serial.sock"

    @property
    def serial_log(self) -> Path:
        """What the serial line said."""
        return self.folder / "serial.log"


def tpm_device(chain: Chain) -> str:
    """Return QEMU's name of the TPM interface: SeaBIOS is best served by TIS."""
    return "tpm-tis" if chain is Chain.LEGACY else "tpm-crb"


def default_cpu(accel: Accel) -> str:
    """Return the CPU model for ``accel``: the host's, or the largest that TCG offers."""
    return "host" if accel is Accel.KVM else "max"


def _option(value: object) -> str:
    # QEMU splits option lists at commas; a doubled comma stands for one (qemu(1)).
    return str(value).replace(",", ",,")


def _firmware(spec: MachineSpec) -> list[str]:
    if spec.chain is Chain.LEGACY:
        return ["-bios", str(spec.firmware_code)]
    variables = f"if=pflash,format=raw,unit=1,file={_option(spec.firmware_vars)}"
    code = f"if=pflash,format=raw,unit=0,readonly=on,file={_option(spec.firmware_code)}"
    secure = ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return ["-drive", code, "-drive", variables, *(secure if spec.chain.secure_boot else [])]


def _started_from(spec: MachineSpec) -> list[str]:
    if spec.chain is Chain.DIRECT:
        return ["-kernel", str(spec.kernel), "-initrd", str(spec.initrd),
                "-append", spec.command_line]  # fmt: skip
    if spec.disk is None:
        return []
    return ["-drive", f"if=none,id=disk,format=raw,file={_option(spec.disk)}",
            "-device", f"virtio-blk-pci,drive=disk,bootindex=0,addr={DISK_SLOT:#x}"]  # fmt: skip


def arguments(spec: MachineSpec) -> list[str]:
    """Return the command that starts the machine of ``spec``."""
    tcg = "tcg,thread=multi" if spec.cpus > 1 else "tcg"
    if spec.one_thread:
        tcg = "tcg,thread=single"
    memory = f"size={spec.memory_mb}M,mem-path={_option(spec.ram)},share=on"
    return [
        QEMU,
        "-name", f"{_option(spec.name)},debug-threads=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", machine(spec.chain),
        "-accel", "kvm" if spec.accel is Accel.KVM else tcg,
        "-cpu", spec.cpu, "-smp", str(spec.cpus), "-m", f"{spec.memory_mb}M",
        # Shared, so that the secure kernel maps the same pages.
        "-object", f"memory-backend-file,id=ram,{memory}",
        *_firmware(spec),
        *_started_from(spec),
        "-chardev", f"socket,id=vtpm,path={_option(spec.vtpm)}",
        "-tpmdev", "emulator,id=tpm,chardev=vtpm",
        "-device", f"{tpm_device(spec.chain)},tpmdev=tpm",
        "-chardev", f"socket,id=serial,path={_option(spec.serial)},server=on,wait=off,"
        f"logfile={_option(spec.serial_log)},logappend=off",
        "-serial", "chardev:serial",
        "-qmp", f"unix:{_option(spec.qmp)},server=on,wait=off",
        "-qmp", f"unix:{_option(spec.run_qmp)},server=on,wait=off",
    ]  # fmt: skip
