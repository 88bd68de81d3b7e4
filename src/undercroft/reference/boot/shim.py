"""What shim measures: its lists into PCR 14, the revocation level and authorities into PCR 7.

Sources: shim 16.1, mok.c (mok_state_variables), sbat.c (set_sbat_uefi_variable), tpm.c
(tpm_measure_variable), SbatLevel_Variable.txt and cert.S (layout of .vendor_cert).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.eventlog.signatures import EFI_CERT_X509
from undercroft.formats.pe import PeImage
from undercroft.formats.reader import BoundedReader
from undercroft.formats.varstore import StoredVariable
from undercroft.reference.boot.event import PredictedEvent
from undercroft.reference.boot.measure import AUTHORITY, IPL, SHIM_LOCK, event, variable
from undercroft.reference.model import Provenance

_LEVEL_DATE = re.compile(rb"sbat,\d+,(\d{10})\n")
_UNMODELLED = ("MokSBState", "MokDBState", "MokList", "MokListX", "MokPolicy", "MokIgnoreDB")


@dataclass(frozen=True, slots=True)
class ShimParts:
    """What the distribution built into its shim.

    ``vendor_certificate`` (DER) verifies what shim starts; ``vendor_dbx`` are EFI_SIGNATURE_LISTs
    of what it refuses; ``sbat_level`` is the revocation level that it installs.
    """

    vendor_certificate: bytes
    vendor_dbx: bytes
    sbat_level: bytes


def shim_parts(shim: PeImage) -> ShimParts:
    """Read the sections of a shim.  Raises FormatError if it is none that we know."""
    certificates, levels = shim.section(".vendor_cert"), shim.section(".sbatlevel")
    if certificates is None or levels is None:
        raise FormatError("shim", 0, "a section is missing", expected=".vendor_cert, .sbatlevel")
    reader = BoundedReader(certificates, "shim .vendor_cert", order="little")
    sizes = struct.Struct("<IIII")
    auth_size, deauth_size, auth_at, deauth_at = reader.unpack(sizes, "the sizes")
    parts = []
    for at, size in ((auth_at, auth_size), (deauth_at, deauth_size)):
        if at + size > len(certificates):
            raise FormatError("shim .vendor_cert", 0, "an entry leaves the section", got=at + size)
        parts.append(certificates[at : at + size])
    reader = BoundedReader(levels, "shim .sbatlevel", order="little")
    reader.u32("the version")
    automatic = 4 + reader.u32("the offset of the automatic level")
    level, end, _ = levels[automatic:].partition(b"\0")
    if not end or not _LEVEL_DATE.match(level):
        raise FormatError("shim .sbatlevel", automatic, "no revocation level", got=level[:40])
    return ShimParts(parts[0], parts[1], level)


def installed_level(shim: ShimParts, stored: Sequence[StoredVariable]) -> bytes:
    """Return SbatLevel after shim has run: its own, unless the store has a newer one."""
    for one in stored:
        if (
            one.guid == SHIM_LOCK
            and one.name == "SbatLevel"
            and _date(one.data) >= _date(shim.sbat_level)
        ):
            return one.data
    return shim.sbat_level


def _date(level: bytes) -> bytes:
    match = _LEVEL_DATE.match(level)
    return match[1] if match else b""


def _own_entry(shim: ShimParts) -> bytes:
    """Return the vendor certificate as EFI_SIGNATURE_DATA, owned by shim."""
    return SHIM_LOCK + shim.vendor_certificate


def shim_events(
    shim: ShimParts, stored: Sequence[StoredVariable], provenance: Provenance
) -> tuple[PredictedEvent, ...]:
    """Return what shim measures of its own state.  ``stored`` are the firmware's variables.

    Raises FormatError if somebody has enrolled keys of their own, which is not modelled.
    """
    enrolled = [v.name for v in stored if v.guid == SHIM_LOCK and v.name in _UNMODELLED]
    if enrolled:
        raise FormatError("variable store", 0, "keys enrolled with shim are not modelled",
                          got=", ".join(enrolled))  # fmt: skip
    entry = _own_entry(shim)
    mok_list = EFI_CERT_X509 + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry
    level = installed_level(shim, stored)

    def owned(name: str, what: str, measured: bytes) -> PredictedEvent:
        data = name.encode() + b"\0"
        return event(14, IPL, what, provenance, measured, name, data=data)

    return (
        owned("MokList", "shim: the vendor's certificate", mok_list),
        owned("MokListX", "shim: what the vendor refuses", shim.vendor_dbx),
        event(
            7, AUTHORITY, "shim: revocation level (SbatLevel)", provenance,
            variable(SHIM_LOCK, "SbatLevel", level), "SbatLevel",
        ),
        owned("MokListTrusted", "shim: its list is trusted by the kernel", b"\1"),
    )  # fmt: skip


def shim_authority(shim: ShimParts, provenance: Provenance) -> PredictedEvent:
    """Return the event of the first image that the vendor's certificate verified.

    shim remembers what it has measured: a second image under the same authority adds nothing.
    """
    return event(
        7, AUTHORITY, "shim: the vendor's certificate verified an image", provenance,
        variable(SHIM_LOCK, "MokListRT", _own_entry(shim)), "vendor authority",
    )  # fmt: skip
