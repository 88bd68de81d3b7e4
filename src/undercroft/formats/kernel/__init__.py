"""What a Linux kernel package holds, as values: bzImage, ELF, symbols, types, patch sites.

Everything here is derived from the vendor's signed files alone; nothing reads a guest, and
nothing decides whether a guest is right.
"""

from undercroft.formats.kernel.btf import Btf
from undercroft.formats.kernel.bzimage import BzImage, parse_bzimage
from undercroft.formats.kernel.elf import Elf, Section, Segment, parse_elf
from undercroft.formats.kernel.image import KernelImage, load_kernel
from undercroft.formats.kernel.kallsyms import SymbolTable, parse_kallsyms
from undercroft.formats.kernel.kaslr import RelocationTables, parse_relocation_tables
from undercroft.formats.kernel.module import KernelModule, parse_module
from undercroft.formats.kernel.payload import decompress_payload
from undercroft.formats.kernel.sites import Sites

__all__ = [
    "Btf",
    "BzImage",
    "Elf",
    "KernelImage",
    "KernelModule",
    "RelocationTables",
    "Section",
    "Segment",
    "Sites",
    "SymbolTable",
    "decompress_payload",
    "load_kernel",
    "parse_bzimage",
    "parse_elf",
    "parse_kallsyms",
    "parse_module",
    "parse_relocation_tables",
]
