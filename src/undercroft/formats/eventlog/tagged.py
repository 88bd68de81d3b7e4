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
    covered,
    hashes_to,
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


class Tag(EventValue, frozen=True):
    """TCG_PCClientTaggedEvent; ``children`` are the tags inside a Windows container."""

    id: int
    data: bytes
    children: tuple[Tag, ...] = ()

    def encode(self) -> bytes:
        """Return the tagged event; ``data`` holds the children's bytes."""
        return _TAG.pack(self.id, len(self.data)) + self.data


class TaggedEvents(EventValue, frozen=True):
    """Tagged events whose own bytes are hashed (Windows, SeaBIOS)."""

    tags: tuple[Tag, ...]

    def encode(self) -> bytes:
        """Return the event data."""
        return b"".join([tag.encode() for tag in self.tags])


class NamedMeasurement(EventValue, frozen=True):
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
    return covered(value, data, digests)


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
