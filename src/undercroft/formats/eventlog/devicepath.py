"""EFI_DEVICE_PATH_PROTOCOL: where something was loaded from (UEFI 2.10, chapter 10).

A path is a row of nodes, each with a type, a sub-type and a length; it may hold several
instances.  Paths do not nest in one another except through their text, so a walk is a loop.
"""

from __future__ import annotations

import struct

from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.reader import BoundedReader

_NODE = struct.Struct("<BBH")
MAX_NODES = 256
"""More nodes than any real path has; a hostile path of empty nodes stops here."""

END_TYPE = 0x7F
END_ENTIRE = 0xFF
END_INSTANCE = 0x01


class DevicePathNode(EventValue, frozen=True, gc=False):
    """One node: type, sub-type and the bytes after its header."""

    type: int
    sub_type: int
    data: bytes

    def encode(self) -> bytes:
        """Return the node with its header."""
        return _NODE.pack(self.type, self.sub_type, _NODE.size + len(self.data)) + self.data


class DevicePath(EventValue, frozen=True, gc=False):
    """The nodes of a path, its end node included when the path has one.

    Firmware is known to cut the end node off (EFI_IMAGE_LOAD_EVENT) or to write bytes after it
    (``trailing``); both are kept as they are.
    """

    nodes: tuple[DevicePathNode, ...]
    trailing: bytes = b""

    def encode(self) -> bytes:
        """Return the path."""
        return b"".join([node.encode() for node in self.nodes]) + self.trailing


def decode_device_path(data: bytes, base: int = 0) -> DevicePath:
    """Decode a device path that fills ``data``.  Raises FormatError."""
    reader = BoundedReader(data, "EFI_DEVICE_PATH_PROTOCOL", order="little", base=base)
    nodes: list[DevicePathNode] = []
    while reader.remaining:
        start = reader.offset
        kind, sub_type, length = reader.unpack(_NODE, "a device path node")
        if length < _NODE.size:
            reader.offset = start
            raise reader.fail("Length of a node is too small", expected=">= 4", got=length)
        nodes.append(DevicePathNode(kind, sub_type, reader.take(length - 4, "a node's data")))
        if kind == END_TYPE and sub_type == END_ENTIRE:
            break
        if len(nodes) == MAX_NODES:
            raise reader.fail("a device path has too many nodes", expected=f"<= {MAX_NODES}")
    return DevicePath(tuple(nodes), reader.rest())
