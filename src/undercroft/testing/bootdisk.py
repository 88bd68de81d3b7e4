"""A disk with shim and GRUB small enough to write down: real structures, no code in them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from undercroft.formats.eventlog.signatures import EFI_CERT_SHA256, EFI_CERT_X509
from undercroft.reference.boot import Firmware, GrubBoot
from undercroft.reference.boot.measure import EFI_GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE
from undercroft.reference.model import Grade, Provenance

ROOT_UUID = "11111111-2222-4333-8444-555555555555"
SHIM_SIGNER, OTHER_SIGNER, VENDOR = b"\x30\x82shim CA", b"\x30\x82other CA", b"\x30\x82vendor CA"
LEVEL = b"sbat,1,2025010100\nshim,4\n"
KERNEL_PATH, INITRD_PATH = "/boot/vmlinuz-6.1", "/boot/initrd.img-6.1"
PACKAGE = Provenance(Grade.PACKAGE, "ovmf", "1")
LEARNED = Provenance(Grade.FIRMWARE_RUN, "ovmf", "1")
OURS = Provenance(Grade.BUILT, note="ours")

REDIRECT = f"""\
search.fs_uuid {ROOT_UUID} root
set prefix=($root)'/boot/grub'
configfile $prefix/grub.cfg
"""
CONFIG = f"""\
set default=0
set timeout=0
menuentry 'Debian' --id debian {{
\tsearch --no-floppy --fs-uuid --set=root {ROOT_UUID}
\tlinux {KERNEL_PATH} root=UUID={ROOT_UUID} ro quiet
\tinitrd {INITRD_PATH}
}}
"""


def make_pe(sections: Mapping[str, bytes]) -> bytes:
    """Return a PE32+ file with ``sections``; long names are in the string table, as GNU ld does."""
    strings = bytearray(4)
    rows, bodies = b"", b""
    at = 0x600
    for name, data in sections.items():
        written = name.encode()
        if len(written) > 8:
            written = f"/{len(strings)}".encode()
            strings += name.encode() + b"\0"
        rows += struct.pack("<8sIIII16x", written, len(data), at, len(data), at)
        bodies += data
        at += len(data)
    struct.pack_into("<I", strings, 0, len(strings))
    head = bytearray(0x600)
    head[0:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x40)
    head[0x40:0x44] = b"PE\0\0"
    optional = 112 + 8 * 16
    struct.pack_into("<HHIIIHH", head, 0x44, 0x8664, len(sections), 0, at, 0, optional, 0x22)
    struct.pack_into("<H", head, 0x58, 0x20B)
    struct.pack_into("<I", head, 0x58 + 60, len(head))
    struct.pack_into("<I", head, 0x58 + 108, 16)
    head[0x58 + optional : 0x58 + optional + len(rows)] = rows
    return bytes(head) + bodies + bytes(strings)


def make_shim(vendor: bytes = VENDOR, refused: bytes = b"", level: bytes = LEVEL) -> bytes:
    """Return a shim with a vendor certificate, a vendor dbx and an automatic SbatLevel."""
    sizes = struct.pack("<IIII", len(vendor), len(refused), 16, 16 + len(vendor))
    levels = struct.pack("<III", 0, 8, 8 + len(level) + 1) + level + b"\0" + level + b"\0"
    return make_pe(
        {".text": b"shim", ".vendor_cert": sizes + vendor + refused, ".sbatlevel": levels}
    )


def signature_list(kind: bytes, owner: bytes, data: bytes) -> bytes:
    """Return an EFI_SIGNATURE_LIST of one entry."""
    size = len(owner) + len(data)
    return kind + struct.pack("<III", 28 + size, 0, size) + owner + data


def boot_option(name: str, path: bytes) -> bytes:
    """Return an EFI_LOAD_OPTION."""
    return struct.pack("<IH", 1, len(path)) + f"{name}\0".encode("utf-16-le") + path


FIRMWARE_PATH = bytes.fromhex("04071400") + bytes(16) + bytes.fromhex("7fff0400")
SATA_PATH = bytes.fromhex("02010c00d041030a00000000") + bytes.fromhex("7fff0400")


def store_variables() -> dict[tuple[bytes, str], bytes]:
    """Return what a firmware's store holds: keys, and boot options of its maker's machine."""
    owner = b"O" * 16
    certificate = [signature_list(EFI_CERT_X509, owner, c) for c in (OTHER_SIGNER, SHIM_SIGNER)]
    return {
        (EFI_GLOBAL_VARIABLE, "Boot0000"): boot_option("Setup", FIRMWARE_PATH),
        (EFI_GLOBAL_VARIABLE, "Boot0001"): boot_option("SATA", SATA_PATH),
        (EFI_GLOBAL_VARIABLE, "Boot0002"): boot_option("Shell", FIRMWARE_PATH),
        (EFI_GLOBAL_VARIABLE, "Timeout"): b"\0\0",
        (EFI_GLOBAL_VARIABLE, "PK"): certificate[0],
        (EFI_GLOBAL_VARIABLE, "KEK"): certificate[0],
        (IMAGE_SECURITY_DATABASE, "db"): b"".join(certificate),
        (IMAGE_SECURITY_DATABASE, "dbx"): signature_list(EFI_CERT_SHA256, owner, b"X" * 32),
    }


def make_varstore(variables: Mapping[tuple[bytes, str], bytes], *, state: int = 0x3F) -> bytes:
    """Return a variable store (OVMF_VARS.fd); ``state`` is that of every variable."""
    body = b""
    for (guid, name), data in variables.items():
        raw = f"{name}\0".encode("utf-16-le")
        body += struct.pack("<HBBIQ16sIII16s", 0x55AA, state, 0, 7, 0, bytes(16), 0, len(raw),
                            len(data), guid)  # fmt: skip
        body += raw + data
        body += b"\xff" * (-len(body) % 4)
    body = body.ljust(0x2000, b"\xff")
    kind = bytes.fromhex("782cf3aa7b949a43a1802e144ec37792")
    store = struct.pack("<16sIBBHI", kind, 28 + len(body), 0x5A, 0xFE, 0, 0) + body
    blocks = struct.pack("<IIII", 1, 0x1000, 0, 0)
    header = struct.pack("<16s16sQ4sIHHHBB", bytes(16), bytes(16), 0x3000, b"_FVH", 0,
                         56 + len(blocks), 0, 0, 0, 2)  # fmt: skip
    return header + blocks + store


def make_partition_table() -> bytes:
    """Return the start of a disk with one partition."""
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 99, 34, 66,
                         b"D" * 16, 2, 4, 128, 0)  # fmt: skip
    entry = struct.pack("<16s16sQQQ72s", b"K" * 16, b"G" * 16, 34, 60, 0, b"")
    return bytes(512) + header.ljust(512, b"\0") + entry.ljust(512, b"\0")


def verifies(image: bytes, certificate: bytes) -> bool:
    """Stand in for signatures: shim is signed by its CA, everything else by the vendor."""
    return certificate == (SHIM_SIGNER if b"shim" in image else VENDOR)


@dataclass(frozen=True)
class BootDisk:
    """The parts of a :class:`GrubBoot`, each replaceable."""

    config: str = CONFIG
    redirect: str = REDIRECT
    kernel: bytes = field(default_factory=lambda: make_pe({".text": b"kernel"}))
    initrd: bytes = b"initrd"
    shim: bytes = field(default_factory=make_shim)
    grub: bytes = field(default_factory=lambda: make_pe({".text": b"grub"}))
    variables: Mapping[tuple[bytes, str], bytes] = field(default_factory=store_variables)

    def boot(self) -> GrubBoot:
        """Return the disk with its firmware."""
        return GrubBoot(
            firmware=Firmware(b"pei", b"dxe", make_varstore(self.variables), 1, PACKAGE, LEARNED),
            partition_table=make_partition_table(),
            esp={
                "/EFI/BOOT/BOOTX64.EFI": self.shim,
                "/EFI/BOOT/grubx64.efi": self.grub,
                "/EFI/debian/grub.cfg": self.redirect.encode(),
            },
            root={
                KERNEL_PATH: self.kernel,
                INITRD_PATH: self.initrd,
                "/boot/grub/grub.cfg": self.config.encode(),
            },
            root_uuid=ROOT_UUID,
            provenances={
                f"(root){KERNEL_PATH}": Provenance(Grade.PACKAGE, "linux-image", "6.1"),
                "(esp)/EFI/BOOT/BOOTX64.EFI": Provenance(Grade.PACKAGE, "shim-signed", "1"),
            },
            ours=OURS,
        )
