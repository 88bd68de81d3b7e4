"""The secure kernel's event log: crypto-agile, as any TCG tool reads it.

Layout: TCG PC Client Platform Firmware Profile 1.06, clauses 10.2.1 (TCG_PCR_EVENT2), 10.4.5.1
(Spec ID Event03) and 10.4.2.1 (EV_EVENT_TAG with TCG_PCClientTaggedEvent); little-endian.  Every
digest is the hash of the event field, so that the log proves itself.

The events themselves are those of :mod:`undercroft.formats.launch`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.base import HashAlgorithm
from undercroft.formats.launch import (
    LAUNCH,
    MANIFEST,
    PCR_IDENTITY,
    PCR_MANIFEST,
    PCR_RECORD,
    TAG_IDENTITY,
    TAG_MANIFEST,
    TAG_RECORD,
    launch_text,
    tagged_event,
)

__all__ = [
    "LAUNCH",
    "MANIFEST",
    "MAX_MEASURED",
    "PCR_IDENTITY",
    "PCR_MANIFEST",
    "PCR_RECORD",
    "TAG_IDENTITY",
    "TAG_MANIFEST",
    "TAG_RECORD",
    "LaunchConfig",
    "event2",
    "launch_text",
    "spec_id_event",
    "tagged_event",
]

EV_NO_ACTION = 0x0000_0003
EV_EVENT_TAG = 0x0000_0006

MAX_MEASURED = 64 * 1024
"""Largest manifest, identity or record, in bytes."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """What a launch measures: the manifest's bytes, and identities by name, in order."""

    manifest: bytes
    identities: tuple[tuple[str, bytes], ...] = ()


def spec_id_event(banks: Sequence[HashAlgorithm]) -> bytes:
    """Return the log's first event, which names the algorithms of all that follow."""
    event = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    for bank in banks:
        event += struct.pack("<HH", bank.alg_id, bank.size)
    event += b"\0"  # vendorInfoSize
    return struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(event)) + event


def event2(pcr: int, event: bytes, banks: Sequence[HashAlgorithm]) -> bytes:
    """Return TCG_PCR_EVENT2 of type EV_EVENT_TAG whose digests are those of ``event``."""
    out = struct.pack("<III", pcr, EV_EVENT_TAG, len(banks))
    for bank in banks:
        out += struct.pack("<H", bank.alg_id) + bank.hash(event)
    return out + struct.pack("<I", len(event)) + event
