"""EFI_GUID: sixteen bytes, the first three fields little-endian (UEFI 2.10, appendix A).

A GUID stays the sixteen bytes that it is in memory; it becomes text only where a person reads it.
"""

from __future__ import annotations

import uuid


def guid_bytes(text: str) -> bytes:
    """Return the sixteen bytes of ``8be4df61-93ca-11d2-aa0d-00e098032b8c``."""
    return uuid.UUID(text).bytes_le


def guid_text(guid: bytes) -> str:
    """Return a GUID as text, lower case."""
    return str(uuid.UUID(bytes_le=guid))


EFI_GLOBAL_VARIABLE = guid_bytes("8be4df61-93ca-11d2-aa0d-00e098032b8c")
EFI_IMAGE_SECURITY_DATABASE = guid_bytes("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = guid_bytes("605dab50-e046-4300-abb6-3dd810dd8b23")
MICROSOFT_OWNER = guid_bytes("77fa9abd-0359-4d32-bd60-28f4e78f784b")

NAMES = {
    EFI_GLOBAL_VARIABLE: "EFI_GLOBAL_VARIABLE",
    EFI_IMAGE_SECURITY_DATABASE: "EFI_IMAGE_SECURITY_DATABASE",
    SHIM_LOCK: "SHIM_LOCK",
    MICROSOFT_OWNER: "Microsoft",
    guid_bytes("eb9d2d30-2d88-11d3-9a16-0090273fc14d"): "ACPI_TABLE",
    guid_bytes("8868e871-e4f1-11d3-bc22-0080c73c8881"): "ACPI_20_TABLE",
    guid_bytes("eb9d2d31-2d88-11d3-9a16-0090273fc14d"): "SMBIOS_TABLE",
    guid_bytes("f2fd1544-9794-4a2c-992e-e5bbcf20e394"): "SMBIOS3_TABLE",
    guid_bytes("eb9d2d2f-2d88-11d3-9a16-0090273fc14d"): "MPS_TABLE",
    guid_bytes("3fb7c852-2aca-11d5-9ae6-0090273fc14d"): "SAL_SYSTEM_TABLE",
    guid_bytes("00000000-0000-0000-0000-000000000000"): "nobody",
}
"""Names of GUIDs that stand in event logs (UEFI 2.10, sections 3.3, 4.6 and 32.4; shim)."""


def guid_name(guid: bytes) -> str:
    """Return the well-known name of a GUID, or its text."""
    return NAMES.get(guid) or guid_text(guid)
