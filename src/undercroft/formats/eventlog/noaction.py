"""EV_NO_ACTION: information that is logged and never extended (PFP 1.06, section 10.4.5).

Nothing here is covered by a digest, so every field is ``claimed_``.  The one exception in effect
is StartupLocality: a wrong one makes PCR 0 replay to another value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from undercroft.formats.eventlog.spdm import decode_nv_dynamic, decode_nv_instance
from undercroft.formats.eventlog.specid import SPEC_ID_00, SPEC_ID_02, SPEC_ID_03, decode_spec_id
from undercroft.formats.eventlog.tagged import decode_tags
from undercroft.formats.eventlog.value import Claimed, EventValue, Opaque
from undercroft.formats.reader import BoundedReader

STARTUP_LOCALITY = b"StartupLocality\0"
SP800_155 = b"SP800-155 Event\0"
SP800_155_2 = b"SP800-155 Event2"
SP800_155_3 = b"SP800-155 Event3"
HCRTM_COMPONENT = b"H-CRTM CompMeas\0"

_SIGNATURE = 16
_WINDOWS_TRUST_POINT = (0xC0010004).to_bytes(4, "little")
"""SIPAEV_TRUSTPOINT_AGGREGATION of wbcl.h: Windows ends its copy of the log with quotes."""

LOCATOR_TYPES = {0: "raw data", 1: "URI", 2: "device path", 3: "UEFI variable"}


class StartupLocality(EventValue, frozen=True, gc=False):
    """TCG_EfiStartupLocalityEvent: who started the TPM.

    0 and 3: TPM2_Startup from that locality; 4: after an H-CRTM sequence.  It becomes the last
    byte of PCR 0's start value (TPM 2.0 Library part 1, section 34; PFP 1.06, section 3.3.4.1).
    """

    claimed_locality: int

    def encode(self) -> bytes:
        """Return the event data."""
        return STARTUP_LOCALITY + bytes([self.claimed_locality])


class PlatformId(EventValue, frozen=True, gc=False):
    """TCG_Sp800_155_PlatformId_Event, ..._Event2 and ..._Event3.

    Which of the three is ``signature``; the strings (with their NULs) exist from Event2 on, the
    locators of reference manifest and platform certificate in Event3.  ``claimed_trailing`` is
    what stands after the structure: OVMF rounds the event up to a HOB's eight bytes.
    """

    signature: bytes
    claimed_vendor_id: int
    claimed_reference_manifest_guid: bytes
    claimed_platform_manufacturer: bytes = b""
    claimed_platform_model: bytes = b""
    claimed_platform_version: bytes = b""
    claimed_firmware_manufacturer: bytes = b""
    claimed_firmware_manufacturer_id: int = 0
    claimed_firmware_version: bytes = b""
    claimed_rim_locator_type: int = 0
    claimed_rim_locator: bytes = b""
    claimed_platform_cert_locator_type: int = 0
    claimed_platform_cert_locator: bytes = b""
    claimed_trailing: bytes = b""

    def encode(self) -> bytes:
        """Return the event data."""
        parts = [
            self.signature,
            struct.pack("<I", self.claimed_vendor_id),
            self.claimed_reference_manifest_guid,
        ]
        if self.signature != SP800_155:
            parts += [
                _sized(self.claimed_platform_manufacturer),
                _sized(self.claimed_platform_model),
                _sized(self.claimed_platform_version),
                _sized(self.claimed_firmware_manufacturer),
                struct.pack("<I", self.claimed_firmware_manufacturer_id),
                _sized(self.claimed_firmware_version),
            ]
        if self.signature == SP800_155_3:
            parts += [
                _locator(self.claimed_rim_locator_type, self.claimed_rim_locator),
                _locator(
                    self.claimed_platform_cert_locator_type, self.claimed_platform_cert_locator
                ),
            ]
        return b"".join(parts) + self.claimed_trailing


class HcrtmComponent(EventValue, frozen=True, gc=False):
    """TCG_HCRTMComponentEvent: one component that the H-CRTM measured."""

    claimed_description: bytes
    claimed_format: int
    claimed_measurement: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        body = _sized(self.claimed_description) + bytes([self.claimed_format])
        return HCRTM_COMPONENT + body + _sized(self.claimed_measurement)


def _sized(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _locator(kind: int, locator: bytes) -> bytes:
    return struct.pack("<II", kind, len(locator)) + locator


def _startup_locality(data: bytes) -> EventValue:
    reader = BoundedReader(data, "TCG_EfiStartupLocalityEvent", order="little")
    reader.take(_SIGNATURE, "Signature")
    locality = reader.u8("StartupLocality")
    reader.finish()
    return StartupLocality(locality)


def _platform_id(data: bytes) -> EventValue:
    reader = BoundedReader(data, "TCG_Sp800_155_PlatformId_Event", order="little")
    signature = reader.take(_SIGNATURE, "Signature")
    vendor_id = reader.u32("VendorId")
    event = PlatformId(signature, vendor_id, reader.take(16, "ReferenceManifestGuid"))
    if signature != SP800_155:
        event = msgspec.structs.replace(
            event,
            claimed_platform_manufacturer=reader.sized(1, "PlatformManufacturerStr"),
            claimed_platform_model=reader.sized(1, "PlatformModel"),
            claimed_platform_version=reader.sized(1, "PlatformVersion"),
            claimed_firmware_manufacturer=reader.sized(1, "FirmwareManufacturerStr"),
            claimed_firmware_manufacturer_id=reader.u32("FirmwareManufacturerId"),
            claimed_firmware_version=reader.sized(1, "FirmwareVersion"),
        )
    if signature == SP800_155_3:
        event = msgspec.structs.replace(
            event,
            claimed_rim_locator_type=reader.u32("RimLocatorType"),
            claimed_rim_locator=reader.sized(4, "RimLocator"),
            claimed_platform_cert_locator_type=reader.u32("PlatformCertLocatorType"),
            claimed_platform_cert_locator=reader.sized(4, "PlatformCertLocator"),
        )
    return msgspec.structs.replace(event, claimed_trailing=reader.rest())


def _hcrtm_component(data: bytes) -> EventValue:
    reader = BoundedReader(data, "TCG_HCRTMComponentEvent", order="little")
    reader.take(_SIGNATURE, "Signature")
    description = reader.sized(1, "componentDescription")
    kind = reader.u8("measurementFormatType")
    measurement = reader.sized(1, "componentMeasurement")
    reader.finish()
    return HcrtmComponent(description, kind, measurement)


_BY_SIGNATURE: dict[bytes, Callable[[bytes], EventValue]] = {
    SPEC_ID_00: decode_spec_id,
    SPEC_ID_02: decode_spec_id,
    SPEC_ID_03: decode_spec_id,
    STARTUP_LOCALITY: _startup_locality,
    SP800_155: _platform_id,
    SP800_155_2: _platform_id,
    SP800_155_3: _platform_id,
    HCRTM_COMPONENT: _hcrtm_component,
    b"NvIndexInstance\0": decode_nv_instance,
    b"NvIndexDynamic\0\0": decode_nv_dynamic,
    b"NvIndexDynamic \0": decode_nv_dynamic,
}


def decode_no_action(data: bytes) -> EventValue:
    """EV_NO_ACTION, by the 16 bytes it begins with.  Raises FormatError."""
    if decode := _BY_SIGNATURE.get(data[:_SIGNATURE]):
        return decode(data)
    if data[:4] == _WINDOWS_TRUST_POINT:
        return Claimed(decode_tags(data))
    return Opaque(data, "unknown EV_NO_ACTION signature")
