"""Real kernels under many processors and settings: the machines of the kernel-text matrix.

A machine here is the least that boots a packaged kernel: no firmware, no TPM, an initramfs with
busybox and some of the package's modules, a shell on the serial line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import gzip
import mmap
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.formats.kernel.profile import KernelProfile
from undercroft.guests.console import run_command
from undercroft.guests.cpio import CpioEntry, character_device, directory, file, symlink, write_cpio
from undercroft.guests.micro import APPLETS
from undercroft.packages import Archive, EntryKind, read_deb
from undercroft.packages.apt import PrivateApt
from undercroft.packages.profiles import SHIM_PACKAGE, ProfileStore, shim_certificates
from undercroft.packages.verified import VerifiedPackage
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.linux.text import KernelTextProof

MEMORY_MB = 512
BOOT_TIMEOUT_S = 180.0
READY = "MATRIX-GUEST-READY"
MODULES = (
    "nf_tables", "nft_ct", "xfs", "btrfs", "virtio_net", "virtio_blk", "virtio_scsi",
    "virtio_balloon", "tls", "overlay", "bridge", "tun", "loop", "raid456", "sch_fq", "tcp_bbr",
    "kvm_amd", "vsock_loopback", "nfs", "dm_crypt", "sctp", "ext4",
)  # fmt: skip
"""What the guests load, with what these depend on: as far as the package has it as a module."""

_INIT = f"""\
#!/bin/sh
export PATH=/bin PS1= TERM=dumb
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tracefs trace /sys/kernel/tracing
mount -t debugfs debug /sys/kernel/debug
echo 1 > /proc/sys/kernel/printk
stty -F /dev/ttyS0 -echo -onlcr
while :; do
  echo {READY}
  setsid cttyhack sh
done
"""
_IMAGE = re.compile(r"(linux-image-[a-z0-9.+-]+amd64) \(= ([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kernel of the matrix: its name, the package that depends on it, and the suite."""

    name: str
    meta: str
    backports: bool


FLAVOURS = (
    Flavour("6.1 cloud", "linux-image-cloud-amd64", backports=False),
    Flavour("6.1 generic", "linux-image-amd64", backports=False),
    Flavour("6.12 cloud", "linux-image-6.12-cloud-amd64", backports=False),
    Flavour("6.12 generic", "linux-image-6.12-amd64", backports=False),
    Flavour("6.12 cloud, backports", "linux-image-cloud-amd64", backports=True),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A processor, the number of CPUs and what is added to the command line."""

    name: str
    cpu: str
    cpus: int = 2
    command_line: str = ""


SETTINGS = (
    Setting("max, 2 CPUs", "max"),
    Setting("qemu64, 1 CPU", "qemu64", 1),
    Setting("qemu64, 1 CPU, mitigations=off", "qemu64", 1, "mitigations=off"),
    Setting("EPYC-Rome", "EPYC-Rome"),
    Setting("EPYC-Milan", "EPYC-Milan"),
    Setting("Skylake, retpoline,lfence", "Skylake-Client", 2, "spectre_v2=retpoline,lfence"),
    Setting("Skylake, retbleed=stuff", "Skylake-Client", 2, "retbleed=stuff"),
    Setting("Skylake, ITS forced", "Skylake-Client", 2, "indirect_target_selection=force"),
    Setting("Icelake-Server", "Icelake-Server"),
    Setting("nokaslr", "max", 2, "nokaslr"),
    Setting("4-level paging", "max,la57=off"),
)


class _BackportsApt(PrivateApt):
    """The machine's apt with the backports suite beside the suites it has."""

    def configure(self) -> None:
        """Write the configuration, and one more source: <codename>-backports."""
        super().configure()
        sources = self.root / "etc" / "sources.list.d" / "copied.sources"
        text = sources.read_text()
        match = re.search(r"URIs: (\S+/debian)/?\s", text)
        if match is None:
            raise EnvironmentFault(
                "this machine's apt has no source that backports could be beside"
            )
        uri = match[1]
        sources.write_text(
            text.rstrip("\n")
            + f"\n\nTypes: deb\nURIs: {uri}\nSuites: {self.codename}-backports\n"
            + f"Components: main\nSigned-By: {self.keyring}\n"
        )


@dataclass(frozen=True, slots=True)
class MatrixKernel:
    """A kernel from its verified package, with what boots it.

    The signatures of the vmlinuz and of every module were verified: by the distribution's CA,
    and by the keys inside the vmlinuz.
    """

    flavour: Flavour
    package: str
    profile: KernelProfile
    vmlinuz: Path
    initrd: Path
    load_order: tuple[str, ...]


def _archive(home: Path, flavour: Flavour) -> Archive:
    root = home / ("apt-backports" if flavour.backports else "apt")
    apt = _BackportsApt(root) if flavour.backports else None
    return Archive(root, now=dt.datetime.now(dt.UTC), apt=apt)


def kernel_package(home: Path, flavour: Flavour) -> VerifiedPackage:
    """Fetch the kernel package with its signature chain."""
    archive = _archive(home, flavour)
    meta, _ = archive.find(flavour.meta)
    match = _IMAGE.search(meta.depends)
    if match is None:
        raise EnvironmentFault(f"{flavour.meta} names no kernel package", got=meta.depends)
    return archive.fetch(match[1], match[2])


@functools.cache
def prepare(home: Path, flavour: Flavour, programs: tuple[Path, ...] = ()) -> MatrixKernel:
    """Fetch and verify the kernel package, and build its initramfs."""
    archive = _archive(home, flavour)
    package = kernel_package(home, flavour)
    shim = archive.fetch(SHIM_PACKAGE)
    anchors = shim_certificates(shim.path.read_bytes())
    store = ProfileStore(home / "profiles")
    profile = store.of_package(package.path, sha256=package.sha256, anchors=anchors)
    vmlinuz = next(
        entry.data
        for entry in read_deb(package.path.read_bytes(), lambda path: "/boot/vmlinuz-" in path)
        if entry.kind is EntryKind.FILE
    )
    order = _load_order(profile)
    busybox = archive.fetch("busybox-static")
    shell = next(
        entry.data
        for entry in read_deb(busybox.path.read_bytes(), lambda path: path.endswith("/busybox"))
        if entry.kind is EntryKind.FILE
    )
    folder = home / "matrix" / package.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vmlinuz").write_bytes(vmlinuz)
    entries = _initramfs(shell, {name: profile.module_file(name) for name in order}, programs)
    (folder / "initrd.gz").write_bytes(gzip.compress(write_cpio(entries), 1, mtime=0))
    return MatrixKernel(
        flavour,
        f"{package.name} {package.version}",
        profile,
        folder / "vmlinuz",
        folder / "initrd.gz",
        order,
    )


def _load_order(profile: KernelProfile) -> tuple[str, ...]:
    """Return MODULES and all they depend on, in the order in which they can be loaded."""
    order: list[str] = []

    def add(name: str) -> None:
        module = profile.module(name)
        if name in order or module is None:
            return
        depends = module.modinfo.get("depends", "")
        for each in filter(None, depends.split(",")):
            add(each.replace("-", "_"))
        order.append(name)

    for name in MODULES:
        add(name)
    return tuple(order)


def _initramfs(
    shell: bytes, modules: dict[str, bytes], programs: Sequence[Path]
) -> list[CpioEntry]:
    return [
        *(directory(f"/{name}") for name in ("bin", "dev", "proc", "sys", "tmp", "modules")),
        character_device("/dev/console", 5, 1),
        file("/bin/busybox", shell, mode=0o755),
        *(symlink(f"/bin/{applet}", "busybox") for applet in APPLETS),
        file("/init", _INIT.encode(), mode=0o755),
        *(file(f"/modules/{name}.ko", content) for name, content in modules.items()),
        *(file(f"/bin/{path.name}", path.read_bytes(), mode=0o755) for path in programs),
    ]


class MatrixGuest:
    """A running machine of the matrix."""

    def __init__(
        self, kernel: MatrixKernel, folder: Path, process: subprocess.Popen[bytes]
    ) -> None:
        self.kernel = kernel
        self.folder = folder
        self.process = process
        self.qemu = QemuGuest(folder / "qmp.sock")

    def console(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a command in the guest."""
        return run_command(self.folder / "serial.sock", command, timeout_s=timeout_s)

    def load_modules(self) -> int:
        """Load the package's modules; return how many are loaded now.

        Some refuse: kvm_amd on another processor.
        """
        names = " ".join(self.kernel.load_order)
        command = f"for m in {names}; do insmod /modules/$m.ko 2>/dev/null; done; true"
        self.console(command, timeout_s=300)
        return int(self.console("wc -l < /proc/modules"))

    def attach(self) -> KernelTextProof:
        """Locate the kernel and build its proof."""
        guest = self.qemu
        return KernelTextProof.attach(
            guest.memory,
            guest.vcpus(),
            self.kernel.profile.kernel,
            paused=guest.paused,
            library=self.kernel.profile.module,
        )

    @contextlib.contextmanager
    def flipped(self, paddr: int) -> Iterator[None]:
        """Change one byte of guest memory, as a hidden attacker would, and put it back."""
        with (self.folder / "ram").open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
            before = memory[paddr]
            memory[paddr] = before ^ 0x01
            try:
                yield
            finally:
                memory[paddr] = before


@contextlib.contextmanager
def booted(kernel: MatrixKernel, setting: Setting, folder: Path) -> Iterator[MatrixGuest]:
    """Boot the kernel under a setting; end the machine when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            _command(kernel, setting, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, folder)
        yield MatrixGuest(kernel, folder, process)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _command(kernel: MatrixKernel, setting: Setting, folder: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,memory-backend=ram", "-accel", "tcg",
        "-cpu", setting.cpu, "-smp", str(setting.cpus), "-m", f"{MEMORY_MB}M",
        "-object",
        f"memory-backend-file,id=ram,size={MEMORY_MB}M,mem-path={folder}/ram,share=on",
        "-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initrd),
        "-append", f"console=ttyS0 quiet no_timer_check panic=-1 {setting.command_line}",
        "-chardev", f"socket,id=serial,path={folder}/serial.sock,server=on,wait=off,"
        f"logfile={folder}/serial.log",
        "-serial", "chardev:serial", "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
    ]  # fmt: skip


def _wait_ready(process: subprocess.Popen[bytes], folder: Path) -> None:
    log = folder / "serial.log"
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if log.is_file() and READY.encode() in log.read_bytes():
            time.sleep(0.5)
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    output = (folder / "qemu.log").read_text(errors="replace")[-500:]
    raise EnvironmentFault(
        "the matrix guest did not boot",
        where=str(folder),
        got=output or (log.read_text(errors="replace")[-500:] if log.is_file() else "nothing"),
    )
