"""Records event logs of real firmware and boot loaders, with what the TPM holds at the end.

    python3 tests/vectors/eventlog/record.py PACKAGES [CASE ...]

PACKAGES is a folder into which these Debian 12 packages were unpacked (``dpkg -x``): a
linux-image-cloud-amd64 kernel, shim-signed, grub-efi-amd64-signed, systemd-boot-efi and
sbsigntool.  Needs qemu-system-x86, swtpm, swtpm-tools, ovmf, seabios, busybox-static and
binutils, and about a minute for each case.  Each boots a kernel with a small initramfs that
prints the kernel's copy of the event log and the PCRs, and powers off.  ``recorded/<case>.bin``
is the log, ``recorded/pcrs.json`` what the TPM said: not what the log leads to.

Every recording differs a little (addresses, identifiers), so no test makes these again.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from undercroft.guests.cpio import directory, file, write_cpio

HERE = Path(__file__).parent / "recorded"
OVMF = Path("/usr/share/OVMF")
KEY = Path("/usr/share/ovmf/PkKek-1-snakeoil.key")
CERTIFICATE = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")
COMMAND_LINE = "console=ttyS0 quiet loglevel=0 panic=-1"
TIMEOUT_S = 300

INIT = """\
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t securityfs securityfs /sys/kernel/security
echo BEGIN
cd /sys/class/tpm/tpm0
for bank in pcr-*; do
  for pcr in $bank/*; do echo "$pcr: $(busybox cat $pcr)"; done
done
busybox sed 's/^PCR-0*\\([0-9]\\)/pcr-sha1\\/\\1/' device/pcrs 2>/dev/null
echo LOG
busybox base64 /sys/kernel/security/tpm0/binary_bios_measurements
echo END
busybox poweroff -f
"""


def initramfs() -> bytes:
    busybox = Path("/bin/busybox").read_bytes()
    folders = [directory(path) for path in ("/proc", "/sys", "/dev")]
    programs = [file("/bin/busybox", busybox, mode=0o755), file("/init", INIT.encode(), mode=0o755)]
    return write_cpio([*folders, *programs])


class Packages:
    """The unpacked packages, and a folder for what is made of them."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        self.work = work
        self.kernel = next((root / "boot").glob("vmlinuz-*"))
        self.initrd = work / "initrd.img"
        self.initrd.write_bytes(initramfs())

    def path(self, name: str) -> Path:
        return self.root / name

    def signed(self, image: Path) -> Path:
        """Sign an EFI image with ovmf's snake-oil key, which OVMF_VARS_4M.snakeoil.fd trusts."""
        key = self.work / "key.pem"
        run("openssl", "pkey", "-in", KEY, "-passin", "pass:snakeoil", "-out", key)
        out = self.work / f"{image.name}.signed"
        run(
            self.path("usr/bin/sbsign"), "--key", key, "--cert", CERTIFICATE, "--output", out, image
        )
        return out

    def uki(self) -> Path:
        """Make a unified kernel image of the stub, the kernel, the initrd and a command line."""
        release, line = self.work / "osrel", self.work / "cmdline"
        release.write_text('ID=debian\nNAME="Debian"\nVERSION_ID="12"\n')
        line.write_text(COMMAND_LINE)
        sections = {".osrel": (release, 0x20000), ".cmdline": (line, 0x30000)}
        sections |= {".linux": (self.kernel, 0x2000000), ".initrd": (self.initrd, 0x3000000)}
        arguments: list[str | Path] = []
        for name, (contents, address) in sections.items():
            arguments += [f"--add-section={name}={contents}"]
            arguments += [f"--change-section-vma={name}={address:#x}"]
        out = self.work / "debian.efi"
        stub = self.path("usr/lib/systemd/boot/efi/linuxx64.efi.stub")
        run("objcopy", *arguments, stub, out)
        return out


def run(*arguments: str | Path) -> None:
    subprocess.run([str(argument) for argument in arguments], check=True, capture_output=True)


def firmware(packages: Packages, variables: str, *, secure: bool) -> list[str]:
    copy = packages.work / "vars.fd"
    shutil.copy(OVMF / variables, copy)
    code = OVMF / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd")
    protect = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if secure else []
    return [
        "-machine", f"q35,smm={'on' if secure else 'off'}", *protect,
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
        "-drive", f"if=pflash,format=raw,unit=1,file={copy}",
    ]  # fmt: skip


def kernel(packages: Packages, image: Path | None = None) -> list[str]:
    image = image or packages.kernel
    return ["-kernel", str(image), "-initrd", str(packages.initrd), "-append", COMMAND_LINE]


def system_partition(packages: Packages, files: dict[str, Path | str]) -> list[str]:
    root = packages.work / "esp"
    for name, contents in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, Path):
            shutil.copy(contents, target)
        else:
            target.write_text(contents)
    disk = f"file=fat:rw:{root},format=raw,if=none,id=esp"
    return ["-drive", disk, "-device", "virtio-blk-pci,drive=esp,bootindex=0"]


def direct_kernel(packages: Packages) -> list[str]:
    return firmware(packages, "OVMF_VARS_4M.fd", secure=False) + kernel(packages)


def direct_kernel_secureboot(packages: Packages) -> list[str]:
    signed = packages.signed(packages.kernel)
    machine = firmware(packages, "OVMF_VARS_4M.snakeoil.fd", secure=True)
    return machine + kernel(packages, signed)


def systemd_boot_uki(packages: Packages) -> list[str]:
    loader = packages.path("usr/lib/systemd/boot/efi/systemd-bootx64.efi")
    files: dict[str, Path | str] = {
        "EFI/BOOT/BOOTX64.EFI": packages.signed(loader),
        "EFI/Linux/debian.efi": packages.signed(packages.uki()),
        "loader/loader.conf": "timeout 0\n",
    }
    machine = firmware(packages, "OVMF_VARS_4M.snakeoil.fd", secure=True)
    return machine + system_partition(packages, files)


def shim_grub_secureboot(packages: Packages) -> list[str]:
    config = f"linux /vmlinuz {COMMAND_LINE}\ninitrd /initrd.img\nboot\n"
    files: dict[str, Path | str] = {
        "EFI/BOOT/BOOTX64.EFI": packages.path("usr/lib/shim/shimx64.efi.signed"),
        "EFI/BOOT/grubx64.efi": packages.path("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
        "EFI/debian/grub.cfg": config,
        "vmlinuz": packages.kernel,
        "initrd.img": packages.initrd,
    }
    machine = firmware(packages, "OVMF_VARS_4M.ms.fd", secure=True)
    return machine + system_partition(packages, files)


def seabios(packages: Packages) -> list[str]:
    return ["-machine", "q35", *kernel(packages)]


CASES: dict[str, tuple[Callable[[Packages], list[str]], str]] = {
    "ovmf-direct-kernel": (direct_kernel, "tpm2"),
    "ovmf-secureboot-direct-kernel": (direct_kernel_secureboot, "tpm2"),
    "ovmf-secureboot-systemd-boot-uki": (systemd_boot_uki, "tpm2"),
    "ovmf-secureboot-shim-grub": (shim_grub_secureboot, "tpm2"),
    "seabios-tpm2": (seabios, "tpm2"),
    "seabios-tpm12": (seabios, "tpm12"),
}


@contextmanager
def software_tpm(work: Path, kind: str) -> Iterator[list[str]]:
    """Run swtpm with the banks SHA-1 and SHA-256; yield QEMU's arguments."""
    state, socket = work / "tpm", work / "tpm.sock"
    state.mkdir()
    version = ["--tpm2"] if kind == "tpm2" else []
    if version:
        banks = ["--pcr-banks", "sha1,sha256"]
        run("swtpm_setup", *version, "--tpmstate", state, *banks, "--overwrite")
    control = ["--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"]
    tpm = subprocess.Popen(["swtpm", "socket", *version, *control, "--terminate"])
    try:
        device = "tpm-crb" if version else "tpm-tis"
        yield [
            "-chardev", f"socket,id=tpm,path={socket}",
            "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", f"{device},tpmdev=tpm",
        ]  # fmt: skip
    finally:
        tpm.terminate()
        tpm.wait()


def record(name: str, root: Path) -> tuple[bytes, dict[str, dict[str, str]]]:
    make, kind = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        packages = Packages(root, Path(folder))
        machine = make(packages)
        with software_tpm(packages.work, kind) as tpm:
            common = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            common += ["-cpu", "max", "-m", "512M", "-serial", "stdio"]
            command = ["qemu-system-x86_64", *common, *machine, *tpm]
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
    return _read(done.stdout.decode("ascii", "replace"))


def _read(serial: str) -> tuple[bytes, dict[str, dict[str, str]]]:
    said, _, rest = serial.replace("\r", "").rpartition("BEGIN\n")[2].partition("LOG\n")
    log = base64.b64decode(rest.partition("END")[0])
    pcrs: dict[str, dict[str, str]] = {}
    for bank, pcr, value in re.findall(r"^pcr-(\w+)/(\d+): ([0-9A-F ]+)$", said, re.MULTILINE):
        pcrs.setdefault(bank, {})[pcr] = value.replace(" ", "").lower()
    if not log or not pcrs:
        raise RuntimeError(f"the guest printed no log or no PCRs:\n{serial[-2000:]}")
    return log, pcrs


def main(arguments: list[str]) -> None:
    root, names = Path(arguments[0]), arguments[1:] or list(CASES)
    HERE.mkdir(exist_ok=True)
    table = HERE / "pcrs.json"
    known = json.loads(table.read_text()) if table.exists() else {}
    for name in names:
        log, known[name] = record(name, root)
        (HERE / f"{name}.bin").write_bytes(log)
        table.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
