"""How one TPM quote binds the verifier's nonce and every other part of the evidence."""

from __future__ import annotations

import hashlib

from undercroft.base import Nonce

_DOMAIN = b"undercroft.evidence.v1\0"
_LAUNCHED_DOMAIN = b"undercroft.evidence.v2\0"
"""Keep this hash apart from any other use of the same key, and evidence with the log of a launch
from evidence without one."""

_ABSENT = hashlib.sha256(b"\0").digest()
_PRESENT = b"\1"


def qualifying_data(
    nonce: Nonce,
    *,
    record: bytes | None,
    eventlog: bytes | None,
    ima_list: bytes | None,
    launch_log: bytes | None = None,
) -> bytes:
    """Return the 32 bytes that a quote has to carry as qualifyingData (TPMS_ATTEST.extraData).

    SHA-256(domain || nonce || P(record) || P(eventlog) || P(ima_list)), where P(part) is
    SHA-256(01 || part) or, for a part that is not in the evidence, SHA-256(00). Each part is its
    bytes as they stand in the evidence. Only the nonce varies in length, and it stands between
    two that do not, so no two inputs run together.

    The logs are bound although they replay to quoted PCRs: a replay covers one digest of each
    event, and not the other banks' digests or the data that no digest is over.
    """
    parts = [
        _DOMAIN if launch_log is None else _LAUNCHED_DOMAIN,
        nonce.value,
        part_digest(record),
        part_digest(eventlog),
        part_digest(ima_list),
    ]
    if launch_log is not None:
        parts.append(part_digest(launch_log))
    return hashlib.sha256(b"".join(parts)).digest()


def part_digest(part: bytes | None) -> bytes:
    """Return P(part): SHA-256(01 || part), or SHA-256(00) for a part that is not there."""
    if part is None:
        return _ABSENT
    state = hashlib.sha256(_PRESENT)
    state.update(part)
    return state.digest()
