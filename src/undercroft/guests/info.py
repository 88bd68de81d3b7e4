"""``guest.json``: what runs, where its sockets are, and who its processes are.

The file is written when a guest starts and read by everything that wants to find it.  Sockets
and logs are named relative to its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from undercroft.base import FormatError
from undercroft.formats import strict_json
from undercroft.guests.processes import ProcessId

FORMAT = "undercroft.guest/1"
FILE_NAME = "guest.json"
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """A guest that was started, in ``folder``.

    ``qmp`` is for whoever attaches; ``run_qmp`` is the runner's own.  ``vtpm`` is the socket
    that QEMU's TPM uses, ``vtpm_control`` that of the interposer, None where there is none.
    ``processes`` has ``qemu``, ``swtpm`` and, with an interposer, ``vtpm``.  ``ram`` is the file
    behind guest-physical memory, ``memory_mb`` its size.
    """

    name: str
    folder: Path
    build: Path
    kernel_release: str
    accel: str
    cpu: str
    cpus: int
    memory_mb: int
    ram: Path
    command_line: str
    started: str
    qmp: Path
    run_qmp: Path
    serial: Path
    serial_log: Path
    vtpm: Path
    vtpm_control: Path | None
    processes: Mapping[str, ProcessId]
    arguments: tuple[str, ...]

    @property
    def qemu(self) -> ProcessId:
        """The hypervisor process."""
        return self.processes["qemu"]


class _Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pid: int
    start_ticks: int
    boot_id: str


class _Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    name: str
    build: str
    kernel_release: str
    accel: str
    cpu: str
    cpus: int
    memory_mb: int
    ram: str
    command_line: str
    started: str
    qmp: str
    run_qmp: str
    serial: str
    serial_log: str
    vtpm: str
    vtpm_control: str | None
    processes: dict[str, _Process]
    arguments: list[str]


def parse_info(data: bytes, folder: Path) -> GuestInfo:
    """Parse a ``guest.json`` that lies in ``folder``.  Raises FormatError."""
    wire = strict_json.parse(data, _Guest, FILE_NAME, limit=_LIMIT)
    if wire.format != FORMAT:
        raise FormatError(FILE_NAME, 0, "another format", expected=FORMAT, got=wire.format[:80])
    if "qemu" not in wire.processes:
        raise FormatError(FILE_NAME, 0, "no process is named qemu")
    return GuestInfo(
        name=wire.name,
        folder=folder,
        build=Path(wire.build),
        kernel_release=wire.kernel_release,
        accel=wire.accel,
        cpu=wire.cpu,
        cpus=wire.cpus,
        memory_mb=wire.memory_mb,
        ram=folder / wire.ram,
        command_line=wire.command_line,
        started=wire.started,
        qmp=folder / wire.qmp,
        run_qmp=folder / wire.run_qmp,
        serial=folder / wire.serial,
        serial_log=folder / wire.serial_log,
        vtpm=folder / wire.vtpm,
        vtpm_control=None if wire.vtpm_control is None else folder / wire.vtpm_control,
        processes={
            name: ProcessId(p.pid, p.start_ticks, p.boot_id) for name, p in wire.processes.items()
        },
        arguments=tuple(wire.arguments),
    )


def encode_info(info: GuestInfo) -> bytes:
    """Write ``info`` as JSON."""

    def inside(path: Path) -> str:
        return str(path.relative_to(info.folder) if path.is_relative_to(info.folder) else path)

    return strict_json.encode(
        _Guest(
            format=FORMAT,
            name=info.name,
            build=str(info.build),
            kernel_release=info.kernel_release,
            accel=info.accel,
            cpu=info.cpu,
            cpus=info.cpus,
            memory_mb=info.memory_mb,
            ram=inside(info.ram),
            command_line=info.command_line,
            started=info.started,
            qmp=inside(info.qmp),
            run_qmp=inside(info.run_qmp),
            serial=inside(info.serial),
            serial_log=inside(info.serial_log),
            vtpm=inside(info.vtpm),
            vtpm_control=None if info.vtpm_control is None else inside(info.vtpm_control),
            processes={
                name: _Process(p.pid, p.start_ticks, p.boot_id)
                for name, p in sorted(info.processes.items())
            },
            arguments=list(info.arguments),
        )
    )


def save_info(info: GuestInfo) -> None:
    """Write ``guest.json``; it is never seen half written."""
    new = info.folder / (FILE_NAME + ".new")
    new.write_bytes(encode_info(info))
    new.replace(info.folder / FILE_NAME)


def load_info(folder: Path) -> GuestInfo:
    """Read the ``guest.json`` in ``folder``.  Raises FormatError, FileNotFoundError."""
    return parse_info((folder / FILE_NAME).read_bytes(), folder)
