"""The variable store of an OVMF image (OVMF_VARS.fd): UEFI variables at rest.

Sources: UEFI PI 1.7 vol. 3, 3.2.1 (EFI_FIRMWARE_VOLUME_HEADER); edk2
MdeModulePkg/Include/Guid/VariableFormat.h (VARIABLE_STORE_HEADER, AUTHENTICATED_VARIABLE_HEADER).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.eventlog.guid import guid_bytes
from undercroft.formats.reader import BoundedReader

_NAME = "variable store"
_VOLUME = struct.Struct("<16s16sQ4sIHHHBB")
_STORE = struct.Struct("<16sIBBHI")
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_AUTHENTICATED = guid_bytes("aaf32c78-947b-439a-a180-2e144ec37792")
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_START = 0x55AA
_ADDED, _IN_TRANSITION = 0x3F, 0x3E
_MAX_STORE = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredVariable:
    """A variable: vendor GUID (16 bytes), name, attributes (UEFI 2.10, 8.2) and value."""

    guid: bytes
    name: str
    attributes: int
    data: bytes


def parse_varstore(image: bytes) -> tuple[StoredVariable, ...]:
    """Return the variables that are valid in a store, in the order they were written.

    Raises FormatError for anything but one healthy store of authenticated variables.
    """
    reader = BoundedReader(image, _NAME, order="little")
    fields = reader.unpack(_VOLUME, "the volume header")
    signature, header_length = fields[3], fields[5]
    if signature != b"_FVH":
        raise FormatError(_NAME, 40, "no firmware volume", expected="_FVH", got=signature.hex())
    if header_length < _VOLUME.size:
        raise FormatError(_NAME, 48, "the header is too short", got=header_length)
    reader.take(header_length - _VOLUME.size, "the block map")
    start = reader.offset
    kind, size, form, state, _, _ = reader.unpack(_STORE, "the store header")
    if kind != _AUTHENTICATED:
        raise FormatError(_NAME, start, "not a store of authenticated variables", got=kind.hex())
    if (form, state) != (_FORMATTED, _HEALTHY):
        raise FormatError(_NAME, start + 20, "the store is not healthy", got=f"{form}, {state}")
    if not _STORE.size <= size <= _MAX_STORE:
        raise FormatError(_NAME, start + 16, "the store's size is strange", got=size)
    body = BoundedReader(
        reader.take(size - _STORE.size, "the store"), _NAME, order="little", base=reader.offset
    )
    return tuple(_variables(body))


def _variables(reader: BoundedReader) -> list[StoredVariable]:
    found = []
    while reader.remaining >= _VARIABLE.size:
        fields = reader.unpack(_VARIABLE, "a variable's header")
        start, state, _, attributes, _, _, _, name_size, data_size, guid = fields
        if start != _START:
            break  # erased flash: nothing was written from here on
        raw = reader.take(name_size, "a variable's name")
        data = reader.take(data_size, "a variable's value")
        reader.take(min(-(name_size + data_size) % 4, reader.remaining), "the padding")
        if state in (_ADDED, _IN_TRANSITION):
            found.append(StoredVariable(guid, _text(raw, reader), attributes, data))
    return found


def _text(raw: bytes, reader: BoundedReader) -> str:
    try:
        text = raw.decode("utf-16-le")
    except UnicodeDecodeError:
        raise reader.fail("a variable's name is not UTF-16", got=raw[:40].hex()) from None
    if not text.endswith("\0"):
        raise reader.fail("a variable's name has no end", got=repr(text[:40]))
    return text[:-1]
