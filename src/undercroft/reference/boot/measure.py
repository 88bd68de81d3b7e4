"""How single measurements are made: what is hashed, and what the log then says.

Sources: TCG PC Client Platform Firmware Profile 1.06, 3.3.4 (PCR usage) and 10.4 (events).
"""

from __future__ import annotations

import struct
from uuid import UUID

from undercroft.base import Digest
from undercroft.formats.eventlog.guid import guid_bytes
from undercroft.formats.pe import PeImage
from undercroft.reference.boot.event import PREDICTED_BANKS, PredictedEvent
from undercroft.reference.model import Grade, Provenance

EFI_GLOBAL_VARIABLE = guid_bytes("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = guid_bytes("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = guid_bytes("605dab50-e046-4300-abb6-3dd810dd8b23")

SPECIFICATION = Provenance(
    Grade.SPECIFICATION, origin="TCG PC Client Platform Firmware Profile 1.06"
)

DRIVER_CONFIG = "EV_EFI_VARIABLE_DRIVER_CONFIG"
AUTHORITY = "EV_EFI_VARIABLE_AUTHORITY"
IPL = "EV_IPL"


def event(
    pcr: int,
    event_type: str,
    what: str,
    provenance: Provenance,
    measured: bytes,
    role: str = "",
    *,
    data: bytes | None = None,
) -> PredictedEvent:
    """Return the event that hashes ``measured``; the log's ``data`` is the same if not given."""
    digests = tuple(bank.digest(measured) for bank in PREDICTED_BANKS)
    logged = measured if data is None else data
    return PredictedEvent(pcr, event_type, what, provenance, digests, role, logged)


def image(image: PeImage, what: str, provenance: Provenance, role: str) -> PredictedEvent:
    """Return the event of an EFI application that is started: its Authenticode digest."""
    digests = tuple(Digest(bank, image.authenticode(bank)) for bank in PREDICTED_BANKS)
    nowhere = bytes(struct.calcsize("<QQQQ"))  # UEFI_IMAGE_LOAD_EVENT: where it was loaded
    kind = "EV_EFI_BOOT_SERVICES_APPLICATION"
    return PredictedEvent(4, kind, what, provenance, digests, role, nowhere)


def separator(pcr: int) -> PredictedEvent:
    """Return the end of the firmware's measurements into ``pcr``."""
    return event(pcr, "EV_SEPARATOR", "end of firmware", SPECIFICATION, bytes(4), "separator")


def action(pcr: int, text: str) -> PredictedEvent:
    """Return an EV_EFI_ACTION: its text without an end."""
    return event(pcr, "EV_EFI_ACTION", text, SPECIFICATION, text.encode("ascii"), text)


def variable(guid: bytes, name: str, data: bytes) -> bytes:
    """Return a UEFI_VARIABLE_DATA (PC Client PFP 1.06, 10.2.6)."""
    text = name.encode("utf-16-le")
    return guid + struct.pack("<QQ", len(name), len(data)) + text + data


def boot_variable(name: str, data: bytes, provenance: Provenance) -> PredictedEvent:
    """Return an EV_EFI_VARIABLE_BOOT: the digest is over the data, the log has the name too."""
    return event(
        1, "EV_EFI_VARIABLE_BOOT", name, provenance, data, name,
        data=variable(EFI_GLOBAL_VARIABLE, name, data),
    )  # fmt: skip


def firmware_volume(
    what: str, provenance: Provenance, volume: bytes, address: int = 0
) -> PredictedEvent:
    """Return an EV_EFI_PLATFORM_FIRMWARE_BLOB over ``volume``, which lies at ``address``."""
    return event(
        0, "EV_EFI_PLATFORM_FIRMWARE_BLOB", what, provenance, volume, what,
        data=struct.pack("<QQ", address, len(volume)),
    )  # fmt: skip


def guid_of(text: str) -> bytes:
    """Return a GUID's bytes as UEFI stores them."""
    return UUID(text).bytes_le
