"""Device paths as people write them (UEFI 2.10, section 10.6).

A node that we have no words for, or whose data has not the size of its kind, is written as the
specification's ``Path(type,subtype,data)``, so that nothing is left out.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from undercroft.formats.eventlog.devicepath import END_ENTIRE, END_TYPE, DevicePath, DevicePathNode
from undercroft.formats.eventlog.guid import guid_text
from undercroft.formats.eventlog.text import plain

_Write = Callable[..., str]


def _fixed(layout: str, template: str) -> _Write:
    """Return a writer for a node of fixed layout; GUIDs are its 16-byte fields."""
    fields = struct.Struct("<" + layout)

    def write(data: bytes) -> str:
        if len(data) != fields.size:
            return ""
        values = [guid_text(v) if isinstance(v, bytes) else v for v in fields.unpack(data)]
        return template.format(*values)

    return write


def _text16(template: str) -> _Write:
    def write(data: bytes) -> str:
        text = data.decode("utf-16-le", "replace") if len(data) % 2 == 0 else ""
        return template.format(plain(text.rstrip("\0"))) if text else ""

    return write


def _text8(template: str, skip: int = 0) -> _Write:
    def write(data: bytes) -> str:
        text = data[skip:].decode("utf-8", "replace").rstrip("\0")
        return template.format(plain(text)) if len(data) >= skip else ""

    return write


def _vendor(template: str) -> _Write:
    def write(data: bytes) -> str:
        rest = "," + data[16:].hex() if data[16:] else ""
        return template.format(guid_text(data[:16]) + rest) if len(data) >= 16 else ""

    return write


_ACPI = struct.Struct("<II")
_PNP = {
    0x0A03: "PciRoot",
    0x0A08: "PcieRoot",
    0x0604: "Floppy",
    0x0301: "Keyboard",
    0x0501: "Serial",
    0x0401: "ParallelPort",
}
_EISA_PNP = 0x41D0


def _acpi(data: bytes) -> str:
    if len(data) != _ACPI.size:
        return ""
    hid, uid = _ACPI.unpack(data)
    if hid & 0xFFFF != _EISA_PNP:
        return f"Acpi({hid:#010x},{uid:#x})"
    number = hid >> 16
    name = _PNP.get(number)
    return f"{name}({uid:#x})" if name else f"Acpi(PNP{number:04X},{uid:#x})"


_HARD_DRIVE = struct.Struct("<IQQ16sBB")


def _hard_drive(data: bytes) -> str:
    if len(data) != _HARD_DRIVE.size:
        return ""
    number, start, size, signature, form, kind = _HARD_DRIVE.unpack(data)
    if kind == 2:
        disk = f"GPT,{guid_text(signature)}"
    elif kind == 1:
        disk = f"MBR,{int.from_bytes(signature[:4], 'little'):#010x}"
    else:
        disk = f"{form},{signature.hex()}"
    return f"HD({number},{disk},{start:#x},{size:#x})"


def _mac(data: bytes) -> str:
    if len(data) != 33:
        return ""
    return f"MAC({data[: 6 if data[32] in (0, 1) else 32].hex()},{data[32]:#x})"


def _ipv4(data: bytes) -> str:
    if len(data) not in (15, 23):
        return ""
    local, remote = (ipaddress.IPv4Address(data[at : at + 4]) for at in (0, 4))
    kind = "Static" if data[14] else "DHCP"
    return f"IPv4({remote},{_protocol(data[12:14])},{kind},{local})"


def _ipv6(data: bytes) -> str:
    if len(data) not in (39, 56):
        return ""
    local, remote = (ipaddress.IPv6Address(data[at : at + 16]) for at in (0, 16))
    kinds = {0: "Static", 1: "StatelessAutoConfigure"}
    kind = kinds.get(data[38], "StatefulAutoConfigure")
    return f"IPv6({remote},{_protocol(data[36:38])},{kind},{local})"


def _protocol(data: bytes) -> str:
    number = int.from_bytes(data, "little")
    return {6: "TCP", 17: "UDP"}.get(number, f"{number:#x}")


def _nvme(data: bytes) -> str:
    if len(data) != 12:
        return ""
    eui = "-".join(f"{byte:02x}" for byte in reversed(data[4:]))
    return f"NVMe({int.from_bytes(data[:4], 'little'):#x},{eui})"


def _addresses(data: bytes) -> str:
    size = 16 if data[:1] == b"\x01" else 4
    if len(data) % 16 != 1 or len(data) == 1:
        return ""
    chunks = [data[at : at + size] for at in range(1, len(data), 16)]
    return f"Dns({','.join(str(ipaddress.ip_address(chunk)) for chunk in chunks)})"


_WRITERS: Mapping[tuple[int, int], _Write] = MappingProxyType(
    {
        (1, 1): _fixed("BB", "Pci({1:#x},{0:#x})"),
        (1, 2): _fixed("B", "PcCard({:#x})"),
        (1, 3): _fixed("IQQ", "MemoryMapped({:#x},{:#x},{:#x})"),
        (1, 4): _vendor("VenHw({})"),
        (1, 5): _fixed("I", "Ctrl({:#x})"),
        (1, 6): _fixed("BQ", "BMC({:#x},{:#x})"),
        (2, 1): _acpi,
        (2, 3): _fixed("I", "AcpiAdr({:#x})"),
        (3, 1): _fixed("BBH", "Ata({},{},{:#x})"),
        (3, 2): _fixed("HH", "Scsi({:#x},{:#x})"),
        (3, 3): _fixed("IQQ", "Fibre({1:#x},{2:#x})"),
        (3, 4): _fixed("IQ", "I1394({1:016x})"),
        (3, 5): _fixed("BB", "USB({:#x},{:#x})"),
        (3, 6): _fixed("I", "I2O({:#x})"),
        (3, 10): _vendor("VenMsg({})"),
        (3, 11): _mac,
        (3, 12): _ipv4,
        (3, 13): _ipv6,
        (3, 15): _fixed("HHBBB", "UsbClass({:#x},{:#x},{:#x},{:#x},{:#x})"),
        (3, 17): _fixed("B", "Unit({:#x})"),
        (3, 18): _fixed("HHH", "Sata({:#x},{:#x},{:#x})"),
        (3, 20): _fixed("H", "Vlan({})"),
        (3, 23): _nvme,
        (3, 24): _text8("Uri({})"),
        (3, 25): _fixed("BB", "UFS({:#x},{:#x})"),
        (3, 26): _fixed("B", "SD({:#x})"),
        (3, 29): _fixed("B", "eMMC({:#x})"),
        (3, 31): _addresses,
        (4, 1): _hard_drive,
        (4, 2): _fixed("IQQ", "CDROM({:#x},{:#x},{:#x})"),
        (4, 3): _vendor("VenMedia({})"),
        (4, 4): _text16("{}"),
        (4, 5): _fixed("16s", "Media({})"),
        (4, 6): _fixed("16s", "FvFile({})"),
        (4, 7): _fixed("16s", "Fv({})"),
        (4, 8): _fixed("IQQ", "Offset({1:#x},{2:#x})"),
        (4, 9): _fixed("QQ16sH", "RamDisk({0:#x},{1:#x},{3},{2})"),
        (5, 1): _text8("BBS({})", skip=4),
    }
)


def node_text(node: DevicePathNode) -> str:
    """Return one node as text."""
    writer: Any = _WRITERS.get((node.type, node.sub_type))
    words = writer(node.data) if writer else ""
    if words:
        return str(words)
    data = "," + node.data.hex() if node.data else ""
    return f"Path({node.type},{node.sub_type}{data})"


def device_path_text(path: DevicePath) -> str:
    """Return a device path as text: nodes joined by ``/``, instances by ``,``."""
    instances: list[list[str]] = [[]]
    for node in path.nodes:
        if node.type != END_TYPE:
            instances[-1].append(node_text(node))
        elif node.sub_type != END_ENTIRE:
            instances.append([])
    return ",".join("/".join(nodes) for nodes in instances)
