"""A running Linux kernel in a guest's memory, read through what its signed package says.

Symbols and types come from the package's vmlinuz only (kallsyms and BTF inside it); from the
guest come bytes, never a name, a length or a layout.  Every read may fail: a guest's pointers are
the guest's to choose.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from undercroft.base import UndercroftError
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.memory import PhysicalMemory

MASK64 = (1 << 64) - 1
_U32 = struct.Struct("<I")
_S32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
MAX_CPUS = 8192


Proven = Callable[[frozenset[int]], frozenset[int]]
"""Of modules, by where their code starts: those whose code was compared with their packages."""


class StructureError(UndercroftError):
    """A kernel structure that is not as the kernel keeps it: a cycle, a wrong back-pointer.

    ``address`` is where it stands in guest-virtual memory.
    """

    def __init__(self, what: str, address: int, *, expected: object = "", got: object = "") -> None:
        self.address = address
        super().__init__(what, where=f"{address:#x}", expected=expected, got=got)


class Symbols(Protocol):
    """Symbols of the signed kernel, as link addresses; per-CPU symbols are small offsets."""

    def address(self, name: str) -> int:
        """Return the link address of ``name``; raise FormatError if there is none."""

    def get(self, name: str) -> int | None:
        """Return the link address of ``name``, or None."""

    def locate(self, address: int) -> tuple[str, int]:
        """Return the symbol that the link address falls behind, and the distance."""


class Types(Protocol):
    """Types of the signed kernel; sizes and offsets in bytes, FormatError if there is none."""

    def size_of(self, name: str) -> int:
        """Return the size of struct ``name``."""

    def offset_of(self, name: str, path: str) -> int:
        """Return the offset of member ``path`` ("a.b.c") in struct ``name``."""

    def has_member(self, name: str, path: str) -> bool:
        """Tell whether struct ``name`` exists and has member ``path``."""


class Image(Protocol):
    """What the facts need of the signed kernel; ``formats.kernel.KernelImage`` is one."""

    @property
    def symbols(self) -> Symbols:
        """Symbols from kallsyms."""

    @property
    def btf(self) -> Types:
        """Types from BTF."""

    @property
    def link_base(self) -> int:
        """The link address of the image's first byte."""

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the unrelocated image, ``offset`` from the link base."""


class LiveKernel:
    """The kernel of ``image`` running in ``memory``, moved by ``slide`` bytes (KASLR).

    ``cr3`` is a page-table root that maps the whole kernel, as a processor in the kernel has it.
    Like the AddressSpace in it, an object is for one pass: :meth:`fresh` gives the next.
    Addresses that members return are runtime addresses.  ``proven`` says whose code was compared.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        image: Image,
        *,
        slide: int,
        cr3: int,
        la57: bool,
        proven: Proven | None = None,
    ) -> None:
        self.memory = memory
        self.image = image
        self.slide = slide
        self.proven = proven
        self.space = AddressSpace(memory, cr3, la57)
        self._offsets: dict[tuple[str, str], int] = {}

    def fresh(self) -> LiveKernel:
        """Return a new pass over the same kernel, with no translation remembered."""
        again = LiveKernel(
            self.memory,
            self.image,
            slide=self.slide,
            cr3=self.space.root,
            la57=self.space.la57,
            proven=self.proven,
        )
        again._offsets = self._offsets
        return again

    # What the package knows.

    def symbol(self, name: str) -> int:
        """Return the runtime address of a symbol; raise FormatError if there is none."""
        return (self.image.symbols.address(name) + self.slide) & MASK64

    def find_symbol(self, name: str) -> int | None:
        """Return the runtime address of a symbol, or None."""
        address = self.image.symbols.get(name)
        return None if address is None else (address + self.slide) & MASK64

    def name_of(self, address: int) -> str:
        """Return ``symbol+0x12`` for a runtime address; digits if it is not in the kernel."""
        link = address - self.slide
        end = self.image.symbols.get("_end") or MASK64
        if not self.image.link_base <= link < end:
            return f"{address:#x}"
        name, distance = self.image.symbols.locate(link)
        return f"{name}+{distance:#x}" if distance else name

    def offset(self, struct_name: str, path: str) -> int:
        """Return the offset of a member in bytes; raise FormatError if there is none."""
        key = (struct_name, path)
        known = self._offsets.get(key)
        if known is None:
            known = self._offsets[key] = self.image.btf.offset_of(struct_name, path)
        return known

    def has(self, struct_name: str, path: str) -> bool:
        """Tell whether this kernel's struct has the member."""
        return self.image.btf.has_member(struct_name, path)

    def size_of(self, struct_name: str) -> int:
        """Return the size of a struct in bytes."""
        return self.image.btf.size_of(struct_name)

    # What the guest holds.  Each raises MemoryFault where it cannot be read.

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at a virtual address."""
        return self.space.read(address, size)

    def u8(self, address: int) -> int:
        """Read one byte."""
        return self.space.read(address, 1)[0]

    def u16(self, address: int) -> int:
        """Read a 16-bit unsigned integer."""
        return int.from_bytes(self.space.read(address, 2), "little")

    def u32(self, address: int) -> int:
        """Read a 32-bit unsigned integer."""
        return int(_U32.unpack(self.space.read(address, 4))[0])

    def s32(self, address: int) -> int:
        """Read a 32-bit signed integer."""
        return int(_S32.unpack(self.space.read(address, 4))[0])

    def u64(self, address: int) -> int:
        """Read a 64-bit unsigned integer or a pointer."""
        return int(_U64.unpack(self.space.read(address, 8))[0])

    def member_u32(self, address: int, struct_name: str, path: str) -> int:
        """Read a 32-bit member of the struct at ``address``."""
        return self.u32(address + self.offset(struct_name, path))

    def member_s32(self, address: int, struct_name: str, path: str) -> int:
        """Read a signed 32-bit member of the struct at ``address``."""
        return self.s32(address + self.offset(struct_name, path))

    def member_u64(self, address: int, struct_name: str, path: str) -> int:
        """Read a 64-bit member or pointer of the struct at ``address``."""
        return self.u64(address + self.offset(struct_name, path))

    def text(self, address: int, limit: int) -> str:
        """Read a string of at most ``limit`` bytes, up to its NUL; odd bytes become escapes.

        Never reads past the page in which the string ends.
        """
        data = bytearray()
        while len(data) < limit:
            step = min(limit - len(data), 0x1000 - (address & 0xFFF))
            part = self.space.read(address, step)
            end = part.find(b"\0")
            if end >= 0:
                data += part[:end]
                break
            data += part
            address += step
        return data.decode("ascii", errors="backslashreplace")

    # Per-CPU data.

    def cpu_count(self) -> int:
        """Return nr_cpu_ids, the number of per-CPU areas; raise StructureError if absurd."""
        address = self.symbol("nr_cpu_ids")
        count = self.u32(address)
        if not 1 <= count <= MAX_CPUS:
            raise StructureError("nr_cpu_ids is absurd", address, got=count)
        return count

    def online_cpus(self) -> tuple[int, ...]:
        """Return the numbers of the CPUs in __cpu_online_mask."""
        count = self.cpu_count()
        mask = self.read(self.symbol("__cpu_online_mask"), (count + 63) // 64 * 8)
        bits = int.from_bytes(mask, "little")
        return tuple(cpu for cpu in range(count) if bits >> cpu & 1)

    def per_cpu(self, name: str, cpu: int) -> int:
        """Return the runtime address of a per-CPU variable's instance on ``cpu``."""
        table = self.symbol("__per_cpu_offset")
        return (self.u64(table + 8 * cpu) + self.image.symbols.address(name)) & MASK64


class Budget:
    """How many steps a walk may take; :meth:`spend` raises StructureError when it is used up."""

    def __init__(self, steps: int, what: str) -> None:
        self._left = steps
        self._steps = steps
        self._what = what

    def spend(self, address: int) -> None:
        """Take one step at ``address``."""
        self._left -= 1
        if self._left < 0:
            raise StructureError(
                f"{self._what} does not end", address, expected=f"at most {self._steps} steps"
            )
