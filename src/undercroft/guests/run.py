"""Starts a guest, waits for it, talks to it, ends it, and finds those that run."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.guests import console, micro, qemu, qmp, tpm
from undercroft.guests.accel import Accel, choose
from undercroft.guests.info import FILE_NAME, GuestInfo, load_info, save_info
from undercroft.guests.launch import LaunchFiles, write_launch
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.processes import ProcessId, end, spawn, tail, wait_gone

MAX_SOCKET_PATH = 107
"""Bytes of the longest unix socket path (unix(7): sun_path has 108 with its end)."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SHM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a guest; None means: what works best here."""

    accel: Accel | None = None
    cpu: str | None = None
    cpus: int = 2
    memory_mb: int = 512
    extra_command_line: str = ""
    interposer: bool | None = None
    """Whether the secure kernel's TPM multiplexer stands between QEMU and swtpm."""
    one_thread: bool = False
    """Whether TCG runs all vCPUs in one thread, which write traps on code need (see traps)."""


def folder_of(home: Path, name: str) -> Path:
    """Return the folder of the guest ``name``.  Raises EnvironmentFault for a strange name."""
    if not _NAME.fullmatch(name):
        raise EnvironmentFault(
            "not a name for a guest", expected="1 to 32 of a-z, 0-9, - and _", got=repr(name)
        )
    return home.absolute() / "guests" / name


class Guest:
    """A guest that was started, by this process or another."""

    def __init__(self, info: GuestInfo) -> None:
        self.info = info

    @classmethod
    def load(cls, home: Path, name: str) -> Guest:
        """Return the guest ``name``.  Raises EnvironmentFault if there is none, FormatError."""
        folder = folder_of(home, name)
        try:
            return cls(load_info(folder))
        except FileNotFoundError as error:
            raise EnvironmentFault(
                f"there is no guest {name}", where=str(folder), remedy="undercroft guest list"
            ) from error

    def is_alive(self) -> bool:
        """Whether the hypervisor process runs."""
        return self.info.qemu.is_alive()

    def state(self) -> str:
        """Return ``running``, ``stopped``, or ``died`` if it ended and left something behind."""
        if self.is_alive():
            return "running"
        others = any(process.is_alive() for process in self.info.processes.values())
        return "died" if others or self.info.ram.exists() else "stopped"

    def _died(self, doing: str) -> EnvironmentFault:
        log = self.info.folder / "qemu.log"
        return EnvironmentFault(
            f"the guest {self.info.name} ended while {doing}",
            where=str(self.info.serial_log),
            got=tail(log) or tail(self.info.serial_log) or "no output",
        )

    def wait_ready(self, timeout_s: float = 60.0) -> float:
        """Wait until the guest's init says that it is up; return how long we waited, in seconds.

        Raises EnvironmentFault with the end of the serial log if it dies or takes too long.
        """
        started = time.monotonic()
        marker = micro.READY_MARKER.encode()
        while (elapsed := time.monotonic() - started) < timeout_s:
            log = self.info.serial_log
            if log.is_file() and marker in log.read_bytes():
                return elapsed
            if not self.is_alive():
                raise self._died("it started")
            time.sleep(0.02)
        raise EnvironmentFault(
            f"the guest {self.info.name} is not ready",
            where=str(self.info.serial_log),
            expected=f"ready within {timeout_s:.0f} s",
            got=tail(self.info.serial_log) or "no output",
        )

    def console(self, command: str, *, timeout_s: float = 20.0) -> str:
        """Run a shell command in the guest and return what it printed; see ``console``."""
        if not self.is_alive():
            raise self._died("it was asked to run a command")
        return console.run_command(self.info.serial, command, timeout_s=timeout_s)

    def read_file(self, path: str, *, timeout_s: float = 30.0) -> bytes:
        """Return the content of a file inside the guest, as the guest tells it."""
        return console.read_file(self.info.serial, path, timeout_s=timeout_s)

    def stop(self) -> None:
        """End the guest and what belongs to it; the vTPM's state and the logs stay."""
        if self.is_alive():
            with contextlib.suppress(EnvironmentFault):
                qmp.execute(self.info.run_qmp, "quit", timeout_s=2.0)
                wait_gone(self.info.qemu, 3.0)
        _clear(self.info)

    def remove(self) -> None:
        """Remove the guest's folder with its vTPM state and logs.  Stop it first."""
        if self.is_alive():
            raise EnvironmentFault(f"the guest {self.info.name} still runs")
        shutil.rmtree(self.info.folder, ignore_errors=True)


def _clear(info: GuestInfo) -> None:
    """End every process of ``info`` and remove the sockets and the RAM file."""
    for name in ("qemu", "vtpm", "swtpm"):
        if process := info.processes.get(name):
            end(process)
    sockets = (info.qmp, info.run_qmp, info.serial, info.vtpm, info.vtpm_control)
    for path in (*sockets, info.folder / "swtpm.sock", info.ram):
        if path is not None:
            path.unlink(missing_ok=True)


def guests(home: Path) -> Iterator[Guest | EnvironmentFault]:
    """Yield every guest under ``home``, and a fault for each whose guest.json cannot be read."""
    for path in sorted((home / "guests").glob(f"*/{FILE_NAME}")):
        try:
            yield Guest(load_info(path.parent))
        except FormatError as error:
            yield EnvironmentFault(
                f"the guest {path.parent.name} cannot be read", where=str(path), got=error
            )


def _ram_file(folder: Path, memory_mb: int) -> Path:
    """Make the file for guest RAM, in shared memory if it fits there, else in ``folder``."""
    size = memory_mb << 20
    path = folder / "ram"
    if _SHM.is_dir() and os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free > size * 1.1:
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        path = _SHM / f"undercroft-{folder.name}-{digest}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.truncate(size)
    return path


def _has_interposer() -> bool:
    return importlib.util.find_spec("undercroft.securekernel.vtpm.__main__") is not None


def _start_vtpm(
    folder: Path, launch: LaunchFiles | None
) -> tuple[dict[str, ProcessId], Path, Path | None]:
    """Start the vTPM; return its processes, the socket for QEMU and the control socket.

    With ``launch`` the multiplexer stands before it and measures that when the machine starts.
    """
    swtpm, upstream = tpm.start_swtpm(folder / "tpm", folder)
    if launch is None:
        return {"swtpm": swtpm}, upstream, None
    try:
        process, listen, control = tpm.start_interposer(upstream, folder, launch)
    except EnvironmentFault:
        end(swtpm)
        raise
    return {"swtpm": swtpm, "vtpm": process}, listen, control


def _prepare_folder(home: Path, name: str) -> Path:
    folder = folder_of(home, name)
    longest = folder / "qmp-run.sock"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
        raise EnvironmentFault(
            "the folder's name is too long for sockets in it",
            where=str(folder),
            expected=f"at most {MAX_SOCKET_PATH} bytes with the socket's name",
            got=len(os.fsencode(longest)),
            remedy="set UNDERCROFT_HOME to a shorter path",
        )
    if (folder / FILE_NAME).is_file():
        with contextlib.suppress(FormatError):
            previous = Guest.load(home, name)
            if previous.is_alive():
                raise EnvironmentFault(
                    f"the guest {name} runs already", remedy=f"undercroft guest stop {name}"
                )
            _clear(previous.info)  # stale: its machine was switched off, or it died
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for log in ("serial.log", "qemu.log", "swtpm.log", "vtpm.log", FILE_NAME):
        (folder / log).unlink(missing_ok=True)
    return folder


def _machine(
    build: GuestBuild, options: RunOptions, accel: Accel, folder: Path
) -> qemu.MachineSpec:
    variables = folder / "OVMF_VARS.fd"
    if not variables.is_file():
        shutil.copyfile(build.firmware_vars.path, variables)
    disk = _own_disk(build, folder)
    return qemu.MachineSpec(
        name=folder.name,
        folder=folder,
        accel=accel,
        cpu=options.cpu or qemu.default_cpu(accel),
        cpus=options.cpus,
        memory_mb=options.memory_mb,
        ram=_ram_file(folder, options.memory_mb),
        kernel=build.kernel.path,
        initrd=build.initrd.path,
        command_line=f"{build.command_line} {options.extra_command_line}".strip(),
        firmware_code=build.firmware_code.path,
        firmware_vars=variables,
        vtpm=folder / "vtpm.sock",
        one_thread=options.one_thread,
        chain=build.chain,
        disk=disk,
    )


def _own_disk(build: GuestBuild, folder: Path) -> Path | None:
    """Return the guest's own copy of its disk, made when it first runs; None if it has none."""
    if build.disk is None:
        return None
    disk = folder / "disk.raw"
    if not disk.is_file():
        new = folder / "disk.new"
        command = ["cp", "--reflink=auto", "--sparse=always", str(build.disk.path), str(new)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        new.rename(disk)
    return disk


def start(
    build: GuestBuild,
    home: Path,
    name: str,
    options: RunOptions | None = None,
    *,
    now: dt.datetime,
    say: Callable[[str], None] = lambda _text: None,
) -> Guest:
    """Start ``build`` as the guest ``name`` and return it; it boots while we return.

    The guest outlives this process.  Its vTPM and firmware variables are kept from one run to
    the next.  Raises EnvironmentFault.
    """
    options = options or RunOptions()
    if shutil.which(qemu.QEMU) is None:
        raise EnvironmentFault(
            f"{qemu.QEMU} is not installed", remedy="apt-get install qemu-system-x86"
        )
    folder = _prepare_folder(home, name)
    choice = choose(options.accel, home, build.kernel.path)
    say(f"starting {name} under {choice.accel.value} ({choice.reason})")
    interposer = _has_interposer() if options.interposer is None else options.interposer
    if not (folder / "tpm" / "tpm2-00.permall").is_file():
        tpm.manufacture(folder / "tpm", home / "vtpm-ca", name=name)
    machine = _machine(build, options, choice.accel, folder)
    try:
        launch = write_launch(build, machine, home) if interposer else None
        processes, vtpm, control = _start_vtpm(folder, launch)
    except EnvironmentFault:
        machine.ram.unlink(missing_ok=True)
        raise
    command = qemu.arguments(replace(machine, vtpm=vtpm))
    try:
        processes["qemu"] = spawn(command, pid_file=folder / "qemu.pid", log=folder / "qemu.log")
    except EnvironmentFault:
        for process in processes.values():
            end(process)
        machine.ram.unlink(missing_ok=True)
        raise
    info = GuestInfo(
        name=name,
        folder=folder,
        build=build.kernel.path.parent / "build.json",
        kernel_release=build.kernel_release,
        accel=choice.accel.value,
        cpu=machine.cpu,
        cpus=machine.cpus,
        memory_mb=machine.memory_mb,
        ram=machine.ram,
        command_line=machine.command_line,
        started=now.isoformat(timespec="seconds"),
        qmp=machine.qmp,
        run_qmp=machine.run_qmp,
        serial=machine.serial,
        serial_log=machine.serial_log,
        vtpm=vtpm,
        vtpm_control=control,
        processes=processes,
        arguments=tuple(command),
    )
    save_info(info)
    return Guest(info)
