"""Guest memory that lies: a real image in which just those words are changed that somebody reads.

A pass over the image records what is read.  A mutation then changes a few of those words: to
nothing, to everything, to another pointer of the same image (so that lists turn into cycles and
one type into another), to a size that cannot be, or a bit.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from undercroft.securekernel.memory import PhysicalMemory

PAGE_SIZE = 4096
_WORD = 8


class RecordingMemory:
    """PhysicalMemory that remembers what was read: (address, size) pairs, each once."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.accesses: dict[tuple[int, int], None] = {}

    @property
    def size(self) -> int:
        """One past the highest address."""
        return self._memory.size

    def read(self, paddr: int, size: int) -> bytes:
        """Return the bytes and remember the access."""
        data = self._memory.read(paddr, size)
        self.accesses[paddr, size] = None
        return data

    def view(self, paddr: int, size: int) -> memoryview:
        """Return a view and remember the access."""
        data = self._memory.view(paddr, size)
        self.accesses[paddr, size] = None
        return data


@dataclass(frozen=True)
class MutatedMemory:
    """PhysicalMemory with ``patches`` (address to bytes) laid over another."""

    memory: PhysicalMemory
    patches: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """One past the highest address."""
        return self.memory.size

    def read(self, paddr: int, size: int) -> bytes:
        """Return the bytes with the patches in them."""
        data = self.memory.read(paddr, size)
        for at, patch in self.patches.items():
            if at < paddr + size and paddr < at + len(patch):
                start, end = max(at, paddr), min(at + len(patch), paddr + size)
                data = data[: start - paddr] + patch[start - at : end - at] + data[end - paddr :]
        return data

    def view(self, paddr: int, size: int) -> memoryview:
        """Return a view of the memory, or of a patched copy."""
        touched = any(
            at < paddr + size and paddr < at + len(patch) for at, patch in self.patches.items()
        )
        return memoryview(self.read(paddr, size)) if touched else self.memory.view(paddr, size)


class Mutator:
    """Makes mutations of one image, the same for the same ``seed``."""

    def __init__(
        self, memory: PhysicalMemory, accesses: Sequence[tuple[int, int]], seed: int
    ) -> None:
        if not accesses:
            raise ValueError("nothing was read: there is nothing to mutate")
        self._memory = memory
        self._accesses = accesses
        self._random = random.Random(seed)

    def mutate(self) -> MutatedMemory:
        """Return the image with one to four places changed."""
        patches = dict(self._patch() for _ in range(self._random.randint(1, 4)))
        return MutatedMemory(self._memory, patches)

    def _place(self) -> int:
        """Return the address of a word that somebody reads."""
        paddr, size = self._random.choice(self._accesses)
        return paddr + self._random.randrange(max(1, size // _WORD)) * _WORD

    def _word(self, paddr: int) -> int:
        inside = min(paddr, self._memory.size - _WORD)
        return int.from_bytes(self._memory.read(inside, _WORD), "little")

    def _patch(self) -> tuple[int, bytes]:
        paddr = self._place()
        kind = self._random.randrange(8)
        if kind == 7:
            return self._page(paddr)
        old = self._word(paddr)
        new = (
            lambda: 0,
            lambda: (1 << 64) - 1,
            lambda: self._word(self._place()),
            lambda: self._random.getrandbits(64),
            lambda: old ^ 1 << self._random.randrange(64),
            lambda: old & ~0xFFFFFFFF | self._random.choice((0x7FFFFFFF, 0xFFFFFFFF, 0x100000)),
            lambda: old + self._random.choice((-8, 8, 16, 4096, -4096)),
        )[kind]()
        return paddr, struct.pack("<Q", new & (1 << 64) - 1)

    def _page(self, paddr: int) -> tuple[int, bytes]:
        """Replace a whole page: by zeros, ones, noise, or another page that somebody reads."""
        page = paddr & ~(PAGE_SIZE - 1)
        other = self._place() & ~(PAGE_SIZE - 1)
        content = self._random.choice(
            (
                lambda: bytes(PAGE_SIZE),
                lambda: b"\xff" * PAGE_SIZE,
                lambda: self._random.randbytes(PAGE_SIZE),
                lambda: self._memory.read(other, PAGE_SIZE),
            )
        )()
        return page, content
