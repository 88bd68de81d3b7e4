"""Write traps on the RAM of a guest whose hypervisor already runs.

The hypervisor makes one ``userfaultfd`` call for us (``inject``); we take a copy of the
descriptor and close the hypervisor's, so that the traps live exactly as long as this process: if
we die, waiting vCPUs go on and the guest runs unprotected, which the supervisor has to notice.

A trap sees every write through the hypervisor's own mapping, by a vCPU or an emulated device. It
does not see a write through another mapping of the same memory; ``channels`` looks for those.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.traps import uffd
from undercroft.securekernel.traps.inject import remote_syscall
from undercroft.securekernel.traps.uffd import Userfaultfd

PAGE = 4096
DEVICE = "/dev/userfaultfd"
_SYSCALL_IOCTL = 16
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_SYSCALL_CLOSE = 3
_SYSCALL_PIDFD_GETFD = 438


@dataclass(frozen=True, slots=True)
class HostRange:
    """``size`` bytes of guest RAM at guest-physical ``paddr``, mapped at ``host`` in the VMM."""

    paddr: int
    size: int
    host: int


@dataclass(frozen=True, slots=True)
class TrappedWrite:
    """A write that waits: the guest-physical address and the hypervisor thread (its vCPU)."""

    paddr: int
    thread: int

    @property
    def page(self) -> int:
        """The guest-physical address of the page."""
        return self.paddr & -PAGE


@dataclass(frozen=True, slots=True)
class LostMemory:
    """Guest-physical pages that the hypervisor is about to discard or unmap: cover ends there."""

    paddr: int
    size: int
    how: str


Lend = Callable[[int], AbstractContextManager[int]]
"""Gives a process a copy of our descriptor for as long as the block lasts: its number there."""


class WriteTraps:
    """Protects pages of guest RAM and hands out the writes that hit them.

    Not thread-safe: one thread protects, waits and answers.  Use as a context manager; leaving
    it lifts every protection and lets every waiting writer go on.

    ``lend`` gives the process a descriptor of ours; see :func:`userfaultfd_of`.
    """

    def __init__(self, pid: int, ranges: Sequence[HostRange], lend: Lend | None = None) -> None:
        self._ranges = sorted(ranges, key=lambda entry: entry.host)
        self._hosts = [entry.host for entry in self._ranges]
        for entry in self._ranges:
            refuse_huge_pages(pid, entry.host)
        self._uffd = Userfaultfd(userfaultfd_of(pid, lend))
        self._poll = select.poll()
        self._poll.register(self._uffd.descriptor, select.POLLIN)
        self.lost: list[LostMemory] = []
        """Memory that was lost since someone looked; whoever looks empties it."""
        for entry in self._ranges:
            self._uffd.register(entry.host, entry.size)

    def protect(self, paddr: int, size: int) -> None:
        """Trap writes to every page of ``[paddr, paddr + size)``; raise MemoryFault if not RAM."""
        for host, length in self._hosts_of(paddr, size):
            self._uffd.protect(host, length)

    def lift(self, paddr: int, size: int) -> None:
        """Let writes to the pages of ``[paddr, paddr + size)`` through, waiting ones included."""
        for host, length in self._hosts_of(paddr, size):
            self._uffd.release(host, length)

    def wait(self, timeout: float) -> list[TrappedWrite]:
        """Return the writes that wait, after at most ``timeout`` seconds; empty if none came.

        Raises GuestGone when the hypervisor ended.
        """
        events = self._poll.poll(timeout * 1000)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in events):
            raise GuestGone("the hypervisor process ended")
        writes = []
        for message in self._uffd.read() if events else ():
            if isinstance(message, uffd.LostPages):
                self.lost += self._lost(message)
            else:
                writes.append(TrappedWrite(self._paddr_of(message.address), message.thread))
        return writes

    def _lost(self, message: uffd.LostPages) -> list[LostMemory]:
        """Return the parts of our ranges that lie in the lost pages."""
        found = []
        for entry in self._ranges:
            start = max(entry.host, message.start)
            stop = min(entry.host + entry.size, message.stop)
            if start < stop:
                found.append(
                    LostMemory(entry.paddr + start - entry.host, stop - start, message.how)
                )
        return found

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a write waits."""
        return self._uffd.descriptor

    def close(self) -> None:
        """Lift every protection, let every waiting writer go on, and let go of the hypervisor."""
        self._uffd.close()

    def __enter__(self) -> WriteTraps:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _hosts_of(self, paddr: int, size: int) -> list[tuple[int, int]]:
        """Return the page-aligned host ranges of a guest-physical range, one for each mapping."""
        end = -(-(paddr + size) // PAGE) * PAGE
        at = paddr & -PAGE
        found = []
        while at < end:
            entry = next((r for r in self._ranges if r.paddr <= at < r.paddr + r.size), None)
            if entry is None:
                raise MemoryFault(at, why="no RAM that can be protected")
            length = min(end, entry.paddr + entry.size) - at
            found.append((entry.host + at - entry.paddr, length))
            at += length
        return found

    def _paddr_of(self, host: int) -> int:
        index = bisect_right(self._hosts, host) - 1
        entry = self._ranges[index]
        if index < 0 or host >= entry.host + entry.size:
            raise MemoryFault(host, kind="host", why="a fault outside the registered RAM")
        return entry.paddr + host - entry.host


def userfaultfd_of(pid: int, lend: Lend | None = None) -> int:
    """Return our descriptor of a new userfaultfd that watches the address space of ``pid``.

    A process without privileges may not create one by itself (vm.unprivileged_userfaultfd).  It
    may with /dev/userfaultfd (Linux 6.1), whose rights are checked when it is opened: we open it,
    and ``lend`` it to the process for this one call.

    Raises EnvironmentFault, with what to do, if the process may not be traced or is not allowed
    to create one; GuestGone if it ended.
    """
    try:
        try:
            remote = remote_syscall(pid, uffd.SYSCALL_USERFAULTFD, uffd.FLAGS)
        except PermissionError:
            if lend is None:
                raise
            with _device() as device, lend(device) as number:
                remote = remote_syscall(pid, _SYSCALL_IOCTL, number, uffd.IOC_NEW, uffd.FLAGS)
    except PermissionError as error:
        raise EnvironmentFault(
            "the hypervisor is not allowed to create a userfaultfd",
            where=f"process {pid}",
            remedy="run us as root on Linux 6.1 or later, which has /dev/userfaultfd; or set "
            "vm.unprivileged_userfaultfd=1",
        ) from error
    except OSError as error:
        raise EnvironmentFault(
            f"userfaultfd failed in the hypervisor: {error.strerror}", where=f"process {pid}"
        ) from error
    try:
        return _copy_descriptor(pid, remote)
    finally:
        remote_syscall(pid, _SYSCALL_CLOSE, remote)


@contextmanager
def _device() -> Iterator[int]:
    """Open /dev/userfaultfd; PermissionError if it is not there or not for us."""
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PermissionError(error.errno, f"{DEVICE}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_huge_pages(pid: int, host: int, *, proc: Path = Path("/proc")) -> None:
    """Raise EnvironmentFault if this memory is of hugetlbfs.

    Its pages are protected whole: every write to 2 MiB would stop a vCPU, and cover would end
    with the first one that is none of ours.
    """
    try:
        rows = (proc / str(pid) / "smaps").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestGone("the hypervisor process ended", where=f"process {pid}") from error
    except PermissionError:
        return  # whoever may not read this may not trace the process either, and says so
    inside = False
    for row in rows:
        if match := _MAPPING.match(row):
            inside = int(match[1], 16) <= host < int(match[2], 16)
        elif inside and row.startswith("VmFlags:"):
            if " ht" in row:
                raise EnvironmentFault(
                    "the guest's memory consists of huge pages (hugetlbfs), which cannot be "
                    "trapped page by page",
                    where=f"process {pid}",
                    remedy="back the guest with ordinary memory; transparent huge pages are fine",
                )
            return


def _copy_descriptor(pid: int, remote: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        copy = int(libc.syscall(_SYSCALL_PIDFD_GETFD, pidfd, remote, 0))
    finally:
        os.close(pidfd)
    if copy < 0:
        number = ctypes.get_errno()
        if number == errno.ESRCH:
            raise GuestGone("the hypervisor process ended", where=f"process {pid}")
        raise EnvironmentFault(
            f"cannot copy the hypervisor's userfaultfd: {os.strerror(number)}",
            where=f"process {pid}",
            remedy="run as root or with CAP_SYS_PTRACE",
        )
    return copy
