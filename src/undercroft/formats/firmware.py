"""UEFI firmware volumes inside an OVMF code image.

OVMF keeps its PEI and DXE volumes LZMA-compressed in the main volume; SEC unpacks them into
RAM, and from there Tcg2Pei measures each as an EV_EFI_PLATFORM_FIRMWARE_BLOB into PCR 0.
Sources: UEFI PI 1.7 vol. 3, 3.2.4 (EFI_COMMON_SECTION_HEADER) and 3.2.5 (sections); edk2
OvmfPkg/Sec/SecMain.c.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader

_NAME = "firmware volume"
_LZMA_SECTION = bytes.fromhex("98584eee143959429d6edc7bd79403cf")
"""EFI_GUIDED_SECTION guid EE4E5898-3914-4259-9D6E-DC7BD79403CF, LZMA custom decompress."""

_SECTION_GUID_DEFINED = 0x02
_SECTION_VOLUME_IMAGE = 0x17
_MAX_UNPACKED = 64 << 20


def ovmf_volumes(code: bytes) -> tuple[bytes, ...]:
    """Return the firmware volumes packed in an OVMF code image, in order: PEIFV, then DXEFV.

    Raises FormatError unless the image has exactly one LZMA section, of at most 64 MiB unpacked.
    """
    packed = [section for at in _occurrences(code) if (section := _packed(code, at)) is not None]
    if len(packed) != 1:
        raise FormatError(_NAME, 0, "not an OVMF image", expected="1 LZMA section", got=len(packed))
    start, data = packed[0]
    return _volumes(_unpack(data, start))


def _occurrences(code: bytes) -> Iterator[int]:
    at = code.find(_LZMA_SECTION)
    while at >= 0:
        yield at
        at = code.find(_LZMA_SECTION, at + 1)


def _packed(code: bytes, at: int) -> tuple[int, bytes] | None:
    """Return where the section whose guid stands at ``at`` keeps its data, and the data.

    None if it is no section: the guid is also a constant in the code that unpacks it.
    """
    reader = BoundedReader(code, _NAME, order="little")
    reader.offset = at - 4
    size, kind = _section_header(reader) if at >= 4 else (0, 0)
    if kind != _SECTION_GUID_DEFINED or reader.offset != at or reader.remaining < 18:
        return None
    reader.take(16, "the guid")
    start = at - 4 + reader.u16("DataOffset")
    end = at - 4 + size
    return (start, code[start:end]) if reader.offset <= start < end <= len(code) else None


def _unpack(packed: bytes, offset: int) -> bytes:
    try:
        unpacked = lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(packed, _MAX_UNPACKED + 1)
    except lzma.LZMAError as error:
        raise FormatError(_NAME, offset, f"the LZMA section is damaged: {error}") from None
    if len(unpacked) > _MAX_UNPACKED:
        raise FormatError(_NAME, offset, "the LZMA section is too large", expected=_MAX_UNPACKED)
    return unpacked


def _section_header(reader: BoundedReader) -> tuple[int, int]:
    """Return a section's size with its header, and its type."""
    size = int.from_bytes(reader.take(3, "a section size"), "little")
    kind = reader.u8("a section type")
    if size == 0xFFFFFF:
        size = reader.u32("an extended section size")
    return size, kind


def _volumes(sections: bytes) -> tuple[bytes, ...]:
    reader = BoundedReader(sections, _NAME, order="little")
    found = []
    while reader.remaining >= struct.calcsize("<I"):
        start = reader.offset
        size, kind = _section_header(reader)
        header = reader.offset - start
        if size < header:
            raise reader.fail("a section is smaller than its header", expected=header, got=size)
        body = reader.take(size - header, "a section")
        if kind == _SECTION_VOLUME_IMAGE:
            found.append(body)
        reader.take(min(-size % 4, reader.remaining), "the padding")
    return tuple(found)
