"""EV_EVENT_TAG: TCG_PCClientTaggedEvent (PFP 1.06, section 10.2.7), by whoever writes it.

Windows hashes the tagged events themselves (its boot configuration log nests them); Linux and
systemd hash something else and tag its name: kernel drivers/firmware/efi/libstub/efistub.h,
systemd docs/TPM2_PCR_MEASUREMENTS.md.
"""

from __future__ import annotations

import struct

from undercroft.base import FormatError
from undercroft.formats.eventlog.text import AsciiText, Utf16Text, ascii_text, utf16_text
from undercroft.formats.eventlog.value import (
    Claimed,
    Decoded,
    DigestCheck,
    Digests,
    EventValue,
    hashes_to,
    perhaps_covered,
)
from undercroft.formats.reader import BoundedReader

_TAG = struct.Struct("<II")
MAX_DEPTH = 8
MAX_TAGS = 4096

_WINDOWS_CONTAINER = 0x40010000
"""SIPAEVENTTYPE_AGGREGATION | SIPAEVENTTYPE_CONTAINER of wbcl.h: tagged events inside."""

NAMED_TAGS = {
    0x8F3B22EC: "Linux initrd",
    0x8F3B22ED: "Linux load options",
    0xF5BC582A: "systemd-boot loader.conf",
    0x6C46F751: "systemd-stub device tree",
    0x49DFFE0F: "systemd-stub initrd add-on",
    0xDAC08E1A: "systemd-stub microcode add-on",
    0x13AED6DB: "systemd-stub UKI profile",
    0xD5CB7CBC: "SMBIOS system information",
    0xE0D47BC8: "SMBIOS baseboard information",
    0xC0B3BD23: "SMBIOS OEM strings",
}
"""Tags whose digest is of a thing outside the log, and what that thing is."""

WINDOWS_TAGS = {
    0x40010001: "trust boundary",
    0x40010002: "early-launch anti-malware",
    0x40010003: "loaded module",
    0xC0010004: "trust point",
    0x00020002: "boot counter",
    0x00020003: "transfer of control",
    0x00020004: "application return",
    0x00020005: "BitLocker unlock",
    0x00020006: "event counter",
    0x00020007: "counter id",
    0x00020009: "application security version",
    0x00040001: "boot debugging",
    0x00040002: "boot revocation list",
    0x00050001: "kernel debugging",
    0x00050002: "code integrity",
    0x00050003: "test signing",
    0x00050004: "data execution prevention",
    0x00050005: "safe mode",
    0x00050006: "WinPE",
    0x00050008: "OS device",
    0x00050009: "system root",
    0x0005000A: "hypervisor launch type",
    0x0005000E: "driver load policy",
    0x0005000F: "system integrity policy",
    0x00050012: "VSM launch type",
    0x00050013: "OS revocation list",
    0x00050020: "VSM identity key",
    0x00060001: "no authority",
    0x00060002: "authority's public key",
    0x00070001: "file path",
    0x00070002: "image size",
    0x00070003: "hash algorithm",
    0x00070004: "Authenticode hash",
    0x00070005: "authority's issuer",
    0x00070006: "authority's serial number",
    0x00070007: "image base",
    0x00070008: "authority's publisher",
    0x00070009: "authority's SHA-1 thumbprint",
    0x0007000A: "image validated",
    0x80080001: "quote",
    0x80080002: "quote's signature",
    0x80080003: "attestation key's name",
    0x80080004: "attestation key's digest",
}
"""SIPAEVENT_* of wbcl.h (Windows SDK); what is not here is shown by its number."""

WINDOWS_TEXTS = frozenset({0x00050009, 0x00070001, 0x00070005, 0x00070008})
"""Those that hold UTF-16 text."""
WINDOWS_HASHES = {0x8004: "SHA-1", 0x800C: "SHA-256", 0x800D: "SHA-384", 0x800E: "SHA-512"}
"""ALG_ID of wincrypt.h, as SIPAEVENT_HASHALGORITHMID has it."""
WINDOWS_HASH_ALGORITHM = 0x00070003
WINDOWS_NUMBERS = frozenset(
    {0x00020002, 0x00020003, 0x00020005, 0x00020006, 0x00020009, 0x00040001}
    | {0x00050001, 0x00050002, 0x00050003, 0x00050004, 0x00050005, 0x00050006}
    | {0x0005000A, 0x0005000E, 0x00050012, 0x00070002, 0x0007000A}
)
"""Those that hold a number or a truth value of 1, 4 or 8 bytes."""


class Tag(EventValue, frozen=True, gc=False):
    """TCG_PCClientTaggedEvent; ``children`` are the tags inside a Windows container."""

    id: int
    data: bytes
    children: tuple[Tag, ...] = ()

    def encode(self) -> bytes:
        """Return the tagged event; ``data`` holds the children's bytes."""
        return _TAG.pack(self.id, len(self.data)) + self.data


class TaggedEvents(EventValue, frozen=True, gc=False):
    """Tagged events whose own bytes are hashed (Windows, SeaBIOS)."""

    tags: tuple[Tag, ...]

    def encode(self) -> bytes:
        """Return the event data."""
        return b"".join([tag.encode() for tag in self.tags])


class NamedMeasurement(EventValue, frozen=True, gc=False):
    """A tag that names what was measured; what was measured is not in the log."""

    claimed_id: int
    claimed_description: AsciiText | Utf16Text

    def encode(self) -> bytes:
        """Return the event data."""
        body = self.claimed_description.encode()
        return _TAG.pack(self.claimed_id, len(body)) + body


def decode_event_tag(data: bytes, digests: Digests) -> Decoded:
    """EV_EVENT_TAG.  Raises FormatError."""
    untagged = ascii_text(data)
    if untagged is not None and not hashes_to(digests, data):
        # Linux 6.x logs the bare description to a CC log; quirk untagged-event-tag.
        return Claimed(untagged), DigestCheck.NOT_RECOMPUTABLE
    value = decode_tags(data)
    tags = value.tags
    if len(tags) == 1 and tags[0].id in NAMED_TAGS:
        text = ascii_text(tags[0].data) or utf16_text(tags[0].data)
        if text is not None:
            return NamedMeasurement(tags[0].id, text), DigestCheck.NOT_RECOMPUTABLE
    return perhaps_covered(value, data, digests)


def decode_tags(data: bytes) -> TaggedEvents:
    """Decode tagged events that fill ``data``.  Raises FormatError."""
    return TaggedEvents(_tags(data, "TCG_PCClientTaggedEvent"))


def _tags(data: bytes, name: str, base: int = 0, depth: int = 0) -> tuple[Tag, ...]:
    reader = BoundedReader(data, name, order="little", base=base)
    tags: list[Tag] = []
    while reader.remaining:
        if len(tags) == MAX_TAGS:
            raise reader.fail("too many tagged events", expected=f"<= {MAX_TAGS}")
        number, size = reader.unpack(_TAG, "a tagged event")
        at = base + reader.offset
        body = reader.take(size, "taggedEventData")
        tags.append(Tag(number, body, _children(number, body, name, at, depth)))
    return tuple(tags)


def _children(number: int, body: bytes, name: str, at: int, depth: int) -> tuple[Tag, ...]:
    if number & _WINDOWS_CONTAINER != _WINDOWS_CONTAINER or depth == MAX_DEPTH:
        return ()
    try:
        return _tags(body, name, at, depth + 1)
    except FormatError:
        return ()  # a container by its number only: its bytes stay as they are
