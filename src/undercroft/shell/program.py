"""A drgn program for a guest: memory through our own page walk, knowledge from the package.

Nothing that the guest says of itself is used: the vmcoreinfo that drgn asks for is made here, of
what the package and the hardware roots tell.
"""

from __future__ import annotations

from collections.abc import Callable

import drgn

from undercroft.base import MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.variables import VARIABLES
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.guest import Guest
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.shell.btf_types import BtfTypes

_KERNEL_MAP = 0xFFFFFFFF80000000
_WHOLE = (1 << 64) - 1


def open_program(guest: Guest, image: KernelImage, kernel: LocatedKernel) -> drgn.Program:
    """Return a drgn program that reads ``guest`` as it runs; it cannot write.

    Reads raise drgn.FaultError where the guest has no memory.
    """
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))

    def physical(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        return _read(guest.memory.read, address, count)

    def virtual(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        space = AddressSpace(guest.memory, kernel.cr3, kernel.la57)
        return _read(space.read, address, count)

    prog.add_memory_segment(0, guest.memory.size, physical, physical=True)
    prog.set_linux_kernel_custom(_vmcoreinfo(image, kernel), True)
    prog.add_memory_segment(0, _WHOLE, virtual)  # takes precedence over drgn's own page walk
    section = image.sections[".BTF"]
    types = BtfTypes(prog, image.read(section.address - image.link_base, section.size))
    prog.register_type_finder("undercroft-btf", types.find, enable_index=0)
    symbols = _symbols(image, kernel.slide)
    prog.register_symbol_finder("undercroft-kallsyms", symbols, enable_index=0)
    objects = _Objects(types, image, kernel.slide)
    prog.register_object_finder("undercroft-globals", objects.find, enable_index=0)
    return prog


def _read(read: Callable[[int, int], bytes], address: int, count: int) -> bytes:
    try:
        return read(address, count)
    except MemoryFault as fault:
        raise drgn.FaultError(fault.what, address) from fault


def _vmcoreinfo(image: KernelImage, kernel: LocatedKernel) -> str:
    """Return what drgn wants to know of a kernel, from trusted sources.

    ``phys_base`` is what the kernel calls it: how far its physical place is from its link place.
    """
    text = kernel.text.extents[0].paddr
    phys_base = text - (kernel.base - _KERNEL_MAP) & _WHOLE
    root = image.symbols.address("init_top_pgt") + kernel.slide & _WHOLE
    uts = image.symbols.address("init_uts_ns") + kernel.slide & _WHOLE
    return "\n".join(
        (
            f"OSRELEASE={image.release}",
            "PAGESIZE=4096",
            f"SYMBOL(init_uts_ns)={uts:x}",
            f"SYMBOL(swapper_pg_dir)={root:x}",
            f"NUMBER(phys_base)={phys_base}",
            f"NUMBER(pgtable_l5_enabled)={int(kernel.la57)}",
            f"KERNELOFFSET={kernel.slide:x}",
            f"BUILD-ID={image.build_id}",
            "",
        )
    )


def _symbols(image: KernelImage, slide: int) -> drgn.SymbolIndex:
    """Return the package's symbols where they are in this guest; a size reaches to the next."""
    table = image.symbols
    addresses = [int(address) for address in table.addresses]
    symbols = []
    for index, name in enumerate(table.names):
        start = addresses[index]
        after = addresses[index + 1] if index + 1 < len(addresses) else start + 1
        if start < image.link_base:  # per-CPU: an offset, no address
            continue
        kind = drgn.SymbolKind.FUNC if table.kinds[index] in b"tTwW" else drgn.SymbolKind.OBJECT
        symbols.append(
            drgn.Symbol(
                name, start + slide & _WHOLE, after - start, drgn.SymbolBinding.GLOBAL, kind
            )
        )
    return drgn.SymbolIndex(symbols)


class _Objects:
    """Finds variables and enumerators by name."""

    def __init__(self, types: BtfTypes, image: KernelImage, slide: int) -> None:
        self._types = types
        self._image = image
        self._slide = slide

    def find(
        self, prog: drgn.Program, name: str, flags: drgn.FindObjectFlags, _: str | None
    ) -> drgn.Object | None:
        """The callback that drgn wants."""
        if flags & drgn.FindObjectFlags.CONSTANT and name in self._types.enumerators:
            number, value = self._types.enumerators[name]
            return drgn.Object(prog, self._types.type(number), value=value)
        address = self._image.symbols.get(name)
        if not flags & drgn.FindObjectFlags.VARIABLE or address is None:
            return None
        if address < self._image.link_base:  # per-CPU: drgn adds the CPU's own offset
            known = self._types.variables.get(name)
            return drgn.Object(prog, self._types.type(known), address=address) if known else None
        if name not in VARIABLES:
            return None
        return drgn.Object(prog, VARIABLES[name], address=address + self._slide & _WHOLE)
