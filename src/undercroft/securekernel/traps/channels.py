"""Who else could write to the guest's RAM, around the traps.

A trap watches one address space. Found in /proc are: other processes that map the same memory
writable, or hold it open for writing (vhost-user back ends are among them), a second writable
mapping in the hypervisor itself, and VFIO, whose devices write through the IOMMU and never fault.
Kernel vhost writes through the hypervisor's address space and is covered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.guest import GuestGone

_MAP = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) (?P<offset>[0-9a-f]+) "
    r"(?P<device>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+)"
)
_WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True, slots=True)
class UncoveredChannel:
    """A way to write guest RAM that no trap sees: its kind, the process and a sentence."""

    kind: str
    pid: int
    detail: str


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    offset: int
    writable: bool
    shared: bool
    file: tuple[str, int]

    @property
    def base(self) -> int:
        """Where the file's first byte would be: the pieces of one mapping share it."""
        return self.start - self.offset


def uncovered_channels(
    pid: int, *hosts: int, proc: Path = Path("/proc")
) -> tuple[UncoveredChannel, ...]:
    """Return every channel found for the RAM mapped at addresses ``hosts`` in process ``pid``.

    Each mapping is looked for once, however many of the addresses it holds.

    Raises GuestGone if the process ended, EnvironmentFault if /proc does not show it to us. What
    other processes hide from us (another user's, without CAP_SYS_PTRACE) is itself reported.
    """
    own = _mappings(proc / str(pid))
    if own is None:
        raise EnvironmentFault(
            "may not read the hypervisor's mappings",
            where=f"process {pid}",
            remedy="run as root or with CAP_SYS_PTRACE",
        )
    blocks: dict[tuple[tuple[str, int], int], _Mapping] = {}
    for host in hosts:
        ram = next((m for m in own if m.start <= host < m.end), None)
        if ram is None:
            raise GuestGone("the hypervisor no longer maps the guest's RAM", where=f"process {pid}")
        blocks[ram.file, ram.base] = ram
    found = list(_vfio(proc, pid))
    for ram in blocks.values():
        if ram.shared:
            found += [
                UncoveredChannel("second-mapping", pid, f"mapped again at {m.start:#x}")
                for m in own
                if m.file == ram.file and m.writable and m.base != ram.base
            ]
            for other in _pids(proc):
                if other not in (pid, os.getpid()):
                    found += _foreign(proc, other, ram.file)
    return tuple(found)


def _pids(proc: Path) -> list[int]:
    return sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())


def _mappings(folder: Path) -> list[_Mapping] | None:
    """Return a process's mappings; None if we may not look; an empty list if it ended."""
    try:
        rows = (folder / "maps").read_text(errors="replace").splitlines()
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [
        _Mapping(
            start=int(match["start"], 16),
            end=int(match["end"], 16),
            offset=int(match["offset"], 16),
            writable=match["rights"][1] == "w",
            shared=match["rights"][3] == "s",
            file=(match["device"], int(match["inode"])),
        )
        for row in rows
        if (match := _MAP.match(row))
    ]


def _foreign(proc: Path, pid: int, file: tuple[str, int]) -> list[UncoveredChannel]:
    mappings = _mappings(proc / str(pid))
    if mappings is None:
        return [UncoveredChannel("hidden-process", pid, "its mappings are hidden from us")]
    found = [
        UncoveredChannel("foreign-mapping", pid, f"maps guest RAM writable at {m.start:#x}")
        for m in mappings
        if m.file == file and m.writable and m.shared
    ]
    for name, target in _descriptors(proc / str(pid)):
        try:
            status = target.stat()
            flags = int(_field(proc / str(pid) / "fdinfo" / name, "flags"), 8)
        except (OSError, ValueError):
            continue  # a socket, a descriptor that just closed
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        if (device, status.st_ino) == file and flags & _WRITING:
            found.append(
                UncoveredChannel("foreign-descriptor", pid, f"holds guest RAM open as fd {name}")
            )
    return found


def _vfio(proc: Path, pid: int) -> Iterator[UncoveredChannel]:
    for _, target in _descriptors(proc / str(pid)):
        try:
            name = str(target.readlink())
        except OSError:
            continue
        if name.startswith("/dev/vfio/") or name == "anon_inode:[vfio-device]":
            yield UncoveredChannel("vfio", pid, f"{name}: DMA through the IOMMU is not trapped")


def _descriptors(folder: Path) -> list[tuple[str, Path]]:
    try:
        return [(entry.name, entry) for entry in (folder / "fd").iterdir()]
    except OSError:
        return []


def _field(path: Path, name: str) -> str:
    for row in path.read_text().splitlines():
        key, _, value = row.partition(":")
        if key == name:
            return value.strip()
    raise ValueError(name)
