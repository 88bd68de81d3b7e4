"""The port through which everything in the secure kernel sees guest-physical memory.

A hypervisor backend implements :class:`PhysicalMemory`; ``arch`` and ``linux`` see nothing else.
"""

from __future__ import annotations

from typing import Protocol


class PhysicalMemory(Protocol):
    """Guest-physical memory, read-only.  Addresses and sizes are in bytes."""

    @property
    def size(self) -> int:
        """One past the highest guest-physical address that can be RAM."""

    def read(self, paddr: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``paddr``, or raise MemoryFault(paddr).

        The bytes are a copy: what is checked is what is used.
        """

    def view(self, paddr: int, size: int) -> memoryview:
        """Return a read-only view of exactly ``size`` bytes, or raise MemoryFault(paddr).

        The guest may change the bytes under the view; use it for comparing, never for parsing.
        A backend without shared memory returns a view of a copy.
        """
