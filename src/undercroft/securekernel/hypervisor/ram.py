"""Guest RAM as this host sees it: a shared file mapped, or a process's memory read."""

from __future__ import annotations

import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.monitor import RamRange


class RamMap:
    """Finds the range of a guest-physical address.  ``ranges`` are sorted and do not overlap."""

    def __init__(self, ranges: Sequence[RamRange]) -> None:
        self.ranges = tuple(ranges)
        self._starts = [entry.paddr for entry in self.ranges]
        self.size = max((entry.paddr + entry.size for entry in self.ranges), default=0)

    def find(self, paddr: int) -> RamRange:
        """Return the range that holds ``paddr``, or raise MemoryFault."""
        index = bisect_right(self._starts, paddr) - 1
        if index >= 0:
            entry = self.ranges[index]
            if paddr < entry.paddr + entry.size:
                return entry
        raise MemoryFault(paddr, why="no RAM there")


class _Block(Protocol):
    """One RAM block: bytes at an offset."""

    def read(self, offset: int, size: int) -> bytes: ...

    def view(self, offset: int, size: int) -> memoryview: ...


class SharedBlock:
    """A RAM block whose backend is a file mapped shared: no copies, no exits, read-only."""

    def __init__(self, path: Path, size: int) -> None:
        try:
            with path.open("rb") as file:
                got = os.fstat(file.fileno()).st_size
                if got < size:
                    raise EnvironmentFault(
                        "the RAM file is too small", where=str(path), expected=size, got=got
                    )
                self._map = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot map guest RAM: {error.strerror or error}", where=str(path)
            ) from error
        self._view = memoryview(self._map).toreadonly()

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of ``size`` bytes at ``offset``."""
        return self._map[offset : offset + size]

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view that the guest may change."""
        return self._view[offset : offset + size]


class ProcessBlock:
    """A RAM block read out of the hypervisor's own address space (``/proc/PID/mem``).

    ``host_address`` is the block's address there.  Needs the right to ptrace the process.
    """

    def __init__(self, pid: int, host_address: int) -> None:
        self._base = host_address
        self._where = f"/proc/{pid}/mem"
        try:
            self._fd = os.open(self._where, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise GuestGone("the hypervisor process ended", where=self._where) from error
        except PermissionError as error:
            raise EnvironmentFault(
                "may not read the hypervisor's memory",
                where=self._where,
                remedy="run with CAP_SYS_PTRACE, or start the guest on a shared memory backend",
            ) from error
        weakref.finalize(self, os.close, self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of ``size`` bytes at ``offset``."""
        return bytes(self._fill(offset, size))

    def view(self, offset: int, size: int) -> memoryview:
        """Return a read-only view of a copy."""
        return memoryview(self._fill(offset, size)).toreadonly()

    def _fill(self, offset: int, size: int) -> bytearray:
        buffer = bytearray(size)
        done = 0
        while done < size:
            try:
                count = os.preadv(self._fd, [memoryview(buffer)[done:]], self._base + offset + done)
            except OSError as error:
                raise GuestGone(
                    f"the hypervisor's memory is gone: {error.strerror}", where=self._where
                ) from error
            if count == 0:
                raise GuestGone("the hypervisor process ended", where=self._where)
            done += count
        return buffer


class GuestRam:
    """PhysicalMemory over RAM blocks: ``blocks`` by the name that ``ranges`` use."""

    def __init__(self, ranges: Sequence[RamRange], blocks: Mapping[str, _Block]) -> None:
        self._map = RamMap(ranges)
        self._blocks = dict(blocks)
        self._last: tuple[int, int, int, Callable[[int, int], bytes]] = (0, 0, 0, self._elsewhere)
        """The range that was read last: where it starts, ends, lies in its block, and its read."""

    @property
    def size(self) -> int:
        """One past the highest guest-physical address that is RAM."""
        return self._map.size

    @property
    def ranges(self) -> tuple[RamRange, ...]:
        """Where RAM is, in order of guest-physical address."""
        return self._map.ranges

    def read(self, paddr: int, size: int) -> bytes:
        """Return a copy of exactly ``size`` bytes at ``paddr``, or raise MemoryFault."""
        start, end, offset, block_read = self._last
        if start <= paddr and paddr + size <= end:
            return block_read(paddr - start + offset, size)
        return self._elsewhere(paddr, size)

    def _elsewhere(self, paddr: int, size: int) -> bytes:
        entry = self._map.find(paddr)
        inside = paddr - entry.paddr
        block = self._blocks[entry.block]
        self._last = (entry.paddr, entry.paddr + entry.size, entry.offset, block.read)
        if size <= entry.size - inside:
            return block.read(entry.offset + inside, size)
        head = entry.size - inside
        first = self._blocks[entry.block].read(entry.offset + inside, head)
        return first + self.read(paddr + head, size - head)

    def view(self, paddr: int, size: int) -> memoryview:
        """Return a read-only view of exactly ``size`` bytes, or raise MemoryFault.

        Bytes that lie in two ranges come as a view of a copy.
        """
        entry = self._map.find(paddr)
        inside = paddr - entry.paddr
        if size <= entry.size - inside:
            return self._blocks[entry.block].view(entry.offset + inside, size)
        return memoryview(self.read(paddr, size))
