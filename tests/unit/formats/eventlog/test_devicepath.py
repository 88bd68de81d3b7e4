"""Device paths: bounded walks, and the texts of UEFI 2.10, section 10.6."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.eventlog.devicepath import (
    MAX_NODES,
    DevicePath,
    DevicePathNode,
    decode_device_path,
)
from undercroft.formats.eventlog.devicepath_text import device_path_text, node_text
from undercroft.testing.eventlog import device_path, file_path

GUID = bytes.fromhex("00112233445566778899aabbccddeeff")
GUID_TEXT = "33221100-5544-7766-8899-aabbccddeeff"


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


NODES = [
    (1, 1, bytes([2, 0x1F]), "Pci(0x1f,0x2)"),
    (1, 2, b"\1", "PcCard(0x1)"),
    (1, 3, struct.pack("<IQQ", 11, 0x1000, 0x2000), "MemoryMapped(0xb,0x1000,0x2000)"),
    (1, 4, GUID, f"VenHw({GUID_TEXT})"),
    (1, 4, GUID + b"\1\2", f"VenHw({GUID_TEXT},0102)"),
    (1, 5, struct.pack("<I", 3), "Ctrl(0x3)"),
    (1, 6, struct.pack("<BQ", 1, 0xCA2), "BMC(0x1,0xca2)"),
    (2, 1, struct.pack("<II", 0x0A0341D0, 0), "PciRoot(0x0)"),
    (2, 1, struct.pack("<II", 0x0A0841D0, 1), "PcieRoot(0x1)"),
    (2, 1, struct.pack("<II", 0x123441D0, 1), "Acpi(PNP1234,0x1)"),
    (2, 1, struct.pack("<II", 0x12345678, 1), "Acpi(0x12345678,0x1)"),
    (2, 3, struct.pack("<I", 0x80010100), "AcpiAdr(0x80010100)"),
    (3, 2, struct.pack("<HH", 1, 0), "Scsi(0x1,0x0)"),
    (3, 5, b"\1\0", "USB(0x1,0x0)"),
    (3, 10, GUID, f"VenMsg({GUID_TEXT})"),
    (3, 11, bytes.fromhex("525400123456") + bytes(26) + b"\1", "MAC(525400123456,0x1)"),
    (3, 11, bytes(range(32)) + b"\6", f"MAC({bytes(range(32)).hex()},0x6)"),
    (
        3,
        12,
        bytes([10, 0, 0, 2, 10, 0, 0, 1]) + struct.pack("<HHHB", 0, 0, 6, 1),
        "IPv4(10.0.0.1,TCP,Static,10.0.0.2)",
    ),
    (
        3,
        12,
        bytes(8) + struct.pack("<HHHB", 0, 0, 3, 0) + bytes(8),
        "IPv4(0.0.0.0,0x3,DHCP,0.0.0.0)",
    ),
    (
        3,
        13,
        bytes(32) + struct.pack("<HHHB", 0, 0, 17, 0),
        "IPv6(::,UDP,Static,::)",
    ),
    (
        3,
        13,
        bytes(32) + struct.pack("<HHHB", 0, 0, 17, 2) + bytes(17),
        "IPv6(::,UDP,StatefulAutoConfigure,::)",
    ),
    (3, 18, struct.pack("<HHH", 1, 0xFFFF, 0), "Sata(0x1,0xffff,0x0)"),
    (3, 23, struct.pack("<I", 1) + bytes(range(8)), "NVMe(0x1,07-06-05-04-03-02-01-00)"),
    (3, 24, b"http://boot.example/\0", "Uri(http://boot.example/)"),
    (3, 31, b"\0" + bytes([9, 9, 9, 9]) + bytes(12), "Dns(9.9.9.9)"),
    (3, 31, b"\1" + bytes(15) + b"\1", "Dns(::1)"),
    (
        4,
        1,
        struct.pack("<IQQ16sBB", 1, 0x800, 0x12C000, GUID, 2, 2),
        f"HD(1,GPT,{GUID_TEXT},0x800,0x12c000)",
    ),
    (
        4,
        1,
        struct.pack("<IQQ16sBB", 1, 63, 9, struct.pack("<I12x", 0xCAFE), 1, 1),
        "HD(1,MBR,0x0000cafe,0x3f,0x9)",
    ),
    (
        4,
        1,
        struct.pack("<IQQ16sBB", 1, 63, 9, GUID, 7, 0),
        f"HD(1,7,{GUID.hex()},0x3f,0x9)",
    ),
    (4, 3, GUID, f"VenMedia({GUID_TEXT})"),
    (4, 4, _utf16("\\EFI\\BOOT\\BOOTX64.EFI"), "\\EFI\\BOOT\\BOOTX64.EFI"),
    (4, 4, _utf16("\x1b[2J"), "\\x1b[2J"),
    (4, 6, GUID, f"FvFile({GUID_TEXT})"),
    (4, 7, GUID, f"Fv({GUID_TEXT})"),
    (4, 8, struct.pack("<IQQ", 0, 1, 2), "Offset(0x1,0x2)"),
    (4, 9, struct.pack("<QQ16sH", 1, 2, GUID, 0), f"RamDisk(0x1,0x2,0,{GUID_TEXT})"),
    (5, 1, struct.pack("<HH", 2, 0) + b"Disk\0", "BBS(Disk)"),
    (3, 99, b"\1", "Path(3,99,01)"),
    (6, 1, b"", "Path(6,1)"),
]


@pytest.mark.parametrize(("kind", "sub_type", "data", "text"), NODES)
def test_a_node_in_words(kind: int, sub_type: int, data: bytes, text: str) -> None:
    assert node_text(DevicePathNode(kind, sub_type, data)) == text


@pytest.mark.parametrize(
    ("kind", "sub_type"), sorted({(kind, sub_type) for kind, sub_type, *_ in NODES[:-2]})
)
def test_a_node_of_the_wrong_size_is_shown_in_full(kind: int, sub_type: int) -> None:
    expected = "Uri(\\x01)" if (kind, sub_type) == (3, 24) else f"Path({kind},{sub_type},01)"
    if (kind, sub_type) != (1, 2):  # one byte is its size
        assert node_text(DevicePathNode(kind, sub_type, b"\1")) == expected


def test_nodes_are_joined_and_instances_separated() -> None:
    path = device_path(NODES[7][:3], NODES[0][:3], (0x7F, 1, b""), (4, 4, _utf16("x")))
    assert device_path_text(path) == "PciRoot(0x0)/Pci(0x1f,0x2),x"
    assert device_path_text(decode_device_path(path.encode())) == device_path_text(path)
    assert device_path_text(file_path("grubx64.efi")) == "grubx64.efi"
    assert device_path_text(DevicePath(())) == ""


def test_bytes_after_the_end_are_kept() -> None:
    data = file_path("x").encode() + b"after"
    path = decode_device_path(data)
    assert path.trailing == b"after"
    assert path.encode() == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\1\1\3\0", "Length of a node is too small"),
        (b"\1\1\0\0", "Length of a node is too small"),
        (b"\1\1\5\0", "a node's data is longer than the input"),
        (b"\1\1", "a device path node is cut short"),
        (b"\1\1\4\0" * (MAX_NODES + 1), "too many nodes"),
    ],
)
def test_a_hostile_path_ends_in_one_error(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        decode_device_path(data, 50)
    assert caught.value.offset >= 50


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_what_parses_encodes_to_itself_and_has_a_text(data: bytes) -> None:
    try:
        path = decode_device_path(data)
    except FormatError:
        return
    assert path.encode() == data
    assert device_path_text(path).isprintable()


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 35), st.binary(max_size=60))
def test_any_node_has_a_printable_text(kind: int, sub_type: int, data: bytes) -> None:
    assert node_text(DevicePathNode(kind, sub_type, data)).isprintable()
