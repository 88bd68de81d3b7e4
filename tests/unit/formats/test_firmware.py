"""OVMF's packed volumes come out whole or not at all."""

from __future__ import annotations

import lzma
import struct

import pytest

from undercroft.base import FormatError
from undercroft.formats import firmware
from undercroft.formats.firmware import ovmf_volumes

_GUID = bytes.fromhex("98584eee143959429d6edc7bd79403cf")


def _section(kind: int, body: bytes) -> bytes:
    if len(body) + 4 >= 0xFFFFFF:
        header = b"\xff\xff\xff" + bytes([kind]) + struct.pack("<I", len(body) + 8)
    else:
        header = (len(body) + 4).to_bytes(3, "little") + bytes([kind])
    return header + body + bytes(-(len(header) + len(body)) % 4)


def _image(inner: bytes, *, extra: bytes = b"", kind: int = 2) -> bytes:
    packed = lzma.compress(inner, lzma.FORMAT_ALONE, preset=0)
    body = _GUID + struct.pack("<HH", 24, 1) + packed
    return bytes(64) + (len(body) + 4).to_bytes(3, "little") + bytes([kind]) + body + extra


def test_volumes_come_out_in_order() -> None:
    inner = _section(0x19, b"pad") + _section(0x17, b"PEIFV") + _section(0x17, b"DXEFV!!")
    assert ovmf_volumes(_image(inner)) == (b"PEIFV", b"DXEFV!!")


def test_a_large_volume_has_an_extended_size() -> None:
    body = bytes(0x1000000)
    assert ovmf_volumes(_image(_section(0x17, body))) == (body,)


def test_the_guid_as_a_constant_in_code_is_no_section() -> None:
    inner = _section(0x17, b"PEIFV")
    assert ovmf_volumes(_image(inner, extra=b"\0\0\0\0" + _GUID + bytes(8))) == (b"PEIFV",)
    assert ovmf_volumes(_image(inner, extra=_GUID)) == (b"PEIFV",)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not an OVMF image"),
        (_GUID + bytes(40), "not an OVMF image"),
        (_image(b"", kind=3), "not an OVMF image"),
        (_image(b"")[:-30], "not an OVMF image"),
        (_image(b"") + _image(b""), "not an OVMF image"),
        (_image(b"\x02\0\0\x17"), "smaller than its header"),
        (_image(b"\xff\0\0\x17"), "longer than the input"),
    ],
)
def test_defects_are_named(image: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ovmf_volumes(image)


def test_a_damaged_section_is_refused() -> None:
    image = bytearray(_image(_section(0x17, bytes(range(256)) * 64)))
    start = 64 + 4 + 20
    image[start : start + 5] = b"\xff\xff\xff\xff\xff"
    with pytest.raises(FormatError, match="damaged"):
        ovmf_volumes(bytes(image))


def test_a_bomb_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "_MAX_UNPACKED", 1000)
    with pytest.raises(FormatError, match="too large"):
        ovmf_volumes(_image(_section(0x17, bytes(2000))))
