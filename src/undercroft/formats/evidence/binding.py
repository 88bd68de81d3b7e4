"""How one TPM quote binds the verifier's nonce and the secure kernel's record."""

from __future__ import annotations

import hashlib

from undercroft.base import Nonce

_DOMAIN = b"undercroft.evidence.v1\0"
"""Keeps this hash apart from any other use of the same key, and from other versions of ours."""


def qualifying_data(nonce: Nonce, record: bytes | None) -> bytes:
    """Return the 32 bytes that a quote has to carry as qualifyingData (TPMS_ATTEST.extraData).

    SHA-256(domain || nonce || SHA-256(record)), where ``record`` is the encoded
    SecureKernelRecord as it stands in the evidence, or empty if there is none (an agent-only
    machine).  Only the nonce varies in length, and it stands between two fixed ones, so no two
    inputs run together.
    """
    inner = hashlib.sha256(record or b"").digest()
    return hashlib.sha256(_DOMAIN + nonce.value + inner).digest()
