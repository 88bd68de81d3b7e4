"""A guest made of bytes: RAM with real page tables in it, and vCPUs that point to them.

What a test puts at virtual addresses is found through the same page walk as in a real guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from undercroft.base import MemoryFault
from undercroft.securekernel.vcpu import DescriptorTable, VcpuState

PAGE_SIZE = 4096
PRESENT, WRITABLE, USER, LARGE = 1, 2, 4, 0x80
NX = 1 << 63


class FakeMemory:
    """PhysicalMemory over a bytearray; ``holes`` are (start, end) ranges that are not RAM."""

    def __init__(self, size: int, holes: tuple[tuple[int, int], ...] = ()) -> None:
        self.data = bytearray(size)
        self.holes = holes

    @property
    def size(self) -> int:
        """One past the highest address."""
        return len(self.data)

    def _check(self, paddr: int, size: int) -> None:
        end = paddr + size
        if paddr < 0 or end > len(self.data):
            raise MemoryFault(max(paddr, len(self.data)), why="no RAM there")
        for start, stop in self.holes:
            if paddr < stop and start < end:
                raise MemoryFault(max(paddr, start), why="no RAM there")

    def read(self, paddr: int, size: int) -> bytes:
        """Return a copy of the bytes, or raise MemoryFault."""
        self._check(paddr, size)
        return bytes(self.data[paddr : paddr + size])

    def view(self, paddr: int, size: int) -> memoryview:
        """Return a read-only view of the bytes, or raise MemoryFault."""
        self._check(paddr, size)
        return memoryview(self.data)[paddr : paddr + size].toreadonly()

    def write(self, paddr: int, data: bytes) -> None:
        """Change the bytes at a physical address."""
        self.data[paddr : paddr + len(data)] = data

    def u64(self, paddr: int) -> int:
        """Return the 8-byte little-endian integer at a physical address."""
        return int.from_bytes(self.data[paddr : paddr + 8], "little")

    def put_u64(self, paddr: int, value: int) -> None:
        """Write an 8-byte little-endian integer at a physical address."""
        self.write(paddr, value.to_bytes(8, "little"))


class FakeGuest:
    """A guest with ``pages`` frames of RAM and one address space.

    Frames are given out from the bottom by :meth:`frame`; :meth:`map` makes page tables as
    needed.  Implements :class:`undercroft.securekernel.guest.Guest`.
    """

    def __init__(self, *, pages: int = 1024, la57: bool = False, name: str = "fake") -> None:
        self.name = name
        self.la57 = la57
        self.memory = FakeMemory(pages * PAGE_SIZE)
        self._next = PAGE_SIZE  # frame 0 stays free: a zero pointer is never a table
        self.cr3 = self.frame()
        self.states: tuple[VcpuState, ...] = (self.vcpu(0),)
        self.cpuids: tuple[Mapping[tuple[int, int, str], int], ...] = ()
        self.pauses = 0

    @property
    def channels(self) -> tuple[str, ...]:
        """How this guest is seen."""
        return ("memory:fake", "registers:fake")

    def vcpu(self, index: int, **registers: object) -> VcpuState:
        """Return a vCPU in the kernel, with CR3 and CR4.LA57 of this guest."""
        fields: dict[str, object] = {
            "index": index,
            "rip": 0xFFFFFFFF81000000,
            "cpl": 0,
            "cr0": 0x80050033,
            "cr3": self.cr3,
            "cr4": 0x3006E0 | (1 << 12 if self.la57 else 0) | 1 << 11,
            "efer": 0xD01,
            "idtr": DescriptorTable(0xFFFFFE0000000000, 0xFFF),
            "gdtr": DescriptorTable(0xFFFFFE0000001000, 0x7F),
            "dr": (0, 0, 0, 0, 0xFFFF0FF0, 0x400),
            "lstar": 0,
            "cstar": 0,
            "sysenter_eip": 0,
        }
        return VcpuState(**(fields | registers))  # type: ignore[arg-type]

    def vcpus(self) -> tuple[VcpuState, ...]:
        """Return the vCPUs that the test set."""
        return self.states

    def cpuid(self) -> tuple[Mapping[tuple[int, int, str], int], ...]:
        """Return what the test set."""
        return self.cpuids

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count the pauses; a fake guest never runs."""
        self.pauses += 1
        yield

    def check_alive(self) -> None:
        """A fake guest lives as long as its object."""

    def frame(self) -> int:
        """Return the physical address of a new zeroed frame."""
        paddr = self._next
        if paddr + PAGE_SIZE > self.memory.size:
            raise MemoryError("the fake guest has no frames left")
        self._next += PAGE_SIZE
        return paddr

    def frames(self, count: int) -> int:
        """Return the physical address of ``count`` new zeroed frames in a row."""
        first = self.frame()
        for _ in range(count - 1):
            self.frame()
        return first

    def entry(self, vaddr: int, shift: int, *, root: int | None = None) -> int:
        """Return the physical address of the entry for ``vaddr`` at level ``shift``.

        Tables on the way are made, with all rights, where they are missing.
        """
        table = self.cr3 if root is None else root
        shifts = (48, 39, 30, 21, 12) if self.la57 else (39, 30, 21, 12)
        for level in shifts:
            at = table + 8 * (vaddr >> level & 511)
            if level == shift:
                return at
            if not self.memory.u64(at) & PRESENT:
                self.memory.put_u64(at, self.frame() | PRESENT | WRITABLE | USER)
            table = self.memory.u64(at) & 0x000FFFFFFFFFF000
        raise ValueError(f"no level with shift {shift}")

    def map(
        self,
        vaddr: int,
        size: int = PAGE_SIZE,
        *,
        paddr: int | None = None,
        writable: bool = True,
        executable: bool = False,
        user: bool = False,
        shift: int = 12,
        root: int | None = None,
    ) -> int:
        """Map ``size`` bytes at ``vaddr`` to ``paddr`` (new frames if None); return where.

        ``size`` is a multiple of the page size 1 << ``shift``.
        """
        step = 1 << shift
        first = paddr
        for offset in range(0, size, step):
            target = self.frame() if paddr is None else paddr + offset
            first = target if first is None else first
            rights = PRESENT | (WRITABLE if writable else 0) | (USER if user else 0)
            rights |= (0 if executable else NX) | (LARGE if shift > 12 else 0)
            self.memory.put_u64(self.entry(vaddr + offset, shift, root=root), target | rights)
        assert first is not None  # size > 0
        return first

    def _paddr(self, vaddr: int) -> int:
        shifts = (48, 39, 30, 21, 12) if self.la57 else (39, 30, 21, 12)
        table = self.cr3
        for level in shifts:
            entry = self.memory.u64(table + 8 * (vaddr >> level & 511))
            if not entry & PRESENT:
                raise MemoryFault(vaddr, kind="virtual")
            table = entry & 0x000FFFFFFFFFF000
            if level == 12 or entry & LARGE:
                return (table & ~((1 << level) - 1)) | (vaddr & ((1 << level) - 1))
        raise AssertionError

    def write(self, vaddr: int, data: bytes) -> None:
        """Write at a mapped virtual address, across pages."""
        while data:
            count = min(len(data), PAGE_SIZE - vaddr % PAGE_SIZE)
            self.memory.write(self._paddr(vaddr), data[:count])
            vaddr, data = vaddr + count, data[count:]

    def put_u64(self, vaddr: int, value: int) -> None:
        """Write an 8-byte little-endian integer at a virtual address."""
        self.write(vaddr, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def put_u32(self, vaddr: int, value: int) -> None:
        """Write a 4-byte little-endian integer at a virtual address."""
        self.write(vaddr, (value & 0xFFFFFFFF).to_bytes(4, "little"))
