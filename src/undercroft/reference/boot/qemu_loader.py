"""The kernel file as QEMU's direct boot hands it to the firmware.

With ``-kernel`` QEMU fills in fields of the Linux setup header before the firmware reads the
file, so what PCR 4 gets is the Authenticode digest of the *changed* file.  Source: QEMU
hw/i386/x86.c (x86_load_linux, 7.2) and Linux Documentation/arch/x86/boot.rst for the fields.
"""

from __future__ import annotations

import struct

from undercroft.base import FormatError

_CMDLINE_ADDRESS = 0x20000
_REAL_MODE_ADDRESS = 0x10000
_ACPI_DATA_SIZE = 0x20000 + 0x8000
"""pc_machine_class: kept free below the top of low memory for ACPI tables."""

_QEMU_LOADER = 0xB0
_CAN_USE_HEAP = 0x80
_CAN_BE_LOADED_ABOVE_4G = 0x02
_MIN_PROTOCOL = 0x020C
_HEADER_END = 0x268


def kernel_as_loaded(kernel: bytes, *, initrd_size: int, memory_below_4g: int) -> bytes:
    """Return ``kernel`` (a bzImage) with the setup header as QEMU leaves it.

    ``memory_below_4g`` is the guest's low RAM in bytes.  Raises FormatError for a kernel with a
    boot protocol before 2.12 (Linux 3.8), which QEMU loads by other rules.
    """
    if len(kernel) < _HEADER_END or kernel[0x202:0x206] != b"HdrS":
        raise FormatError("bzImage", 0x202, "no setup header", expected="HdrS")
    (protocol,) = struct.unpack_from("<H", kernel, 0x206)
    if protocol < _MIN_PROTOCOL:
        raise FormatError(
            "bzImage",
            0x206,
            "boot protocol too old",
            expected=hex(_MIN_PROTOCOL),
            got=hex(protocol),
        )
    (xloadflags,) = struct.unpack_from("<H", kernel, 0x236)
    (initrd_max,) = struct.unpack_from("<I", kernel, 0x22C)
    if xloadflags & _CAN_BE_LOADED_ABOVE_4G:
        initrd_max = 0xFFFFFFFF
    initrd_max = min(initrd_max, memory_below_4g - _ACPI_DATA_SIZE - 1)
    changed = bytearray(kernel)
    changed[0x210] = _QEMU_LOADER
    changed[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<H", changed, 0x224, _CMDLINE_ADDRESS - _REAL_MODE_ADDRESS - 0x200)
    struct.pack_into("<I", changed, 0x228, _CMDLINE_ADDRESS)
    if initrd_size:
        struct.pack_into("<II", changed, 0x218, (initrd_max - initrd_size) & ~0xFFF, initrd_size)
    return bytes(changed)
