"""The x86 boot protocol's bzImage: where the compressed kernel lies in a vmlinuz.

Source: Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header").  The PE header that
makes the same file an EFI application is not looked at here: it matters to the signature only.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader

_FORMAT = "bzImage"
_SECTOR = 512
_BOOT_FLAG = 0xAA55
_HEADER_MAGIC = b"HdrS"
_MIN_VERSION = 0x020C
"""2.12 brought xloadflags; every kernel since 3.8 (2013) has it."""
_XLF_KERNEL_64 = 1
_ARM64_MAGIC = (0x38, b"ARM\x64")
_MAX_VERSION_TEXT = 512


@dataclass(frozen=True, slots=True)
class BzImage:
    """The fields of the setup header that say what is inside, and the compressed payload.

    ``payload`` is what the kernel build appended: the compressed ELF followed, except for gzip,
    by its uncompressed size (u32).  ``kernel_version`` is the text that ``file`` prints.
    """

    protocol: int
    kernel_version: str
    kernel_alignment: int
    pref_address: int
    init_size: int
    payload_offset: int
    payload: bytes


def parse_bzimage(data: bytes) -> BzImage:
    """Return the header and payload of the vmlinuz ``data``; raise FormatError if it is none."""
    at, magic = _ARM64_MAGIC
    if data[at : at + 4] == magic:
        raise FormatError(
            _FORMAT, at, "this is a kernel for another architecture", expected="x86-64", got="arm64"
        )
    reader = BoundedReader(data, _FORMAT, order="little")
    reader.take(0x1F1, "the boot sector")
    setup_sectors = reader.u8("setup_sects") or 4
    reader.take(0x1FE - 0x1F2, "the boot sector's fields")
    boot_flag = reader.u16("boot_flag")
    reader.take(2, "the jump instruction")
    if boot_flag != _BOOT_FLAG or reader.take(4, "the header magic") != _HEADER_MAGIC:
        raise FormatError(_FORMAT, 0x1FE, "no Linux boot header", expected="0xaa55 ... HdrS")
    protocol = reader.u16("version")
    if protocol < _MIN_VERSION:
        raise FormatError(
            _FORMAT, 0x206, "the boot protocol is too old", expected=">= 0x20c", got=hex(protocol)
        )
    reader.take(0x20E - 0x208, "realmode_swtch, start_sys_seg")
    version_at = reader.u16("kernel_version")
    reader.take(0x230 - 0x210, "the loader's fields")
    kernel_alignment = reader.u32("kernel_alignment")
    reader.take(2, "relocatable_kernel, min_alignment")
    xloadflags = reader.u16("xloadflags")
    if not xloadflags & _XLF_KERNEL_64:
        raise FormatError(
            _FORMAT, 0x236, "the kernel has no 64-bit entry point", expected="XLF_KERNEL_64"
        )
    reader.take(0x248 - 0x238, "cmdline_size .. hardware_subarch_data")
    payload_offset = reader.u32("payload_offset")
    payload_length = reader.u32("payload_length")
    reader.take(8, "setup_data")
    pref_address = reader.u64("pref_address")
    init_size = reader.u32("init_size")
    start = (setup_sectors + 1) * _SECTOR + payload_offset
    if payload_length < 8 or start + payload_length > len(data):
        raise FormatError(
            _FORMAT,
            0x248,
            "the payload is cut short",
            expected=f"{payload_length} bytes at {start}",
            got=f"a file of {len(data)} bytes",
        )
    return BzImage(
        protocol=protocol,
        kernel_version=_version_text(data, version_at),
        kernel_alignment=kernel_alignment,
        pref_address=pref_address,
        init_size=init_size,
        payload_offset=start,
        payload=data[start : start + payload_length],
    )


def _version_text(data: bytes, pointer: int) -> str:
    """Return the NUL-terminated text at ``pointer`` + 0x200, or "" if the header names none."""
    if not pointer:
        return ""
    raw = data[pointer + 0x200 : pointer + 0x200 + _MAX_VERSION_TEXT]
    text, end, _ = raw.partition(b"\0")
    if not end or not text.isascii():
        raise FormatError(_FORMAT, 0x20E, "kernel_version is not a NUL-terminated ASCII text")
    return text.decode("ascii")
