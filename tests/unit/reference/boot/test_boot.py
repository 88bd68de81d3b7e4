"""Prediction of a direct boot: what follows from the inputs, and from nothing else."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from undercroft.base import Digest, FormatError, HashAlgorithm
from undercroft.formats.pe import parse_pe
from undercroft.reference.boot import (
    DirectBoot,
    boot_aggregate,
    boot_references,
    kernel_as_loaded,
    predict_direct_boot,
    predicted_pcrs,
)
from undercroft.reference.model import Grade, Provenance

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
MIB = 1 << 20


def kernel(protocol: int = 0x20F, xloadflags: int = 0x7F) -> bytes:
    """A PE32+ file with a Linux setup header: the least that is both."""
    data = bytearray(0x800)
    data[0:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, 0x80)
    data[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", data, 0x84, 0x8664, 0, 0, 0, 0, 112 + 128, 0)
    struct.pack_into("<H", data, 0x98, 0x20B)
    struct.pack_into("<I", data, 0x98 + 60, 0x400)
    struct.pack_into("<I", data, 0x98 + 108, 16)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    struct.pack_into("<I", data, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", data, 0x236, xloadflags)
    return bytes(data)


BOOT = DirectBoot(
    kernel=kernel(),
    initrd=b"initrd" * 1000,
    cmdline="console=ttyS0",
    memory_below_4g=512 * MIB,
    pei_volume=b"pei",
    dxe_volume=b"dxe",
    kernel_provenance=Provenance(Grade.PACKAGE, "linux-image", "6.1"),
    initrd_provenance=Provenance(Grade.BUILT, note="initrd"),
    cmdline_provenance=Provenance(Grade.BUILT, note="command line"),
    firmware_provenance=Provenance(Grade.PACKAGE, "ovmf", "2022.11"),
    pei_provenance=Provenance(Grade.FIRMWARE_RUN, "ovmf", "2022.11"),
)


def pcrs(boot: DirectBoot) -> dict[int, bytes]:
    return dict(predicted_pcrs(predict_direct_boot(boot), SHA256).values)


@pytest.mark.parametrize(
    ("changed", "moves"),
    [
        (replace(BOOT, kernel=kernel() + b"x"), {4}),
        (replace(BOOT, initrd=b"other!" * 1000), {9}),
        (replace(BOOT, initrd=b"initrd" * 3000), {4, 9}),
        (replace(BOOT, cmdline="console=ttyS0 quiet"), {9}),
        (replace(BOOT, memory_below_4g=256 * MIB), {4}),
        (replace(BOOT, pei_volume=b"PEI"), {0}),
        (replace(BOOT, dxe_volume=b"DXE"), {0}),
    ],
)
def test_each_input_moves_its_own_pcrs(changed: DirectBoot, moves: set[int]) -> None:
    before, after = pcrs(BOOT), pcrs(changed)
    assert {index for index in before if before[index] != after[index]} == moves


def test_separator_only_pcrs_have_the_well_known_value() -> None:
    # PCR 2, 3 and 6 of every OVMF guest with no option ROM.
    known = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
    assert {pcrs(BOOT)[index].hex() for index in (2, 3, 6)} == {known}


def test_secure_boot_off_has_the_value_every_such_ovmf_guest_shows() -> None:
    known = "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"
    assert pcrs(BOOT)[7].hex() == known


def test_the_loader_fills_in_the_setup_header() -> None:
    loaded = kernel_as_loaded(BOOT.kernel, initrd_size=6000, memory_below_4g=512 * MIB)
    assert loaded[0x210] == 0xB0
    assert loaded[0x211] & 0x80
    assert struct.unpack_from("<H", loaded, 0x224) == (0xFE00,)
    assert struct.unpack_from("<I", loaded, 0x228) == (0x20000,)
    address, size = struct.unpack_from("<II", loaded, 0x218)
    assert size == 6000
    assert address % 4096 == 0
    assert address + size <= 512 * MIB - 0x28000


def test_the_initrd_stays_below_the_kernels_own_limit() -> None:
    loaded = kernel_as_loaded(kernel(xloadflags=0), initrd_size=1, memory_below_4g=3 << 30)
    (address,) = struct.unpack_from("<I", loaded, 0x218)
    assert address == (0x7FFFFFFF - 1) & ~0xFFF


def test_without_an_initrd_its_fields_stay() -> None:
    loaded = kernel_as_loaded(BOOT.kernel, initrd_size=0, memory_below_4g=512 * MIB)
    assert loaded[0x218:0x220] == bytes(8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(bytes(0x800), "no setup header"), (b"", "no setup header"), (kernel(0x20B), "too old")],
)
def test_what_qemu_loads_by_other_rules_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        kernel_as_loaded(data, initrd_size=0, memory_below_4g=MIB)


def test_boot_aggregate_is_over_ten_pcrs_and_eight_in_sha1() -> None:
    events = predict_direct_boot(BOOT)
    sha256, sha1 = predicted_pcrs(events, SHA256), predicted_pcrs(events, SHA1)
    ten = b"".join(sha256.values[i] for i in range(10))
    eight = b"".join(sha1.values[i] for i in range(8))
    assert boot_aggregate(sha256) == hashlib.sha256(ten).digest()
    assert boot_aggregate(sha1) == hashlib.sha1(eight).digest()


def test_references_hold_every_event_and_the_weakest_provenance_of_a_pcr() -> None:
    events = predict_direct_boot(BOOT)
    references = boot_references("guest", events)
    assert sum(len(values) for values in references.events.values()) == len(events)
    assert references.pcrs[0][0].provenance.grade is Grade.FIRMWARE_RUN
    assert references.pcrs[4][0].provenance.grade is Grade.PACKAGE
    assert references.pcrs[9][0].provenance.grade is Grade.BUILT
    assert references.pcrs[14][0].digest(SHA256) == Digest(SHA256, bytes(32))
    assert references.pcrs[14][0].provenance.grade is Grade.SPECIFICATION
    assert 14 not in references.events
    kernels = [v for v in references.events[4] if v.role == "kernel"]
    image = parse_pe(kernel_as_loaded(BOOT.kernel, initrd_size=6000, memory_below_4g=512 * MIB))
    digest = kernels[0].digest(SHA256)
    assert digest is not None
    assert digest.value == image.authenticode()


def test_a_bank_that_was_not_predicted_is_not_invented() -> None:
    with pytest.raises(KeyError):
        predict_direct_boot(BOOT)[0].digest(HashAlgorithm.SHA3_256)
