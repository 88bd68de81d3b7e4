"""Which accelerator runs a Linux guest here: KVM where it works, else TCG.

That /dev/kvm opens says little: on some nested hosts a guest starts and then hangs in its first
instructions.  So a kernel is booted under KVM, once, until it looks for a root file system.
"""

from __future__ import annotations

import enum
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from undercroft.base import FormatError
from undercroft.formats import strict_json
from undercroft.guests.processes import boot_id

FIRST_LINE_S = 5.0
"""How long until the kernel's first line under KVM; on bare metal it takes 0.3 s."""
BOOTED_S = 20.0
_ARRIVED = b"Unable to mount root fs"


class Accel(enum.Enum):
    """An accelerator, by QEMU's name."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Choice:
    """An accelerator and why it was chosen, in one sentence."""

    accel: Accel
    reason: str


class _Cached(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    works: bool
    reason: str


def kvm_device_fault() -> str:
    """Return what keeps us from opening /dev/kvm; nothing if it opens."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm"
    except OSError as error:
        return f"/dev/kvm does not open: {error.strerror}"
    return ""


def probe_kvm(kernel: Path) -> tuple[bool, str]:
    """Boot ``kernel`` (a bzImage) under KVM; return whether it came up, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="undercroft-kvm-") as folder:
        log = Path(folder, "serial.log")
        command = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"file:{log}", "-kernel", str(kernel),
            "-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
        ]  # fmt: skip
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            return False, "qemu-system-x86_64 is not installed"
        try:
            return _watch(process, log)
        finally:
            process.kill()
            process.wait()


def _watch(process: subprocess.Popen[bytes], log: Path) -> tuple[bool, str]:
    started = time.monotonic()
    text = b""
    while (elapsed := time.monotonic() - started) < BOOTED_S:
        ended = process.poll() is not None
        text = log.read_bytes() if log.is_file() else b""
        if _ARRIVED in text:
            return True, f"a Linux kernel boots under KVM in {elapsed:.1f} s"
        if ended:
            return False, "QEMU with KVM ends at once"
        if b"Linux version" not in text and elapsed > FIRST_LINE_S:
            return False, f"/dev/kvm opens, but a Linux guest hangs: no line in {elapsed:.0f} s"
        time.sleep(0.05)
    return False, f"/dev/kvm opens, but a Linux guest does not boot in {BOOTED_S:.0f} s"


def _host() -> str:
    return f"{platform.release()} {boot_id()}"


def kvm_works(home: Path, kernel: Path) -> tuple[bool, str]:
    """Return :func:`probe_kvm`'s answer, asked once for each boot of this machine."""
    if fault := kvm_device_fault():
        return False, fault  # what a group membership mends at once is not remembered
    path = home / "kvm.json"
    if path.is_file():
        try:
            cached = strict_json.parse(path.read_bytes(), _Cached, "kvm.json", limit=1 << 16)
        except FormatError:
            pass  # a cache of ours: ask again
        else:
            if cached.host == _host():
                return cached.works, cached.reason
    works, reason = probe_kvm(kernel)
    path.write_bytes(strict_json.encode(_Cached(_host(), works, reason)))
    return works, reason


def choose(requested: Accel | None, home: Path, kernel: Path) -> Choice:
    """Return the accelerator to use: what was ``requested``, else KVM if it works, else TCG."""
    if requested is not None:
        return Choice(requested, "asked for")
    works, reason = kvm_works(home, kernel)
    return Choice(Accel.KVM if works else Accel.TCG, reason)
