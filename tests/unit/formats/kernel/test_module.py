"""A module file is read whole or refused, whatever it is wrapped in."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest
import zstandard

from undercroft.base import FormatError
from undercroft.formats.kernel import parse_module
from undercroft.formats.kernel.module import (
    SIGNATURE_MAGIC,
    decompress_module,
    module_name,
    split_signature,
)
from undercroft.testing.tinymodule import ALLOC, EXEC, TinyModule, signed


def tiny() -> TinyModule:
    module = TinyModule()
    module.section(".text", ALLOC | EXEC, b"\xe8\0\0\0\0\xc3", alignment=16)
    note = struct.pack("<III4s", 4, 4, 3, b"GNU\0") + b"\x01\x02\x03\x04"
    module.section(".note.gnu.build-id", ALLOC, note, alignment=4, kind=7)
    module.symbol("start", ".text")
    module.symbol("printk")
    module.relocation(".text", 1, 4, "printk", -4)
    return module


def test_a_module() -> None:
    module = parse_module(tiny().build())
    assert module.name == "tiny"
    assert module.modinfo["license"] == "GPL"
    assert module.build_id == "01020304"
    assert [symbol.name for symbol in module.symbols] == ["", "start", "printk"]
    (table,) = module.relocations
    assert (table.offset.tolist(), table.type.tolist(), table.addend.tolist()) == ([1], [4], [-4])
    assert module.signature == b""


@pytest.mark.parametrize(
    "pack", [lzma.compress, gzip.compress, zstandard.compress], ids=["xz", "gzip", "zstd"]
)
def test_a_compressed_module(pack: object) -> None:
    content = tiny().build()
    packed: bytes = pack(content)  # type: ignore[operator]
    assert parse_module(packed).name == "tiny"
    with pytest.raises(FormatError):
        parse_module(packed[: len(packed) // 2])


def test_a_signed_module() -> None:
    content = tiny().build()
    whole = signed(content, b"PKCS#7")
    assert split_signature(whole) == (content, b"PKCS#7")
    assert parse_module(whole).signature == b"PKCS#7"
    assert module_name(content) == "tiny"
    assert decompress_module(whole) == whole


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (SIGNATURE_MAGIC, "cut short"),
        (signed(b"", b"x" * 8)[9:], "cut short|longer"),
        (signed(b"content", b"x", id_type=1), "not PKCS#7"),
        (b"c" + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, 99) + SIGNATURE_MAGIC, "longer"),
        (b"c" + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, 0) + SIGNATURE_MAGIC, "longer"),
    ],
)
def test_a_damaged_signature(data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        split_signature(data)


def test_an_executable_is_no_module() -> None:
    with pytest.raises(FormatError, match="not a relocatable file"):
        parse_module(tiny().build(kind=2))


def test_no_name() -> None:
    module = tiny()
    module.sections[0].data[:] = b"license=GPL\0"
    with pytest.raises(FormatError, match="no name"):
        parse_module(module.build())
    with pytest.raises(FormatError, match="no name"):
        module_name(module.build())


def test_no_symbol_table() -> None:
    data = bytearray(tiny().build())
    (table,) = struct.unpack_from("<Q", data, 40)
    for index in range(1, 8):
        at = table + 64 * index + 4
        if struct.unpack_from("<I", data, at) == (2,):
            struct.pack_into("<I", data, at, 1)
    with pytest.raises(FormatError, match="no symbol table"):
        parse_module(bytes(data))


def test_relocations_that_refer_to_nothing() -> None:
    data = bytearray(tiny().build())
    (table,) = struct.unpack_from("<Q", data, 40)
    rela = next(
        table + 64 * index
        for index in range(1, 9)
        if struct.unpack_from("<I", data, table + 64 * index + 4) == (4,)
    )
    wrong = bytearray(data)
    struct.pack_into("<I", wrong, rela + 44, 99)
    with pytest.raises(FormatError, match="section that is not there"):
        parse_module(bytes(wrong))
    (offset,) = struct.unpack_from("<Q", data, rela + 24)
    struct.pack_into("<I", data, offset + 12, 99)
    with pytest.raises(FormatError, match="symbol that is not there"):
        parse_module(bytes(data))


@pytest.mark.parametrize("size", [10, 63, 200])
def test_a_truncated_module(size: int) -> None:
    with pytest.raises(FormatError):
        parse_module(tiny().build()[:size])
