"""A launch of the secure kernel on a simulated TPM: PCR 17 to 19 and the log that explains them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog import EventType
from undercroft.formats.launch import (
    LAUNCH,
    MANIFEST,
    PCR_IDENTITY,
    PCR_MANIFEST,
    PCR_RECORD,
    TAG_IDENTITY,
    TAG_MANIFEST,
    TAG_RECORD,
    LaunchEvent,
    launch_text,
)
from undercroft.formats.tpm import ObjectAttributes, TpmRh
from undercroft.testing.attester import SimulatedAttester
from undercroft.verify.launch import AK_POLICY

PCR_OF_TAG = {TAG_MANIFEST: PCR_MANIFEST, TAG_IDENTITY: PCR_IDENTITY, TAG_RECORD: PCR_RECORD}


def launch_events(
    manifest: bytes,
    identities: Iterable[tuple[str, bytes]] = (),
    records: Iterable[tuple[str, bytes]] = (),
    *,
    reason: str = "power-on",
) -> tuple[LaunchEvent, ...]:
    """Return what a launch measures, in order."""
    return (
        LaunchEvent(TAG_MANIFEST, MANIFEST, manifest),
        LaunchEvent(TAG_IDENTITY, LAUNCH, launch_text(reason, 1)),
        *(LaunchEvent(TAG_IDENTITY, name, data) for name, data in identities),
        *(LaunchEvent(TAG_RECORD, name, data) for name, data in records),
    )


def encode_launch_log(events: Sequence[LaunchEvent], banks: Sequence[HashAlgorithm]) -> bytes:
    """Write ``events`` as a crypto-agile log (PFP 1.06, 10.2)."""
    sizes = b"".join(struct.pack("<HH", bank.alg_id, bank.size) for bank in banks)
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"
    parts = [struct.pack("<II20sI", 0, EventType.EV_NO_ACTION, bytes(20), len(spec)) + spec]
    for event in events:
        field = event.encode()
        digests = [struct.pack("<H", bank.alg_id) + bank.hash(field) for bank in banks]
        head = struct.pack("<III", PCR_OF_TAG[event.tag], EventType.EV_EVENT_TAG, len(banks))
        parts.append(head + b"".join(digests) + struct.pack("<I", len(field)) + field)
    return b"".join(parts)


def use_launch_key(attester: SimulatedAttester, hierarchy: TpmRh = TpmRh.PLATFORM) -> None:
    """Give the TPM an attestation key as a launch makes it: for locality 2 only."""
    attributes = attester.public.attributes & ~ObjectAttributes.USER_WITH_AUTH
    attester.public = replace(attester.public, auth_policy=AK_POLICY, attributes=attributes)
    attester.qualified_name = attester.public.qualified_name(hierarchy.handle_name)


def perform_launch(attester: SimulatedAttester, events: Sequence[LaunchEvent]) -> bytes:
    """Do what a D-RTM event and extends of ``events`` do to the PCRs; return the log."""
    for bank in attester.banks:
        for pcr in range(17, 23):
            attester.set_pcr(bank, pcr, bytes(bank.size))
    for event in events:
        attester.measure(PCR_OF_TAG[event.tag], event.encode())
    return encode_launch_log(events, attester.banks)
