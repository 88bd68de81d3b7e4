"""QEMU's command line for a guest, as a function of what the guest is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from undercroft.guests.accel import Accel

QEMU = "qemu-system-x86_64"
MACHINE = "q35,smm=off,memory-backend=ram,vmport=off"
"""Machine type and options."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that decides QEMU's command line.  ``cpu`` is QEMU's CPU model and flags."""

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


def default_cpu(accel: Accel) -> str:
    """Return the CPU model for ``accel``: the host's, or the largest that TCG offers."""
    return "host" if accel is Accel.KVM else "max"


def _option(value: object) -> str:
    # QEMU splits option lists at commas; a doubled comma stands for one (qemu(1)).
    return str(value).replace(",", ",,")


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
        "-machine", MACHINE,
        "-accel", "kvm" if spec.accel is Accel.KVM else tcg,
        "-cpu", spec.cpu, "-smp", str(spec.cpus), "-m", f"{spec.memory_mb}M",
        # Shared, so that the secure kernel maps the same pages.
        "-object", f"memory-backend-file,id=ram,{memory}",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_option(spec.firmware_code)}",
        "-drive", f"if=pflash,format=raw,unit=1,file={_option(spec.firmware_vars)}",
        "-kernel", str(spec.kernel), "-initrd", str(spec.initrd), "-append", spec.command_line,
        "-chardev", f"socket,id=vtpm,path={_option(spec.vtpm)}",
        "-tpmdev", "emulator,id=tpm,chardev=vtpm", "-device", "tpm-crb,tpmdev=tpm",
        "-chardev", f"socket,id=serial,path={_option(spec.serial)},server=on,wait=off,"
        f"logfile={_option(spec.serial_log)},logappend=off",
        "-serial", "chardev:serial",
        "-qmp", f"unix:{_option(spec.qmp)},server=on,wait=off",
        "-qmp", f"unix:{_option(spec.run_qmp)},server=on,wait=off",
    ]  # fmt: skip
