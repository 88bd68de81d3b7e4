"""Decompress the payload of a bzImage, whatever the build compressed it with.

Source: scripts/Makefile.lib (cmd_xzkern, cmd_lz4, cmd_zstd22 ...) and
arch/x86/boot/compressed/misc.c.  The build appends the uncompressed size (u32) to every
format but gzip, whose own trailer already ends with it: either way the last four bytes say how
long the result is, and we hold the payload to it, so no input can make us allocate more.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from undercroft.base import FormatError

_FORMAT = "bzImage payload"
MAX_KERNEL_SIZE = 512 << 20
"""No x86-64 kernel is larger: its whole mapping, KERNEL_IMAGE_SIZE, is 1 GiB with modules."""

_LZ4_BLOCK = 8 << 20
"""The legacy LZ4 frame's fixed block size (lz4 frame format, "Legacy frame")."""


def decompress_payload(payload: bytes) -> bytes:
    """Return the kernel ELF inside ``payload``; raise FormatError if it does not decompress.

    A payload that was compressed again without its size trailer, cut short or followed by more
    than the trailer is refused.
    """
    if len(payload) < 8:
        raise FormatError(_FORMAT, 0, "the payload is too short", expected=">= 8", got=len(payload))
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if not 0 < size <= MAX_KERNEL_SIZE:
        raise FormatError(
            _FORMAT,
            len(payload) - 4,
            "the uncompressed size is out of range: was the payload recompressed?",
            expected=f"1..{MAX_KERNEL_SIZE}",
            got=size,
        )
    for magic, name, decompress, trailer in _METHODS:
        if payload.startswith(magic):
            body = payload[:-4] if trailer else payload
            try:
                result = decompress(body, size)
            except _ERRORS as error:
                raise FormatError(_FORMAT, 0, f"{name} data is damaged: {error}") from error
            break
    else:
        raise FormatError(
            _FORMAT,
            0,
            "the compression is not known",
            expected="gzip, bzip2, lzma, xz, lz4 or zstd",
            got=payload[:4].hex(),
        )
    if len(result) != size:
        raise FormatError(
            _FORMAT, 0, f"{name} data has the wrong length", expected=size, got=len(result)
        )
    return result


_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    lz4.block.LZ4BlockError,
)


def _gzip(body: bytes, size: int) -> bytes:
    engine = zlib.decompressobj(wbits=31)
    result = engine.decompress(body, size + 1)
    if not engine.eof or engine.unused_data:
        raise ValueError("the stream does not end where the payload ends")
    return result


def _bzip2(body: bytes, size: int) -> bytes:
    engine = bz2.BZ2Decompressor()
    result = engine.decompress(body, size + 1)
    if not engine.eof or engine.unused_data:
        raise ValueError("the stream does not end where the payload ends")
    return result


def _lzma(body: bytes, size: int, form: int) -> bytes:
    engine = lzma.LZMADecompressor(form)
    result = engine.decompress(body, size + 1)
    if not engine.eof or engine.unused_data:
        raise ValueError("the stream does not end where the payload ends")
    return result


def _lz4(body: bytes, size: int) -> bytes:
    blocks: list[bytes] = []
    offset, total = 4, 0
    while offset < len(body):
        if offset + 4 > len(body):
            raise ValueError("a block size is cut short")
        (length,) = struct.unpack_from("<I", body, offset)
        offset += 4
        if not 0 < length <= len(body) - offset:
            raise ValueError("a block is longer than the payload")
        block = lz4.block.decompress(body[offset : offset + length], uncompressed_size=_LZ4_BLOCK)
        offset += length
        total += len(block)
        if total > size:
            raise ValueError("more data than the size trailer says")
        blocks.append(block)
    return b"".join(blocks)


def _zstd(body: bytes, size: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(body) as stream:
        return bytes(stream.read(size + 1))


_Decompress = Callable[[bytes, int], bytes]
_METHODS: tuple[tuple[bytes, str, _Decompress, bool], ...] = (
    (b"\x1f\x8b", "gzip", _gzip, False),
    (b"BZh", "bzip2", _bzip2, True),
    (b"\x5d\x00\x00", "lzma", lambda body, size: _lzma(body, size, lzma.FORMAT_ALONE), True),
    (b"\xfd7zXZ\x00", "xz", lambda body, size: _lzma(body, size, lzma.FORMAT_XZ), True),
    (b"\x02\x21\x4c\x18", "lz4", _lz4, True),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd, True),
)
