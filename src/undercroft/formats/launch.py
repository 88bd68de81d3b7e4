"""What a dynamic launch of the secure kernel puts into its event log: tagged events.

PCR 17 holds the secure kernel's manifest, PCR 18 the launch's reason and the identities that it
was given (VM descriptor, guest kernel), PCR 19 the secure kernel's running record.  The log around
the events is crypto-agile (TCG PC Client Platform Firmware Profile 1.06, 10.2.1); its events are
EV_EVENT_TAG with a TCG_PCClientTaggedEvent (10.4.2.1), whose data is a name (UTF-8), a zero byte
and the measured bytes.  Every digest is the hash of the whole event field.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from undercroft.base import Finding, FormatError
from undercroft.formats.reader import BoundedReader

PCR_MANIFEST, PCR_IDENTITY, PCR_RECORD = 17, 18, 19
LAUNCH_PCRS = (PCR_MANIFEST, PCR_IDENTITY, PCR_RECORD)

TAG_MANIFEST = 0x5543_0011
TAG_IDENTITY = 0x5543_0012
TAG_RECORD = 0x5543_0013
"""taggedEventID of our events: "UC", and the PCR that they go to."""

MANIFEST = "secure kernel"
"""Name of the event that PCR 17 gets."""
LAUNCH = "launch"
"""Name of the first event that PCR 18 gets: why and the how many-eth launch."""
GUEST_KERNEL = "guest-kernel"
VM_DESCRIPTOR = "vm-descriptor"
"""Names of identities in PCR 18."""

FINDING = "finding"
"""Name of a record in PCR 19 of something that was found to be wrong."""

EPOCH = "trap-epoch"
"""Name of a record in PCR 19 of an epoch of the write traps that has ended."""

REASONS = ("power-on", "reset", "restore", "attach")
"""Why a launch was made.  ``attach``: the guest ran before; ``restore``: from a saved state."""

_NAME = "launch event"
_MAX_NAME = 256
_MAX_DATA = 1 << 20
_MAX_FINDING = 4096
_EPOCH = struct.Struct(">16sQ32s")


@dataclass(frozen=True, slots=True)
class LaunchEvent:
    """The event field of one measurement: its tag, its name and the measured bytes."""

    tag: int
    name: str
    data: bytes

    def encode(self) -> bytes:
        """Return the event field."""
        return tagged_event(self.tag, self.name, self.data)


def tagged_event(tag: int, name: str, data: bytes) -> bytes:
    """Return the event field: TCG_PCClientTaggedEvent of ``name``, a zero byte and ``data``."""
    body = name.encode() + b"\0" + data
    return struct.pack("<II", tag, len(body)) + body


def parse_launch_event(field: bytes) -> LaunchEvent:
    """Parse an event field.  Raises FormatError; encoding the result gives back ``field``."""
    reader = BoundedReader(field, _NAME, order="little")
    tag = reader.u32("taggedEventID")
    body = reader.sized(4, "taggedEventData", limit=_MAX_DATA)
    reader.finish()
    name, separator, data = body.partition(b"\0")
    if not separator or not 1 <= len(name) <= _MAX_NAME:
        raise FormatError(_NAME, 8, "no name", expected=f"1 to {_MAX_NAME} bytes and a zero byte")
    try:
        return LaunchEvent(tag, name.decode(), data)
    except UnicodeDecodeError as error:
        raise FormatError(_NAME, 8 + error.start, "the name is not UTF-8") from error


def finding_record(finding: Finding) -> bytes:
    """Return what PCR 19 gets for a finding: its id, a line feed and its summary."""
    return f"{finding.id}\n{finding.summary}".encode()[:_MAX_FINDING]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What PCR 19 gets for an epoch that has ended: whose it is, its number, and its digest.

    ``session`` (16 bytes) is one run of the secure kernel's traps, ``sequence`` counts from 1 in
    it, ``digest`` is the SHA-256 of the encoded epoch (``evidence.interval.epoch_digest``).
    """

    session: bytes
    sequence: int
    digest: bytes

    def encode(self) -> bytes:
        """Return the record's data."""
        return _EPOCH.pack(self.session, self.sequence, self.digest)


def parse_epoch_record(data: bytes) -> EpochRecord:
    """Parse such data.  Raises FormatError; encoding the result gives back ``data``."""
    if len(data) != _EPOCH.size:
        raise FormatError("epoch record", 0, "size", expected=_EPOCH.size, got=len(data))
    session, sequence, digest = _EPOCH.unpack(data)
    if sequence == 0:
        raise FormatError("epoch record", 16, "epochs count from 1", got=0)
    return EpochRecord(session, sequence, digest)


def launch_text(reason: str, number: int) -> bytes:
    """Return what PCR 18's first event measures."""
    return f"reason: {reason}\nlaunch: {number}\n".encode()


def parse_launch_text(data: bytes) -> tuple[str, int]:
    """Return reason and number of a launch.  Raises FormatError."""
    lines = data.decode("ascii", "replace").split("\n")
    reason = lines[0].removeprefix("reason: ")
    number = lines[1].removeprefix("launch: ") if len(lines) == 3 else ""
    if (
        reason not in REASONS
        or not number.isdecimal()
        or len(number) > 10
        or launch_text(reason, int(number)) != data
    ):
        raise FormatError(_NAME, 0, "not a reason and a number", got=repr(data[:60]))
    return reason, int(number)
