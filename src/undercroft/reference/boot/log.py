"""A prediction written as the event log that it foretells (TCG crypto-agile format).

What nobody can know beforehand (addresses, device paths of images) is zero or empty: the log's
digests are what counts, and every tool that reads logs can read it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog.types import EventType
from undercroft.reference.boot.event import PREDICTED_BANKS, PredictedEvent

_SPEC_ID = b"Spec ID Event03\0"
_UINTN_OF_64_BITS = 2


def encode_prediction(
    events: Sequence[PredictedEvent], banks: Sequence[HashAlgorithm] = PREDICTED_BANKS
) -> bytes:
    """Return ``events`` as a TCG event log with digests for ``banks``: its header, then each."""
    sizes = b"".join(struct.pack("<HH", bank.alg_id, bank.size) for bank in banks)
    header = (
        _SPEC_ID
        + struct.pack("<IBBBB", 0, 0, 2, 0, _UINTN_OF_64_BITS)
        + struct.pack("<I", len(banks)) + sizes + b"\0"
    )  # fmt: skip
    first = struct.pack("<II20sI", 0, EventType.EV_NO_ACTION, bytes(20), len(header)) + header
    return first + b"".join(_event(one, banks) for one in events)


def _event(one: PredictedEvent, banks: Sequence[HashAlgorithm]) -> bytes:
    digests = b"".join(struct.pack("<H", bank.alg_id) + one.digest(bank) for bank in banks)
    head = struct.pack("<III", one.pcr, EventType[one.event_type], len(banks))
    return head + digests + struct.pack("<I", len(one.data)) + one.data
