"""A vmlinuz is read whole or refused with a word on what is wrong with it."""

from __future__ import annotations

import struct
from typing import get_args

import pytest

from undercroft.base import FormatError
from undercroft.formats.kernel import decompress_payload, load_kernel, parse_bzimage, parse_elf
from undercroft.testing import tinykernel
from undercroft.testing.tinykernel import LINK_BASE, TinyKernel


def kernel(*, wide: bool = False) -> TinyKernel:
    tiny = TinyKernel(wide=wide)
    tiny.code(0x100, "c3", "one")
    tiny.code(0x110, "c3", "a" * 200)  # a name whose length takes two bytes
    for index in range(300):  # more than one marker
        tiny.symbols[f"filler_{index}"] = (0x1000 + index, "t")
    tiny.symbols["per_cpu_thing"] = (0x1_0000_0000 + 0x40, "A")
    tiny.structs["thing"] = (24, {"a": 0, "b": 16})
    tiny.pointer("pointer", tinykernel.DATA, 0x100)
    tiny.alternative(0x120, 3, 7, b"\x90", flags=1)
    return tiny


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("compression", get_args(tinykernel.Compression))
def test_every_compression_and_layout(compression: tinykernel.Compression, wide: bool) -> None:
    image = load_kernel(kernel(wide=wide).vmlinuz(compression))
    assert image.release == "6.1.0-tiny-amd64"
    assert image.version == tinykernel.VERSION
    assert image.build_id == tinykernel.BUILD_ID.hex()
    assert (image.link_base, image.text_size) == (LINK_BASE, tinykernel.TEXT_SIZE)
    assert image.symbols.address("one") == LINK_BASE + 0x100
    assert image.symbols.address("a" * 200) == LINK_BASE + 0x110
    assert image.symbols.address("per_cpu_thing") == 0x40
    assert image.offset("filler_299") == 0x1000 + 299
    assert image.btf.offset_of("thing", "b") == 16
    assert image.sites.alternatives.wide is wide
    assert image.sites.alternatives.instr.tolist() == [0x120]
    assert image.sites.alternatives.inverted.tolist() == [True]
    assert image.relocations.r64.tolist() == [tinykernel.DATA]
    assert image.read(0x100, 1) == b"\xc3"


def test_symbols_are_found_by_name_and_by_address() -> None:
    symbols = load_kernel(kernel().vmlinuz()).symbols
    assert symbols.locate(LINK_BASE + 0x10F) == ("one", 0xF)
    assert symbols.locate(0x41) == ("per_cpu_thing", 1)
    assert symbols.locate(0) == ("", 0)
    assert "one" in symbols
    assert symbols.get("none") is None
    assert symbols.with_prefix("filler_29")[:2] == ["filler_29", "filler_290"]
    with pytest.raises(FormatError, match="no symbol none"):
        symbols.address("none")


def test_the_gaps_between_segments_hold_what_was_decompressed_there() -> None:
    """Rule 2.1.3 of arch/x86/boot/compressed/misc.c: parse_elf() moves segments in place."""
    elf = bytearray(kernel().elf())
    # Shorten the only segment: what follows it stays as the file has it at that offset.
    struct.pack_into("<Q", elf, 64 + 32, tinykernel.DATA)
    image = load_kernel(tinykernel.bzimage(tinykernel.compress(bytes(elf), "gzip")))
    start = tinykernel.DATA
    assert image.memory[start : start + 64] == bytes(elf[start : start + 64])
    assert image.memory[start - 64 : start] == kernel().memory[start - 64 : start]


def test_a_kernel_for_another_architecture() -> None:
    with pytest.raises(FormatError, match="another architecture"):
        load_kernel(bytes(0x38) + b"ARM\x64" + bytes(0x1000))
    elf = bytearray(kernel().elf())
    struct.pack_into("<H", elf, 18, 183)
    with pytest.raises(FormatError, match="another architecture") as caught:
        parse_elf(bytes(elf))
    assert caught.value.got == "183"


def test_a_32_bit_kernel() -> None:
    image = bytearray(kernel().vmlinuz())
    struct.pack_into("<H", image, 0x236, 0)
    with pytest.raises(FormatError, match="no 64-bit entry point"):
        parse_bzimage(bytes(image))


def test_no_boot_header() -> None:
    with pytest.raises(FormatError, match="no Linux boot header"):
        parse_bzimage(bytes(0x1000))


@pytest.mark.parametrize("size", [0, 0x1F0, 0x205, 0x260, 0x400, 0x1000])
def test_a_truncated_vmlinuz(size: int) -> None:
    with pytest.raises(FormatError):
        load_kernel(kernel().vmlinuz()[:size])


def test_an_old_boot_protocol() -> None:
    image = bytearray(kernel().vmlinuz())
    struct.pack_into("<H", image, 0x206, 0x204)
    with pytest.raises(FormatError, match="protocol is too old"):
        parse_bzimage(bytes(image))


def test_a_version_text_without_end() -> None:
    image = bytearray(kernel().vmlinuz())
    struct.pack_into("<H", image, 0x20E, 0xFFFF)
    with pytest.raises(FormatError, match="NUL-terminated"):
        parse_bzimage(bytes(image[:0x1000].ljust(0x8000, b"x")))


@pytest.mark.parametrize("compression", get_args(tinykernel.Compression))
def test_a_damaged_payload(compression: tinykernel.Compression) -> None:
    payload = tinykernel.compress(kernel().elf(), compression)
    with pytest.raises(FormatError):
        decompress_payload(payload[: len(payload) // 2] + payload[-4:])


def test_a_payload_that_was_compressed_again_without_its_size() -> None:
    payload = tinykernel.compress(kernel().elf(), "xz")[:-4]
    with pytest.raises(FormatError):
        decompress_payload(payload)


def test_a_size_trailer_that_lies() -> None:
    elf = kernel().elf()
    payload = tinykernel.compress(elf, "zstd")
    for lie in (len(elf) - 1, len(elf) + 1):
        with pytest.raises(FormatError, match="wrong length"):
            decompress_payload(payload[:-4] + struct.pack("<I", lie))
    with pytest.raises(FormatError, match="out of range"):
        decompress_payload(payload[:-4] + b"\xff\xff\xff\xff")


def test_bytes_behind_a_stream_are_refused() -> None:
    elf = kernel().elf()
    for compression in ("gzip", "bzip2", "xz"):
        payload = tinykernel.compress(elf, compression)
        body, size = (payload[:-4], payload[-4:])
        with pytest.raises(FormatError):
            decompress_payload(body + b"more" + size)


def test_an_unknown_compression() -> None:
    with pytest.raises(FormatError, match="compression is not known"):
        decompress_payload(b"LZO?" + struct.pack("<I", 100))
    with pytest.raises(FormatError, match="too short"):
        decompress_payload(b"\x1f\x8b")


def test_no_section_headers() -> None:
    elf = bytearray(kernel().elf())
    struct.pack_into("<Q", elf, 40, 0)
    with pytest.raises(FormatError, match="no section headers"):
        parse_elf(bytes(elf))


def test_no_kallsyms() -> None:
    tiny = kernel()
    elf = bytearray(tiny.elf())
    start = 0x1000 + tinykernel.RODATA
    elf[start : start + 0x4000] = bytes(0x4000)
    with pytest.raises(FormatError, match="CONFIG_KALLSYMS"):
        load_kernel(tinykernel.bzimage(tinykernel.compress(bytes(elf), "gzip")))


@pytest.mark.parametrize("wide", [False, True])
def test_kallsyms_of_another_base(wide: bool) -> None:
    tiny = kernel(wide=wide)
    elf = tiny.elf().replace(struct.pack("<Q", LINK_BASE), struct.pack("<Q", LINK_BASE + 0x1000))
    with pytest.raises(FormatError):
        load_kernel(tinykernel.bzimage(tinykernel.compress(elf, "gzip")))


def test_a_missing_section_is_named() -> None:
    elf = kernel().elf().replace(b".BTF\0", b".BTX\0")
    with pytest.raises(FormatError, match=r"no section \.BTF"):
        load_kernel(tinykernel.bzimage(tinykernel.compress(elf, "gzip")))


def test_a_relocation_outside_the_kernel() -> None:
    tiny = kernel()
    tiny.r64.append(0x1000_0000)
    with pytest.raises(FormatError, match="outside the kernel"):
        load_kernel(tiny.vmlinuz())


def test_relocation_tables_without_their_zeros() -> None:
    elf = kernel().elf() + struct.pack("<II", 0, 0)
    with pytest.raises(FormatError, match="two or three tables"):
        load_kernel(tinykernel.bzimage(tinykernel.compress(elf, "gzip")))


def test_sections_longer_than_the_file() -> None:
    elf = bytearray(kernel().elf())
    (table,) = struct.unpack_from("<Q", elf, 40)
    struct.pack_into("<Q", elf, table + 64 + 32, len(elf) * 2)
    with pytest.raises(FormatError, match="section 1 is longer"):
        parse_elf(bytes(elf))


def test_an_alternative_that_points_nowhere() -> None:
    tiny = kernel()
    tiny.alternatives.append((1 << 28, tinykernel.INIT, 0, 0, 5, 5))
    with pytest.raises(FormatError, match="layout that is not known"):
        load_kernel(tiny.vmlinuz())
