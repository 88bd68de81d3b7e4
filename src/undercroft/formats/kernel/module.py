"""A kernel module file (.ko): a relocatable ELF, maybe compressed, maybe with a signature behind.

Source: kernel/module/main.c, include/linux/module_signature.h, and the x86-64 psABI for the
relocations.  Whether the signature is good is not checked here.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import zstandard

from undercroft.base import FormatError
from undercroft.formats.kernel.elf import (
    ET_REL,
    SHT_NOTE,
    SHT_RELA,
    SHT_SYMTAB,
    Elf,
    Section,
    parse_elf,
)

_FORMAT = "kernel module"
MAX_MODULE_SIZE = 256 << 20
SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">BBBBB3xI")
_PKEY_ID_PKCS7 = 2
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("shndx", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_NT_GNU_BUILD_ID = 3
STB_WEAK = 2
SHN_UNDEF, SHN_ABS = 0, 0xFFF1


@dataclass(frozen=True, slots=True)
class ModuleSymbol:
    """A symbol: ``section`` is an index, SHN_UNDEF or SHN_ABS; ``value`` is an offset in it."""

    name: str
    section: int
    value: int
    kind: int
    weak: bool


@dataclass(frozen=True, slots=True)
class Relocations:
    """The relocations of one section, as arrays: RELA entries in file order."""

    section: int
    offset: npt.NDArray[np.uint64]
    type: npt.NDArray[np.uint32]
    symbol: npt.NDArray[np.uint32]
    addend: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KernelModule:
    """A parsed module.  ``modinfo`` has the first value of each key.

    ``signature`` is the PKCS#7 message behind the file and ``content`` what it signs; b"" if
    the module is not signed.
    """

    name: str
    elf: Elf
    symbols: tuple[ModuleSymbol, ...]
    relocations: tuple[Relocations, ...]
    modinfo: Mapping[str, str]
    build_id: str
    content: bytes
    signature: bytes

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections, in file order."""
        return self.elf.sections


def parse_module(data: bytes) -> KernelModule:
    """Parse a .ko, .ko.xz, .ko.gz or .ko.zst; raise FormatError if it is not one."""
    content, signature = split_signature(decompress_module(data))
    elf = parse_elf(content)
    if elf.type != ET_REL:
        raise FormatError(_FORMAT, 16, "not a relocatable file", expected=ET_REL, got=elf.type)
    symbols = _symbols(elf)
    modinfo = _modinfo(elf)
    name = modinfo.get("name", "")
    if not name:
        raise FormatError(_FORMAT, 0, "the module has no name in .modinfo")
    return KernelModule(
        name=name,
        elf=elf,
        symbols=symbols,
        relocations=tuple(_relocations(elf, len(symbols))),
        modinfo=modinfo,
        build_id=_build_id(elf),
        content=content,
        signature=signature,
    )


def module_name(content: bytes) -> str:
    """Return a module's name without parsing the rest of it; FormatError if it has none."""
    name = _modinfo(parse_elf(content)).get("name", "")
    if not name:
        raise FormatError(_FORMAT, 0, "the module has no name in .modinfo")
    return name


def decompress_module(data: bytes) -> bytes:
    """Return the module file itself, signature included; FormatError if it does not unpack."""
    try:
        if data.startswith(b"\xfd7zXZ\x00"):
            result = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, MAX_MODULE_SIZE + 1)
        elif data.startswith(b"\x1f\x8b"):
            result = zlib.decompressobj(wbits=31).decompress(data, MAX_MODULE_SIZE + 1)
        elif data.startswith(b"\x28\xb5\x2f\xfd"):
            with zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(data) as stream:
                result = bytes(stream.read(MAX_MODULE_SIZE + 1))
        else:
            result = data
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise FormatError(_FORMAT, 0, f"the compressed data is damaged: {error}") from error
    if len(result) > MAX_MODULE_SIZE:
        raise FormatError(_FORMAT, 0, "the module is too large", expected=MAX_MODULE_SIZE)
    return result


def split_signature(data: bytes) -> tuple[bytes, bytes]:
    """Return (signed content, PKCS#7 message) of a module file; b"" if it is not signed.

    Behind the content stand the message, a ``struct module_signature`` and a magic text.
    """
    if not data.endswith(SIGNATURE_MAGIC):
        return data, b""
    end = len(data) - len(SIGNATURE_MAGIC) - _SIGNATURE.size
    if end < 0:
        raise FormatError(_FORMAT, len(data), "the signature is cut short")
    _, _, id_type, signer, key_id, size = _SIGNATURE.unpack_from(data, end)
    if id_type != _PKEY_ID_PKCS7 or signer or key_id:
        raise FormatError(
            _FORMAT, end, "the signature is not PKCS#7", expected=_PKEY_ID_PKCS7, got=id_type
        )
    if not 0 < size <= end:
        raise FormatError(_FORMAT, end, "the signature is longer than the file", got=size)
    return data[: end - size], data[end - size : end]


def _symbols(elf: Elf) -> tuple[ModuleSymbol, ...]:
    table = next((section for section in elf.sections if section.type == SHT_SYMTAB), None)
    if table is None or table.link >= len(elf.sections):
        raise FormatError(_FORMAT, 0, "the module has no symbol table")
    raw = _array(elf.contents(table), _SYMBOL, "the symbol table")
    strings = elf.contents(elf.sections[table.link])
    found = []
    for name, info, _, shndx, value, _ in raw.tolist():
        end = strings.find(b"\0", name) if name < len(strings) else -1
        if end < 0:
            raise FormatError(_FORMAT, table.offset, "a symbol has no valid name")
        text = strings[name:end].decode("latin-1")
        found.append(ModuleSymbol(text, shndx, value, info & 0xF, info >> 4 == STB_WEAK))
    return tuple(found)


def _relocations(elf: Elf, symbols: int) -> list[Relocations]:
    found = []
    for section in elf.sections:
        if section.type != SHT_RELA:
            continue
        if section.info >= len(elf.sections):
            raise FormatError(_FORMAT, section.offset, "relocations of a section that is not there")
        raw = _array(elf.contents(section), _RELA, section.name)
        if len(raw) and int(raw["symbol"].max()) >= symbols:
            raise FormatError(_FORMAT, section.offset, "a relocation of a symbol that is not there")
        found.append(
            Relocations(section.info, raw["offset"], raw["type"], raw["symbol"], raw["addend"])
        )
    return found


def _modinfo(elf: Elf) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for entry in elf.contents(elf.section(".modinfo")).split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals:
            found.setdefault(key.decode("latin-1"), value.decode("latin-1"))
    return MappingProxyType(found)


def _build_id(elf: Elf) -> str:
    for section in elf.sections:
        raw = elf.contents(section)
        if section.type != SHT_NOTE or len(raw) < 16:
            continue
        name_size, size, kind = struct.unpack_from("<III", raw)
        if kind == _NT_GNU_BUILD_ID and name_size == 4 and len(raw) >= 16 + size:
            return raw[16 : 16 + size].hex()
    return ""


def _array(data: bytes, dtype: np.dtype[np.void], what: str) -> npt.NDArray[np.void]:
    if len(data) % dtype.itemsize:
        raise FormatError(_FORMAT, 0, f"{what} is not a whole number of entries", got=len(data))
    return np.frombuffer(data, dtype=dtype)
