"""What this machine has and lacks for running and watching guests, by trying it."""

from __future__ import annotations

import ctypes
import enum
import fcntl
import importlib.metadata
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.accel import kvm_device_fault, kvm_works
from undercroft.guests.processes import end, spawn
from undercroft.guests.run import MAX_SOCKET_PATH
from undercroft.packages.apt import DEBIAN_KEYRING

PROBE_TIMEOUT_S = 10.0
PYTHON_PURPOSE = "a Python package that we use"
_SHM_WANTED = 1 << 30


class State(enum.Enum):
    """How a check went.  LIMITED: it works, but not in the best way."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for: what was found, what it is for, and what would bring it.

    ``package`` is the Debian package, where one helps; ``needed`` is false for what is only nice.
    """

    name: str
    state: State
    found: str
    purpose: str
    package: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    package: str
    purpose: str
    version: tuple[str, ...] = ("--version",)
    needed: bool = True


_PROGRAMS = (
    _Program("qemu-system-x86_64", "qemu-system-x86", "runs guests"),
    _Program("swtpm", "swtpm", "the guest's vTPM"),
    _Program("swtpm_setup", "swtpm-tools", "makes a vTPM"),
    _Program("swtpm_localca", "swtpm-tools", "certifies a vTPM", version=()),
    _Program("apt-get", "apt", "fetches packages"),
    _Program("gpgv", "gpgv", "verifies the archive's signature"),
    _Program("gcc", "gcc", "compiles the test adversaries", needed=False),
    _Program("make", "make", "compiles the test adversaries", needed=False),
    _Program("mmdebstrap", "mmdebstrap", "builds the Debian guest", needed=False),
    _Program("mcopy", "mtools", "builds the Debian guest", needed=False),
    _Program("mkfs.fat", "dosfstools", "builds the Debian guest", version=(), needed=False),
    _Program("setsid", "util-linux", "lets a guest outlive the command"),
)
_FILES = ((DEBIAN_KEYRING, "debian-archive-keyring", "whom we accept packages from"),)


def _version(program: _Program, path: str) -> str:
    if not program.version:
        return "found"
    try:
        done = subprocess.run(
            [path, *program.version], capture_output=True, text=True,
            timeout=PROBE_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    match = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return match[0] if match else "found"


def programs() -> Iterator[Check]:
    """Look for the programs that we run."""
    for program in _PROGRAMS:
        if (path := shutil.which(program.name)) is None:
            state, found = State.MISSING, "not installed"
        else:
            found = _version(program, path)
            state = State.MISSING if found.startswith("does not run") else State.OK
        yield Check(program.name, state, found, program.purpose, program.package, program.needed)
    for file, package, purpose in _FILES:
        there = file.is_file()
        yield Check(
            file.name, State.OK if there else State.MISSING, str(file) if there else "not there",
            purpose, package,
        )  # fmt: skip


def python_packages() -> Iterator[Check]:
    """Look for the Python packages that ours requires."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Check("python", State.OK if good else State.MISSING, found, "runs this", "python3")
    try:
        requirements = importlib.metadata.requires("undercroft") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("undercroft", State.MISSING, "not installed", "this", needed=False)
        return
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, State.MISSING, "not installed", PYTHON_PURPOSE)
        else:
            yield Check(name, State.OK, version, PYTHON_PURPOSE)


def kvm(home: Path) -> Check:
    """Say whether a Linux guest runs under KVM; needs a built guest for more than opening it."""
    purpose = "runs guests fast"
    if fault := kvm_device_fault():
        return Check("KVM", State.LIMITED, f"{fault}: TCG is used", purpose, needed=False)
    kernel = home / "builds" / "micro" / "vmlinuz"
    if not kernel.is_file():
        return Check(
            "KVM", State.LIMITED, "/dev/kvm opens; tried out after `undercroft guest build`",
            purpose, needed=False,
        )  # fmt: skip
    works, reason = kvm_works(home, kernel)
    if works:
        return Check("KVM", State.OK, reason, purpose, needed=False)
    return Check("KVM", State.LIMITED, f"{reason}: TCG is used", purpose, needed=False)


# linux/userfaultfd.h and asm/unistd_64.h
_SYS_USERFAULTFD = 323
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_FEATURE_WP_SHMEM = 1 << 12


def _userfaultfd_features(flags: int) -> int | None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if descriptor < 0:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, 0, 0))
        features: int = struct.unpack("<QQQ", answer)[1]
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return features


def userfaultfd() -> Check:
    """Say whether write traps on shared guest memory can be set here."""
    purpose = "write traps on guest memory"
    features = _userfaultfd_features(0)
    if features is not None and features & _FEATURE_WP_SHMEM:
        return Check("userfaultfd", State.OK, "write-protects shared memory", purpose, "", False)
    if features is not None:
        found = "no write protection of shared memory (Linux 5.19 has it)"
    elif _userfaultfd_features(_UFFD_USER_MODE_ONLY) is not None:
        found = "for user mode only: root, or sysctl vm.unprivileged_userfaultfd=1"
    else:
        found = "not available"
    return Check("userfaultfd", State.LIMITED, found, purpose, "", False)


def ptrace() -> Check:
    """Say whether we may open the memory of another process that is not our child."""
    purpose = "attaching to a running hypervisor"
    try:
        with tempfile.TemporaryDirectory(prefix="undercroft-") as name:
            process = spawn(["sleep", "60"], pid_file=Path(name, "pid"), log=Path(name, "log"))
            try:
                with Path(f"/proc/{process.pid}/mem").open("rb"):
                    pass
            finally:
                process.send(signal.SIGKILL)
                end(process)
    except PermissionError:
        found = "refused: root, or sysctl kernel.yama.ptrace_scope=0"
        return Check("ptrace", State.LIMITED, found, purpose, "", False)
    except (EnvironmentFault, OSError, subprocess.SubprocessError) as error:
        return Check("ptrace", State.LIMITED, f"could not be tried: {error}", purpose, "", False)
    return Check("ptrace", State.OK, "allowed", purpose, "", False)


def resources(home: Path) -> Iterator[Check]:
    """Look at processors, shared memory and the folder for guests."""
    count = len(os.sched_getaffinity(0))
    state = State.OK if count >= 2 else State.LIMITED
    yield Check("processors", state, str(count), "one for the guest, one to watch it", "", False)
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.is_dir() and os.access(shm, os.W_OK) else 0
    found = f"{free >> 20} MiB free" + ("" if free >= _SHM_WANTED else ": files are used instead")
    state = State.OK if free >= _SHM_WANTED else State.LIMITED
    yield Check("/dev/shm", state, found, "guest memory", "", False)
    longest = len(os.fsencode(home.absolute() / "guests" / ("n" * 12) / "qmp-run.sock"))
    if longest > MAX_SOCKET_PATH:
        found = f"{home}: too long a name for sockets, set UNDERCROFT_HOME"
        yield Check("home", State.MISSING, found, "keeps guests and packages")
        return
    parent = next(p for p in (home.absolute(), *home.absolute().parents) if p.is_dir())
    writable = os.access(parent, os.W_OK)
    yield Check(
        "home", State.OK if writable else State.MISSING,
        f"{home}, {shutil.disk_usage(parent).free >> 20} MiB free"
        + ("" if writable else ", not writable"),
        "keeps guests and packages",
    )  # fmt: skip


def survey(home: Path) -> tuple[Check, ...]:
    """Return every check, in the order in which a person wants to read them."""
    return (
        *programs(), *python_packages(), kvm(home), userfaultfd(), ptrace(), *resources(home),
    )  # fmt: skip


def apt_line(checks: tuple[Check, ...]) -> str:
    """Return the command that installs what is missing; nothing if apt can add nothing."""
    packages = sorted({c.package for c in checks if c.state is State.MISSING and c.package})
    return f"apt-get install {' '.join(packages)}" if packages else ""
