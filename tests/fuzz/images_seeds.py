"""Write the seeds of the image targets' corpus.

    python tests/fuzz/images_seeds.py

Inputs that fuzzing found stay beside the seeds; this script only adds and renews its own.
"""

from __future__ import annotations

import datetime
import lzma
import struct
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs7

from undercroft.formats.evidence.interval import (
    FIRST,
    BlindWindow,
    Change,
    CoveredRange,
    Epoch,
    Sampling,
    Uncovered,
    encode_chain,
    encode_epoch,
    epoch_digest,
)
from undercroft.formats.launch import LAUNCH, TAG_IDENTITY, LaunchEvent, launch_text
from undercroft.testing.keys import rsa_key
from undercroft.testing.tinykernel import TinyKernel
from undercroft.testing.tinymodule import ALLOC, EXEC, TinyModule, signed

HERE = Path(__file__).parent


def pe(*, plus: bool, certificate: bytes) -> bytes:
    """A PE32 or PE32+ file of two sections, after the Microsoft PE Format."""
    fixed = 112 if plus else 96
    sections = ((b".text", b"T" * 64), (b".sbat", b"sbat,1\n"))
    body = bytearray(512)
    body[:2] = b"MZ"
    struct.pack_into("<I", body, 0x3C, 0x40)
    body[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", body, 0x44, 0x8664, len(sections), 0, 0, 0, fixed + 128, 0x22)
    struct.pack_into("<H", body, 0x58, 0x20B if plus else 0x10B)
    struct.pack_into("<I", body, 0x58 + 60, 512)
    struct.pack_into("<I", body, 0x58 + fixed - 4, 16)
    for number, (name, data) in enumerate(sections):
        row = struct.pack("<8sIIII", name, len(data), 0x1000, len(data), len(body))
        at = 0x58 + fixed + 128 + 40 * number
        body[at : at + len(row)] = row
        body += data
    if certificate:
        body += bytes(-len(body) % 8)
        table = struct.pack("<IHH", 8 + len(certificate), 0x200, 2) + certificate
        struct.pack_into("<II", body, 0x58 + fixed + 32, len(body), len(table))
        body += table
    return bytes(body)


def ovmf() -> bytes:
    """An image whose one LZMA section holds two firmware volumes."""

    def section(kind: int, data: bytes) -> bytes:
        head = (len(data) + 4).to_bytes(3, "little") + bytes([kind])
        return head + data + bytes(-len(data) % 4)

    inner = section(0x17, b"PEI volume") + section(0x19, b"raw") + section(0x17, b"DXE volume")
    guid = bytes.fromhex("98584eee143959429d6edc7bd79403cf")
    body = guid + struct.pack("<HH", 24, 1) + lzma.compress(inner, lzma.FORMAT_ALONE, preset=0)
    return bytes(16) + (len(body) + 4).to_bytes(3, "little") + b"\x02" + body


def epoch(sequence: int, previous: bytes) -> bytes:
    """An epoch that has one of everything."""
    change = Change(
        150, "text", 0x1000, 1 << 63, "f", "jump-label", b"\x0f", b"\xe9", "vcpu 0", 1, 9000,
        lawful=True, landed=True, reason="",
    )  # fmt: skip
    return encode_epoch(
        Epoch(
            session=bytes(range(16)),
            sequence=sequence,
            previous=previous,
            t0=100,
            t1=200,
            mode="enforcing",
            cause="nonce",
            ranges=(CoveredRange("text", ((1 << 63, 0x1000, 4096),), bytes(32), 0),),
            channels=("write-trap",),
            uncovered=(Uncovered("second mapping", 7, "vhost"),),
            blind=(BlindWindow(110, 120, "text", "arming"),),
            changes=(change,),
            unsettled=1,
            writes=1,
            sampling=Sampling(bytes(32), bytes(range(32)), 1000, (130, 140)),
        )
    )


def modules() -> Iterator[tuple[str, bytes]]:
    """Modules as they lie in packages: bare, signed, compressed."""
    module = TinyModule()
    module.section(".text", ALLOC | EXEC, b"\xe8\0\0\0\0\xc3", alignment=16)
    module.symbol("printk")
    module.symbol("init_module", ".text")
    module.relocation(".text", 1, 4, "printk", -4)
    plain = module.build()
    yield "plain", plain
    yield "signed", signed(plain, b"PKCS#7 would stand here")
    yield "xz", lzma.compress(plain, check=lzma.CHECK_CRC32)


def appended() -> bytes:
    """A detached PKCS#7 message over nothing, by a key that is the same every time."""
    key = rsa_key("ek")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "module")])
    day = datetime.datetime(2024, 1, 1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, day)
        .not_valid_after(day + datetime.timedelta(days=9999))
        .sign(key, hashes.SHA256())
    )
    kind = pkcs7.PKCS7Options
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"")
    return builder.add_signer(certificate, key, hashes.SHA256()).sign(
        serialization.Encoding.DER, [kind.DetachedSignature, kind.Binary, kind.NoAttributes]
    )


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Yield target, name, bytes."""
    yield "pe", "pe32-plus-signed", pe(plus=True, certificate=b"PKCS#7 would stand here")
    yield "pe", "pe32", pe(plus=False, certificate=b"")
    yield "ovmf", "two-volumes", ovmf()
    for wide in (False, True):
        kernel = TinyKernel(wide=wide)
        name = "wide" if wide else "narrow"
        yield "vmlinuz", name, kernel.vmlinuz()
        yield "vmlinuz", f"{name}-xz", kernel.vmlinuz("xz")
        yield "kernel", name, kernel.elf()
    yield "elf", "whole", TinyKernel().elf()
    for name, data in modules():
        yield "module", name, data
    yield "signed-data", "detached", appended()
    first = epoch(1, FIRST)
    second = epoch(2, epoch_digest(first))
    yield "epoch", "first", first
    yield "epoch", "second", second
    yield "chain", "two", encode_chain([first, second])
    yield (
        "launch-event",
        "launch",
        LaunchEvent(TAG_IDENTITY, LAUNCH, launch_text("reset", 2)).encode(),
    )
    yield "launch-text", "power-on", launch_text("power-on", 1)


def main() -> None:
    """Write every seed."""
    for target, name, data in seeds():
        folder = HERE / "corpus" / "images" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()
