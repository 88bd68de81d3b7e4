"""SPDM device measurements in the log (PFP 1.06, section 10.2.8; DMTF DSP0274 1.3).

EV_EFI_SPDM_FIRMWARE_BLOB and ..._CONFIG hold DEVICE_SECURITY_EVENT_DATA or
DEVICE_SECURITY_EVENT_DATA2 and are hashed whole.  Certificate chains and nonces go to NV indices
and are logged as EV_NO_ACTION (NvIndexInstance, NvIndexDynamic).
"""

from __future__ import annotations

import struct

from undercroft.formats.eventlog.devicepath import DevicePath, decode_device_path
from undercroft.formats.eventlog.value import Decoded, Digests, EventValue, covered
from undercroft.formats.reader import BoundedReader

SPDM_1 = b"SPDM Device Sec\0"
SPDM_2 = b"SPDM Device Sec2"

_HEADER_1 = struct.Struct("<16sHHII")
_BLOCK = struct.Struct("<BBH")
_HEADER_2 = struct.Struct("<16sHBBIIIIQ")
_SUB_HEADER = struct.Struct("<HBBI")
_NV = struct.Struct("<16sH6s")

DEVICE_TYPES = {0: "no device context", 1: "PCI device", 2: "USB device"}
AUTH_STATES = {
    0: "authenticated",
    1: "not authenticated",
    2: "not bound to the measurements",
    3: "no signature",
    4: "invalid signature",
    0xFF: "no SPDM",
}
MEASUREMENT_BLOCKS = 0
CERTIFICATE_CHAIN = 1


class MeasurementBlock(EventValue, frozen=True, gc=False):
    """One SPDM measurement block: index, specification and the measurement."""

    index: int
    specification: int
    measurement: bytes

    def encode(self) -> bytes:
        """Return the block."""
        head = _BLOCK.pack(self.index, self.specification, len(self.measurement))
        return head + self.measurement


class PciContext(EventValue, frozen=True, gc=False):
    """DEVICE_SECURITY_EVENT_DATA_PCI_CONTEXT."""

    version: int
    length: int
    vendor_id: int
    device_id: int
    revision_id: int
    class_code: bytes
    subsystem_vendor_id: int
    subsystem_id: int

    def encode(self) -> bytes:
        """Return the context."""
        return _PCI.pack(
            self.version,
            self.length,
            self.vendor_id,
            self.device_id,
            self.revision_id,
            self.class_code,
            self.subsystem_vendor_id,
            self.subsystem_id,
        )


_PCI = struct.Struct("<HHHHB3sHH")


class DeviceContext(EventValue, frozen=True, gc=False):
    """A context that is not PCI (USB descriptors, or none): bytes as they are."""

    data: bytes

    def encode(self) -> bytes:
        """Return the bytes."""
        return self.data


class DeviceSecurity(EventValue, frozen=True, gc=False):
    """DEVICE_SECURITY_EVENT_DATA: one measurement of one device."""

    version: int
    length: int
    hash_algorithm: int
    device_type: int
    block: MeasurementBlock
    context: PciContext | DeviceContext

    def encode(self) -> bytes:
        """Return the event data."""
        numbers = (self.version, self.length, self.hash_algorithm, self.device_type)
        return _HEADER_1.pack(SPDM_1, *numbers) + self.block.encode() + self.context.encode()


class DeviceSecurity2(EventValue, frozen=True, gc=False):
    """DEVICE_SECURITY_EVENT_DATA2: measurements or a certificate chain of one device.

    ``blocks`` when ``sub_header_type`` is 0, ``certificate_chain`` when it is 1 (and the raw
    sub-header when it is neither).  ``slot`` is the block count or the SPDM slot.
    """

    version: int
    auth_state: int
    reserved: int
    length: int
    device_type: int
    sub_header_type: int
    sub_header_length: int
    uid: int
    device_path: DevicePath
    spdm_version: int
    slot: int
    sub_reserved: int
    hash_algorithm: int
    blocks: tuple[MeasurementBlock, ...]
    certificate_chain: bytes
    context: PciContext | DeviceContext

    def encode(self) -> bytes:
        """Return the event data."""
        path = self.device_path.encode()
        head = _HEADER_2.pack(
            SPDM_2,
            self.version,
            self.auth_state,
            self.reserved,
            self.length,
            self.device_type,
            self.sub_header_type,
            self.sub_header_length,
            self.uid,
        )
        sub = b""
        if self.sub_header_type in (MEASUREMENT_BLOCKS, CERTIFICATE_CHAIN):
            numbers = (self.spdm_version, self.slot, self.sub_reserved, self.hash_algorithm)
            sub = _SUB_HEADER.pack(*numbers) + b"".join([b.encode() for b in self.blocks])
        body = struct.pack("<Q", len(path)) + path + sub + self.certificate_chain
        return head + body + self.context.encode()


class NvIndexInstance(EventValue, frozen=True, gc=False):
    """NV_INDEX_INSTANCE_EVENT_LOG_DATA: what was extended into NV index 0x01c40200."""

    claimed_version: int
    claimed_reserved: bytes
    claimed_device: DeviceSecurity2

    def encode(self) -> bytes:
        """Return the event data."""
        head = _NV.pack(b"NvIndexInstance", self.claimed_version, self.claimed_reserved)
        return head + self.claimed_device.encode()


class NvIndexDynamic(EventValue, frozen=True, gc=False):
    """NV_INDEX_DYNAMIC_EVENT_LOG_DATA: what was extended into NV index 0x01c40201."""

    signature: bytes
    claimed_version: int
    claimed_reserved: bytes
    claimed_uid: int
    claimed_description: bytes
    claimed_data: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        head = _NV.pack(self.signature, self.claimed_version, self.claimed_reserved)
        parts = [head, struct.pack("<Q", self.claimed_uid)]
        for field in (self.claimed_description, self.claimed_data):
            parts += [struct.pack("<H", len(field)), field]
        return b"".join(parts)


def decode_spdm(data: bytes, digests: Digests) -> Decoded:
    """EV_EFI_SPDM_FIRMWARE_BLOB and EV_EFI_SPDM_FIRMWARE_CONFIG.  Raises FormatError."""
    device = _device_2(data, 0) if data[:16] == SPDM_2 else _device_1(data)
    return covered(device, data, digests)


def _device_1(data: bytes) -> DeviceSecurity:
    reader = BoundedReader(data, "DEVICE_SECURITY_EVENT_DATA", order="little")
    signature, *numbers = reader.unpack(_HEADER_1, "the header")
    if signature != SPDM_1:
        reader.offset = 0
        raise reader.fail("not a device security event", expected=SPDM_1, got=signature)
    block = _block(reader)
    return DeviceSecurity(*(*numbers, block, _context(reader, numbers[3])))


def _device_2(data: bytes, base: int) -> DeviceSecurity2:
    reader = BoundedReader(data, "DEVICE_SECURITY_EVENT_DATA2", order="little", base=base)
    signature, *numbers = reader.unpack(_HEADER_2, "the header")
    if signature != SPDM_2:
        reader.offset = 0
        raise reader.fail("not a device security event", expected=SPDM_2, got=signature)
    size = reader.u64("DevicePathLength")
    at = base + reader.offset
    path = decode_device_path(reader.take(size, "DevicePath"), at)
    sub_type, sub_length = numbers[5], numbers[6]
    at = base + reader.offset
    sub = BoundedReader(
        reader.take(sub_length, "the sub-header"), reader.format_name, order="little", base=at
    )
    fields: tuple[int, ...] = (0, 0, 0, 0)
    blocks: list[MeasurementBlock] = []
    if sub_type in (MEASUREMENT_BLOCKS, CERTIFICATE_CHAIN):
        fields = sub.unpack(_SUB_HEADER, "the SPDM sub-header")
    if sub_type == MEASUREMENT_BLOCKS:
        blocks = [_block(sub) for _ in range(fields[1])]
        sub.finish()
    context = _context(reader, numbers[4])
    return DeviceSecurity2(*(*numbers, path, *fields, tuple(blocks), sub.rest(), context))


def _block(reader: BoundedReader) -> MeasurementBlock:
    index, specification, size = reader.unpack(_BLOCK, "a measurement block")
    return MeasurementBlock(index, specification, reader.take(size, "a measurement"))


def _context(reader: BoundedReader, device_type: int) -> PciContext | DeviceContext:
    if device_type == 1 and reader.remaining == _PCI.size:
        return PciContext(*reader.unpack(_PCI, "the PCI context"))
    return DeviceContext(reader.rest())


def decode_nv_instance(data: bytes) -> EventValue:
    """EV_NO_ACTION NvIndexInstance.  Raises FormatError."""
    reader = BoundedReader(data, "NV_INDEX_INSTANCE_EVENT_LOG_DATA", order="little")
    _, version, reserved = reader.unpack(_NV, "the header")
    at = reader.offset
    return NvIndexInstance(version, reserved, _device_2(reader.rest(), at))


def decode_nv_dynamic(data: bytes) -> EventValue:
    """EV_NO_ACTION NvIndexDynamic.  Raises FormatError."""
    reader = BoundedReader(data, "NV_INDEX_DYNAMIC_EVENT_LOG_DATA", order="little")
    signature, version, reserved = reader.unpack(_NV, "the header")
    uid = reader.u64("Uid")
    description = reader.sized(2, "Description")
    payload = reader.sized(2, "Data")
    reader.finish()
    return NvIndexDynamic(signature, version, reserved, uid, description, payload)
