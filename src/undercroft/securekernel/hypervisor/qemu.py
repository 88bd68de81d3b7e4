"""A guest of QEMU, attached to as it runs: nothing but its QMP socket is needed.

Where RAM lies, which file backs it and which process runs it is asked of QEMU itself, never
assumed from the machine type.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor import devstate, monitor
from undercroft.securekernel.hypervisor.controls import QemuControls
from undercroft.securekernel.hypervisor.events import MachineEvents
from undercroft.securekernel.hypervisor.qmp import QmpClient, QmpError
from undercroft.securekernel.hypervisor.ram import GuestRam, ProcessBlock, SharedBlock
from undercroft.securekernel.traps.writetrap import HostRange
from undercroft.securekernel.vcpu import VcpuState

MAX_DEVICE_STATE = 256 << 20
"""The largest device state we read; that of an ordinary machine is 200 KiB."""


class QemuGuest:
    """A running guest.  Implements :class:`undercroft.securekernel.guest.Guest`.

    ``qmp`` is the path of its QMP socket, ``events`` that of a second one, if there is one that
    we may keep for ourselves.  Raises GuestGone if it does not run,
    EnvironmentFault if its RAM cannot be reached.
    """

    def __init__(
        self, qmp: Path, *, name: str = "", timeout: float = 10.0, events: Path | None = None
    ) -> None:
        self._qmp_path = qmp
        self._events_path = events
        self._timeout = timeout
        self._session: QmpClient | None = None
        self._pauses = 0
        with self._connected() as session:
            self.pid = session.peer_pid
            self._pidfd = _open_pidfd(self.pid)
            weakref.finalize(self, os.close, self._pidfd)
            self.name = name or _guest_name(session) or f"qemu-{self.pid}"
            self.memory, self._memory_channel = _attach_ram(session, self.pid)

    @property
    def channels(self) -> tuple[str, ...]:
        """How this guest is seen."""
        return (self._memory_channel, "registers:qemu-device-state")

    @contextmanager
    def _connected(self) -> Iterator[QmpClient]:
        """A QMP session: the one held by an outer block, or a new one for this block."""
        if self._session is not None:
            yield self._session
            return
        with QmpClient(self._qmp_path, timeout=self._timeout) as session:
            self._session = session
            try:
                yield session
            finally:
                self._session = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold every vCPU still inside the block; leave a guest paused that was paused before.

        The guest goes on when the block ends, whatever ended it.
        """
        with self._connected() as session:
            stopped = self._pauses == 0 and _is_running(session)
            if stopped:
                session.execute("stop")
            self._pauses += 1
            try:
                yield
            finally:
                self._pauses -= 1
                if stopped:
                    session.execute("cont")

    def vcpus(self) -> tuple[VcpuState, ...]:
        """Return every vCPU's registers, all of one instant.

        MSRs come from the device state and are None where its layout is not one we know, or
        where it disagrees with what the monitor tells in the same pause.
        """
        with _memory_file() as descriptor:
            with (
                self._connected() as session,
                _shared_with(session, descriptor) as number,
                self.paused(),
            ):
                printed = session.monitor("info registers -a")
                saved = _save_device_state(session, number)
            data = os.pread(descriptor, MAX_DEVICE_STATE, 0) if saved else b""
        return merge_registers(printed, data)

    def cpuid(self) -> tuple[Mapping[tuple[int, int, str], int], ...]:
        """Return the feature registers of every vCPU, as QEMU says that it shows them.

        They are what is left of the CPU model after the accelerator's limits.
        """
        with self._connected() as session:
            answer = session.execute("query-cpus-fast")
            paths = [
                str(entry["qom-path"])
                for entry in (answer if isinstance(answer, list) else ())
                if isinstance(entry, Mapping) and "qom-path" in entry
            ]
            try:
                return tuple(_feature_words(session, path) for path in paths)
            except QmpError:  # not an x86 CPU, or a QEMU without the property
                return ()

    def events(self) -> MachineEvents | None:
        """Begin to listen to what QEMU tells of the machine; None without a second monitor."""
        if self._events_path is None:
            return None
        return MachineEvents(self._events_path, timeout=self._timeout)

    def controls(self) -> QemuControls:
        """Return what a supervisor needs of this guest."""
        return QemuControls(self._qmp_path, self.pid, timeout=self._timeout)

    @contextmanager
    def lent(self, descriptor: int) -> Iterator[int]:
        """Give QEMU a copy of our descriptor inside the block; yield its number there."""
        with self._connected() as session:
            answer = session.execute("add-fd", descriptor=descriptor)
            number, copied = (
                (answer.get("fdset-id"), answer.get("fd"))
                if isinstance(answer, Mapping)
                else (0, 0)
            )
            if not isinstance(number, int) or not isinstance(copied, int):
                raise EnvironmentFault("QEMU takes no descriptor", where=self.name, got=str(answer))
            try:
                yield copied
            finally:
                session.execute("remove-fd", {"fdset-id": number})

    def host_ranges(self) -> tuple[HostRange, ...]:
        """Return where QEMU's own address space has each range of guest RAM."""
        with self._connected() as session:
            return tuple(
                HostRange(entry.paddr, entry.size, _host_address(session, entry.paddr))
                for entry in self.memory.ranges
            )

    def check_alive(self) -> None:
        """Return if QEMU still runs, raise GuestGone if it ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(0):
            raise GuestGone("QEMU ended", where=f"{self.name} (process {self.pid})")


def merge_registers(printed: str, device_state: bytes) -> tuple[VcpuState, ...]:
    """Return the vCPUs of the device state if they agree with the printed ones, else those.

    The monitor prints a vCPU in a 32-bit code segment with bases cut to 32 bits; then only the
    device state tells.  Raises FormatError when neither can be parsed.
    """
    try:
        told = monitor.parse_registers(printed)
    except FormatError:
        return devstate.parse_device_state(device_state)
    try:
        saved = devstate.parse_device_state(device_state)
    except FormatError:
        return told
    agree = len(saved) == len(told) and all(
        (a.rip, a.cpl, a.cr0, a.cr3, a.cr4, a.efer, a.idtr, a.gdtr, a.dr)
        == (b.rip, b.cpl, b.cr0, b.cr3, b.cr4, b.efer, b.idtr, b.gdtr, b.dr)
        for a, b in zip(saved, told, strict=True)
    )
    return saved if agree else told


def attach(socket_or_pid: str, *, name: str = "") -> QemuGuest:
    """Attach to the guest with this QMP socket, or of this QEMU process (by its command line)."""
    if not socket_or_pid.isdecimal():
        return QemuGuest(Path(socket_or_pid), name=name)
    first, *others = _qmp_sockets_of(int(socket_or_pid))
    return QemuGuest(first, name=name, events=others[0] if others else None)


def _qmp_sockets_of(pid: int) -> list[Path]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except FileNotFoundError as error:
        raise GuestGone("there is no such process", where=f"process {pid}") from error
    except PermissionError as error:
        raise EnvironmentFault(
            "may not look at the process", where=f"process {pid}", remedy="run as its user or root"
        ) from error
    found = [
        folder / match[1]
        for option, value in itertools.pairwise(words)
        if option in ("-qmp", "--qmp") and (match := re.match(r"unix:([^,]+)", value))
    ]
    if found:
        return found
    raise EnvironmentFault(
        "no -qmp unix socket on its command line",
        where=f"process {pid}",
        remedy="start QEMU with -qmp unix:PATH,server=on,wait=off",
    )


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise GuestGone("QEMU ended", where=f"process {pid}") from error


def _guest_name(session: QmpClient) -> str:
    answer = session.execute("query-name")
    return str(answer.get("name", "")) if isinstance(answer, Mapping) else ""


def _is_running(session: QmpClient) -> bool:
    answer = session.execute("query-status")
    return isinstance(answer, Mapping) and answer.get("running") is True


def _attach_ram(session: QmpClient, pid: int) -> tuple[GuestRam, str]:
    """Return the guest's RAM and the name of the channel it is seen through."""
    backends = _memory_backends(session)
    ranges = monitor.parse_flat_view(session.monitor("info mtree -f"), backends.keys())
    blocks: dict[str, SharedBlock | ProcessBlock] = {}
    for name in {entry.block for entry in ranges}:
        size, path = backends[name]
        if path is not None:
            blocks[name] = SharedBlock(path, size)
        else:
            first = next(entry for entry in ranges if entry.block == name)
            host = _host_address(session, first.paddr)
            blocks[name] = ProcessBlock(pid, host - first.offset)
    shared = all(isinstance(block, SharedBlock) for block in blocks.values())
    return GuestRam(ranges, blocks), "memory:shared-file" if shared else "memory:process"


def _memory_backends(session: QmpClient) -> dict[str, tuple[int, Path | None]]:
    """Return each memory backend's size and, if guest writes reach it, its file."""
    answer = session.execute("query-memdev")
    backends: dict[str, tuple[int, Path | None]] = {}
    for entry in answer if isinstance(answer, list) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
            continue
        name, size = str(entry["id"]), entry.get("size")
        if not isinstance(size, int):
            raise EnvironmentFault(f"memory backend {name} has no size", where="query-memdev")
        path = _property(session, name, "mem-path") if entry.get("share") is True else ""
        backends[name] = (size, Path(path) if path else None)
    return backends


def _property(session: QmpClient, backend: str, name: str) -> str:
    try:
        return str(session.execute("qom-get", {"path": f"/objects/{backend}", "property": name}))
    except QmpError:
        return ""


def _feature_words(session: QmpClient, path: str) -> Mapping[tuple[int, int, str], int]:
    answer = session.execute("qom-get", {"path": path, "property": "feature-words"})
    found: dict[tuple[int, int, str], int] = {}
    for entry in answer if isinstance(answer, list) else ():
        if isinstance(entry, Mapping):
            leaf, subleaf = entry.get("cpuid-input-eax"), entry.get("cpuid-input-ecx", 0)
            register, features = entry.get("cpuid-register"), entry.get("features")
            if isinstance(leaf, int) and isinstance(subleaf, int) and isinstance(features, int):
                found[leaf, subleaf, str(register)] = features
    return found


def _host_address(session: QmpClient, paddr: int) -> int:
    text = session.monitor(f"gpa2hva {paddr:#x}")
    match = re.search(r"is 0x([0-9a-f]+)\s*$", text)
    if not match:
        raise EnvironmentFault(f"gpa2hva: {text.strip()}", where=f"guest physical {paddr:#x}")
    return int(match[1], 16)


@contextmanager
def _memory_file() -> Iterator[int]:
    descriptor = os.memfd_create("undercroft-device-state", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _shared_with(session: QmpClient, descriptor: int) -> Iterator[int | None]:
    """Pass our memory file to QEMU for the block; give the number that it knows it by, or None.

    So no path is shared and nothing is left on a disk.  QEMU wants a descriptor opened with
    exactly the mode it uses: write-only.
    """
    writable = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        answer = session.execute("add-fd", descriptor=writable)
    finally:
        os.close(writable)
    number = answer.get("fdset-id") if isinstance(answer, Mapping) else None
    if not isinstance(number, int):
        yield None
        return
    try:
        yield number
    finally:
        session.execute("remove-fd", {"fdset-id": number})


def _save_device_state(session: QmpClient, number: int | None) -> bool:
    """Have QEMU write its device state into the file that was passed; False if it cannot."""
    if number is None:
        return False
    try:
        session.execute(
            "xen-save-devices-state", {"filename": f"/dev/fdset/{number}", "live": False}
        )
    except QmpError:
        return False
    return True
